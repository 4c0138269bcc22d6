// Who holds which rows.
#include "parallel/shard_plan.h"

#include <gtest/gtest.h>

#include "model/model_config.h"

namespace agoq::parallel {
namespace {

using model::Param;
using model::Range;

constexpr Role kAllRoles[] = {Role::Weight, Role::Master, Role::Gradient, Role::Sum, Role::Moments};

model::ModelConfig demo(bool tied) {
  model::ModelConfig model = model::preset("demo");
  model.tied_embeddings = tied;
  return model;
}

struct Rank {
  Rank(int rank, const MeshShape& shape, Sharding sharding, DType compute, bool tied = false)
      : spec(demo(tied)), groups(Groups::planned(of_rank(rank, shape))), plan(spec, groups, sharding, compute) {}
  // Of a rank of `ranks` data ranks.
  Rank(int rank, int ranks, Sharding sharding, DType compute) : Rank(rank, MeshShape{1, ranks, 1}, sharding, compute) {}
  static Parallelism of_rank(int rank, const MeshShape& shape) {
    Parallelism parallelism;
    parallelism.mesh = training_mesh(shape);
    parallelism.rank = rank;
    return parallelism;
  }

  model::LayerSpec spec;
  Groups groups;
  ShardPlan plan;
};

TEST(ShardPlan, SlicesOfAllRanksAreTheParameter) {
  for (const int ranks : {1, 2, 3, 7, 1000}) {
    int64_t next = 0;
    for (int rank = 0; rank < ranks; ++rank) {
      const Rank r(rank, ranks, Sharding::Optimizer, DType::BF16);
      const Range rows = r.plan.rows(Param::GateUp, Role::Moments);
      EXPECT_EQ(rows.begin, next);
      EXPECT_LE(rows.count(), r.plan.slice(Param::GateUp));
      EXPECT_EQ(rows, r.plan.rows(Param::GateUp, Role::Moments, rank));
      next = rows.end;
    }
    EXPECT_EQ(next, Rank(0, 1, Sharding::Optimizer, DType::BF16).spec[Param::GateUp].rows) << ranks << " ranks";
  }
}

// What a rank keeps whole, strategy by strategy: a row for each, a column for each role.
TEST(ShardPlan, RolesOfAMatrix) {
  const auto sharded = [](Param param, Sharding sharding, DType compute, MeshShape shape = {1, 4, 1}) {
    const Rank r(1, shape, sharding, compute, /*tied=*/true);
    std::vector<bool> roles;
    for (const Role role : kAllRoles) roles.push_back(r.plan.sharded(param, role));
    return roles;
  };
  using enum Sharding;
  const Param p = Param::Qkv;
  //                                                   weight master gradient sum moments
  EXPECT_EQ(sharded(p, None, DType::BF16), (std::vector{false, false, false, false, false}));
  EXPECT_EQ(sharded(p, Optimizer, DType::BF16), (std::vector{false, true, false, true, true}));
  EXPECT_EQ(sharded(p, Optimizer, DType::F32), (std::vector{false, false, false, true, true}));
  EXPECT_EQ(sharded(p, Gradients, DType::BF16), (std::vector{false, true, true, true, true}));
  EXPECT_EQ(sharded(p, Weights, DType::BF16), (std::vector{true, true, true, true, true}));
  EXPECT_EQ(sharded(p, Weights, DType::F32), (std::vector{true, true, true, true, true}));
  // A tied embedding keeps partial sums; where a pipeline has it on two stages, its weight, too.
  const Param e = Param::Embedding;
  EXPECT_EQ(sharded(e, Weights, DType::BF16), (std::vector{true, true, false, true, true}));
  EXPECT_EQ(sharded(e, Weights, DType::BF16, {1, 2, 2}), (std::vector{false, true, false, true, true}));
  EXPECT_EQ(sharded(e, Weights, DType::F32, {1, 2, 2}), (std::vector{false, false, false, true, true}));
  EXPECT_EQ(sharded(p, Weights, DType::F32, {1, 2, 2}), (std::vector{true, true, true, true, true}));
}

TEST(ShardPlan, VectorsAreReplicated) {
  const Rank r(2, 4, Sharding::Optimizer, DType::BF16);
  for (const Role role : kAllRoles) {
    EXPECT_EQ(r.plan.of(Param::MlpNorm, role), Placement::Replicate);
    EXPECT_EQ(r.plan.rows(Param::MlpNorm, role), (Range{0, 1}));
  }
}

// Exactly one rank answers for each row.
TEST(ShardPlan, OneRankAnswersForWhatSeveralHave) {
  using enum Sharding;
  for (const Sharding shard : {None, Optimizer, Gradients, Weights})
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
