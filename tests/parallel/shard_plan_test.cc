// Who holds which rows.
#include "parallel/shard_plan.h"

#include <gtest/gtest.h>

#include "model/model_config.h"

namespace agoq::parallel {
namespace {

using model::Param;
using model::Range;

constexpr Role kAllRoles[] = {Role::Weight, Role::Master, Role::Gradient, Role::Moments};

// Of a rank of `ranks` data ranks.
struct Rank {
  Rank(int rank, int ranks, bool shard, DType compute)
      : groups(Groups::planned(of_rank(rank, ranks))), plan(spec, groups, shard, compute) {}
  static Parallelism of_rank(int rank, int ranks) {
    Parallelism parallelism;
    parallelism.mesh = comm::Mesh({1, ranks, 1});
    parallelism.rank = rank;
    return parallelism;
  }

  model::LayerSpec spec{model::preset("demo")};
  Groups groups;
  ShardPlan plan;
};

TEST(ShardPlan, SlicesOfAllRanksAreTheParameter) {
  for (const int ranks : {1, 2, 3, 7, 1000}) {
    int64_t next = 0;
    for (int rank = 0; rank < ranks; ++rank) {
      const Rank r(rank, ranks, true, DType::BF16);
      const Range rows = r.plan.rows(Param::GateUp, Role::Moments);
      EXPECT_EQ(rows.begin, next);
      EXPECT_LE(rows.count(), r.plan.slice(Param::GateUp));
      EXPECT_EQ(rows, r.plan.rows(Param::GateUp, Role::Moments, rank));
      next = rows.end;
    }
    EXPECT_EQ(next, Rank(0, 1, true, DType::BF16).spec[Param::GateUp].rows) << ranks << " ranks";
  }
}

// ZeRO-1: a rank updates a slice, which alone it has exactly where products read bf16.
TEST(ShardPlan, RolesOfAMatrix) {
  const auto sharded = [](bool shard, DType compute) {
    const Rank r(1, 4, shard, compute);
    std::vector<bool> roles;
    for (const Role role : kAllRoles) roles.push_back(r.plan.sharded(Param::Qkv, role));
    return roles;
  };
  EXPECT_EQ(sharded(true, DType::BF16), (std::vector{false, true, true, true}));
  EXPECT_EQ(sharded(true, DType::F32), (std::vector{false, false, true, true}));
  EXPECT_EQ(sharded(false, DType::BF16), (std::vector{false, false, false, false}));
}

TEST(ShardPlan, VectorsAreReplicated) {
  const Rank r(2, 4, true, DType::BF16);
  for (const Role role : kAllRoles) {
    EXPECT_EQ(r.plan.of(Param::MlpNorm, role), Placement::Replicate);
    EXPECT_EQ(r.plan.rows(Param::MlpNorm, role), (Range{0, 1}));
  }
}

// Exactly one rank answers for each row.
TEST(ShardPlan, OneRankAnswersForWhatSeveralHave) {
  for (const bool shard : {true, false})
    for (const Param param : {Param::Down, Param::FinalNorm}) {
      std::vector<int> answers(static_cast<size_t>(Rank(0, 1, shard, DType::BF16).spec[param].rows));
      for (int rank = 0; rank < 5; ++rank) {
        const Rank r(rank, 5, shard, DType::BF16);
        if (!r.plan.answers_for(param, Role::Moments)) continue;
        const Range rows = r.plan.rows(param, Role::Moments);
        for (int64_t row = rows.begin; row < rows.end; ++row) ++answers[static_cast<size_t>(row)];
      }
      EXPECT_EQ(answers, std::vector<int>(answers.size(), 1));
    }
}

}  // namespace
}  // namespace agoq::parallel
