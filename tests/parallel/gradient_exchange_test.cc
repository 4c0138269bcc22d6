// What ranks exchange, and what their sum is, against a scalar loop over all their gradients.
#include "parallel/gradient_exchange.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <mutex>

#include "parallel/rank_of_world.h"

namespace agoq::parallel {
namespace {

using codec::Codec;
using codec::Quantized;
using model::Param;
using model::ParamId;

constexpr int kWorlds[] = {2, 3, 4, 8};

struct Formats {
  Codec main, wire;
  bool stochastic;
};

std::string text(int ranks, const Formats& f) {
  return fmt::format("{} in {}, {} ranks, {}", codec::name_of(f.main), codec::name_of(f.wire), ranks,
                     f.stochastic ? "stochastic" : "nearest");
}

void reshape(model::LayerSpec& spec, Param param, int64_t rows, const codec::RowBlocks& row) {
  model::ParamRow& p = spec.params[static_cast<size_t>(param)];
  p.rows = p.logical_rows = rows;
  p.cols = p.logical_cols = row.cols;
  p.segment = row.segment;
}

// Rows that no world divides, fewer rows than ranks, blocks that end early.
model::LayerSpec awkward_spec(const model::ModelConfig& config) {
  model::LayerSpec spec(config);
  reshape(spec, Param::Qkv, 25, codec::RowBlocks(300));
  reshape(spec, Param::Out, 3, codec::RowBlocks(160, 20));
  reshape(spec, Param::GateUp, 13, codec::RowBlocks(160));
  reshape(spec, Param::Down, 2, codec::RowBlocks(320, 160));
  return spec;
}

Parallelism data_parallel(const comm::Transport& transport, const Formats& formats, bool shard) {
  Parallelism p;
  p.mesh = training_mesh({1, transport.size(), 1});
  p.rank = transport.rank();
  p.grad_reduce = formats.wire;
  p.sharding = shard ? Sharding::Optimizer : Sharding::None;
  return p;
}

Precision precision_of(const Formats& formats) {
  Precision precision;
  precision.main_grads = formats.main;
  precision.stochastic = formats.stochastic;
  return precision;
}

// Gradients of a rank, filled and exchanged.
class Rank {
 public:
  Rank(comm::Transport& transport, const Formats& formats, bool shard)
      : config_(test::tiny_model()),
        parallelism_(data_parallel(transport, formats, shard)),
        spec(awkward_spec(config_)),
        groups(transport, parallelism_),
        stage_shard_(config_, spec, parallelism_),
        grads(arena_, spec, stage_shard_, precision_of(formats), parallelism_, plan_) {
    omp_set_num_threads(1);
    ctx.random.seed = 7;
  }

  const std::vector<ParamId>& ids() const { return stage_shard_.ids; }
  model::Range rows(const ParamId& id) const { return plan_.rows(id.param, Role::Sum); }
  void fill(const ParamId& id, const std::vector<float>& values) {
    const Quantized to = grads.data(id);
    grads.acquire(ctx, id);
    codec::encode(ctx, host_tensor(values.data(), {to.rows, to.row.cols}), to);
  }
  // values(rank, id) everywhere.
  template <class F>
  void fill_all(const F& values) {
    grads.begin_step(ctx);
    for (const ParamId& id : ids()) fill(id, values(groups.world().rank(), id));
  }
  std::vector<float> invented(int rank, const ParamId& id) const {
    return test::invented(rank, id.tensor(), spec[id.param].count());
  }
  std::vector<float> sum(const ParamId& id) const {
    const ops::GradientSum sum = grads.sum(id);
    std::vector<float> values;
    for (int64_t r = 0; r < sum.first.rows; ++r)
      for (int64_t block = 0; block < sum.first.row.blocks(); ++block) {
        float x[codec::kBlock];
        ops::decode_block(sum, r, block, x);
        values.insert(values.end(), x, x + sum.first.row.size(block));
      }
    return values;
  }

 private:
  model::ModelConfig config_;
  Parallelism parallelism_;
  Arena arena_{Device::Cpu, size_t{16} << 20};

 public:
  model::LayerSpec spec;
  Groups groups;
  Context ctx{arena_, Device::Cpu, DType::F32};

 private:
  StageShard stage_shard_;
  ShardPlan plan_{spec, groups, parallelism_.sharding, DType::F32};

 public:
  Gradients grads;
};

// Of all ranks, by rank: what each had to say.
template <class T>
class Shared {
 public:
  explicit Shared(int ranks) : values_(static_cast<size_t>(ranks)) {}
  // Every rank's, once all have given theirs.
  const std::vector<T>& all(const comm::ProcessGroup& world, T mine) {
    values_[static_cast<size_t>(world.rank())] = std::move(mine);
    world.barrier();
    return values_;
  }

 private:
  std::vector<T> values_;
};

using ByTensor = std::map<uint32_t, std::vector<float>>;

ByTensor decoded(const Rank& rank) {
  ByTensor values;
  for (const ParamId& id : rank.ids()) values[id.tensor()] = test::decoded(rank.grads.data(id));
  return values;
}

std::vector<std::vector<float>> of(const std::vector<ByTensor>& all, const ParamId& id) {
  std::vector<std::vector<float>> partial_sums;
  for (const ByTensor& one : all) partial_sums.push_back(one.at(id.tensor()));
  return partial_sums;
}

std::vector<float> rows_of(const std::vector<float>& values, const model::Range& rows, int64_t cols) {
  return {values.begin() + rows.begin * cols, values.begin() + rows.end * cols};
}

// Which rank has which rows: all of them once, of 1-D parameters all on every rank.
void expect_covered(const Rank& rank, const ParamId& id) {
  const model::ParamRow& row = rank.spec[id.param];
  const std::vector<model::Range> all = rank.groups.data().values(rank.rows(id));
  int64_t next = 0;
  for (const model::Range& rows : all) {
    EXPECT_EQ(rows.begin, row.one_dimensional() ? 0 : next);
    next = rows.end;
  }
  EXPECT_EQ(next, row.rows);
}

TEST(GradientExchange, SlicedSumsAreThoseOfAScalarLoopToTheBit) {
  for (const Codec codec : {Codec::Int8, Codec::Fp8, Codec::Bf16, Codec::Fp32})
    for (const int ranks : kWorlds) {
      const Formats formats{codec, codec, true};
      SCOPED_TRACE(text(ranks, formats));
      Shared<ByTensor> partial_sums(ranks);
      test::ThreadWorld(ranks).run([&](comm::Transport& transport) {
        Rank rank(transport, formats, true);
        for (int step = 0; step < 2; ++step) {  // the second overwrites what the first has left in its storage
          rank.fill_all([&](int r, const ParamId& id) { return rank.invented(r + step, id); });
          const std::vector<ByTensor>& all = partial_sums.all(rank.groups.world(), decoded(rank));
          rank.grads.end_step(rank.ctx);
          for (const ParamId& id : rank.ids()) {
            expect_covered(rank, id);
            EXPECT_EQ(rank.sum(id), rows_of(test::summed(of(all, id)), rank.rows(id), rank.spec[id.param].cols))
                << model::logical_name(rank.spec, id);
          }
          rank.groups.world().barrier();
        }
      });
    }
}

using ByName = std::map<std::string, std::vector<float>>;

// What rank r adds to every tensor, as it arrives: encoded, but for 1-D parameters.
ByName arriving(int r, Codec wire) {
  const model::ModelConfig config = test::tiny_model();
  const model::LayerSpec spec = awkward_spec(config);
  ByName addends;
  for (const ParamId& id : model::all_params(config, spec)) {
    const model::ParamRow& row = spec[id.param];
    addends[model::logical_name(spec, id)] = test::through(row.one_dimensional() ? Codec::Fp32 : wire, row.blocks(),
                                                           test::invented(r, id.tensor(), row.count()));
  }
  return addends;
}

// Of the first so many ranks. In the all-reduce form the sum travels, too.
ByName sums_of(const std::vector<ByName>& addends, int ranks, Codec wire, bool shard) {
  const model::ModelConfig config = test::tiny_model();
  const model::LayerSpec spec = awkward_spec(config);
  ByName sums;
  for (const ParamId& id : model::all_params(config, spec)) {
    const model::ParamRow& row = spec[id.param];
    const std::string name = model::logical_name(spec, id);
    std::vector<std::vector<float>> partial_sums;
    for (int r = 0; r < ranks; ++r) partial_sums.push_back(addends[static_cast<size_t>(r)].at(name));
    sums[name] = test::summed(partial_sums);
    if (!shard && !row.one_dimensional()) sums[name] = test::through(wire, row.blocks(), sums[name]);
  }
  return sums;
}

TEST(GradientExchange, Fp32AddendsTravelInAnotherFormatAndAreSummedInFp32) {
  for (const Codec wire : {Codec::Int8, Codec::Fp8, Codec::Bf16}) {
    std::vector<ByName> addends;
    for (int r = 0; r < *std::max_element(std::begin(kWorlds), std::end(kWorlds)); ++r)
      addends.push_back(arriving(r, wire));
    for (const int ranks : kWorlds)
      for (const bool shard : {true, false}) {
        const Formats formats{Codec::Fp32, wire, false};
        SCOPED_TRACE(text(ranks, formats));
        const ByName sums = sums_of(addends, ranks, wire, shard);
        test::ThreadWorld(ranks).run([&](comm::Transport& transport) {
          Rank rank(transport, formats, shard);
          rank.fill_all([&](int r, const ParamId& id) { return rank.invented(r, id); });
          rank.grads.end_step(rank.ctx);
          for (const ParamId& id : rank.ids()) {
            const std::string name = model::logical_name(rank.spec, id);
            EXPECT_EQ(rank.sum(id), rows_of(sums.at(name), rank.rows(id), rank.spec[id.param].cols)) << name;
          }
        });
      }
  }
}

// The distance between the numbers of a format on both sides of x, in a block with this scale; at most.
double step_at(Codec codec, double x, double scale) {
  if (codec == Codec::Int8) return scale;
  const int digits = codec == Codec::Bf16 ? 7 : 3;
  const double subnormal = codec == Codec::Bf16 ? 0 : std::ldexp(scale, -9);
  if (x == 0 || scale == 0) return subnormal;
  return std::max(subnormal, std::ldexp(1.0, std::ilogb(x / scale) - digits) * scale);
}

// Of every element. `values` [rows, cols].
std::vector<double> steps_of(Codec codec, const codec::RowBlocks& row, const std::vector<float>& values) {
  std::vector<double> steps;
  for (size_t at = 0; at < values.size(); at += static_cast<size_t>(row.cols))
    for (int64_t block = 0; block < row.blocks(); ++block) {
      const float* x = &values[at + static_cast<size_t>(row.begin(block))];
      double scale = 1;
      if (codec != Codec::Bf16)
        scale = codec::reference::scale_value(
            codec::reference::scale_bits(codec::reference::format_of(codec), x, row.size(block)));
      for (int64_t i = 0; i < row.size(block); ++i) steps.push_back(step_at(codec, x[i], scale));
    }
  return steps;
}

TEST(GradientExchange, RoundingForTheWireErrsByLessThanAStepAndByNothingOnAverage) {
  constexpr int kSteps = 64;
  const ParamId id{0, Param::Qkv};
  for (const Codec wire : {Codec::Int8, Codec::Fp8, Codec::Bf16})
    for (const int ranks : kWorlds) {
      const Formats formats{Codec::Fp32, wire, true};
      SCOPED_TRACE(text(ranks, formats));
      test::ThreadWorld(ranks).run([&](comm::Transport& transport) {
        Rank rank(transport, formats, true);
        const model::ParamRow& row = rank.spec[id.param];
        const model::Range rows = rank.rows(id);
        std::vector<double> exact(static_cast<size_t>(rows.count() * row.cols)), bound(exact.size());
        std::vector<double> variance(exact.size()), mean(exact.size());
        for (int r = 0; r < ranks; ++r) {
          const std::vector<float> x = rows_of(rank.invented(r, id), rows, row.cols);
          const std::vector<double> steps = steps_of(wire, row.blocks(), x);
          for (size_t i = 0; i < x.size(); ++i) {
            exact[i] += x[i];
            bound[i] += steps[i];
            variance[i] += steps[i] * steps[i] / 4;  // of one rounding: p (1 - p) steps² at most
          }
        }
        ByTensor own;
        for (const ParamId& any : rank.ids()) own[any.tensor()] = rank.invented(transport.rank(), any);
        double total = 0, total_variance = 0;
        for (int step = 0; step < kSteps; ++step) {
          rank.ctx.random.step = static_cast<uint32_t>(step);
          rank.fill_all([&](int, const ParamId& any) { return own.at(any.tensor()); });
          rank.grads.end_step(rank.ctx);
          const std::vector<float> sum = rank.sum(id);
          for (size_t i = 0; i < sum.size(); ++i) {
            const double error = sum[i] - exact[i], fp32 = 1e-6 * ranks * bound[i] + 1e-6 * std::abs(exact[i]);
            ASSERT_LE(std::abs(error), bound[i] + fp32);
            mean[i] += error / kSteps;
            total += error;
            total_variance += variance[i];
          }
        }
        if (mean.empty()) return;
        EXPECT_LE(std::abs(total), 5 * std::sqrt(total_variance));
        for (size_t i = 0; i < mean.size(); ++i) EXPECT_LE(std::abs(mean[i]), 6 * std::sqrt(variance[i] / kSteps));
      });
    }
}

// Ranks with equal gradients: variances add up, where ranks that drew alike would add up errors.
TEST(GradientExchange, RanksRoundIndependently) {
  const ParamId id{0, Param::Qkv};
  constexpr int kRanks = 8;
  test::ThreadWorld(kRanks).run([&](comm::Transport& transport) {
    Rank rank(transport, {Codec::Fp32, Codec::Int8, true}, true);
    const model::ParamRow& row = rank.spec[id.param];
    rank.fill_all([&](int, const ParamId& any) { return rank.invented(0, any); });
    rank.grads.end_step(rank.ctx);
    const std::vector<float> sum = rank.sum(id), x = rows_of(rank.invented(0, id), rank.rows(id), row.cols);
    const std::vector<double> steps = steps_of(Codec::Int8, row.blocks(), x);
    double squares = 0, variance = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      const double part = x[i] / steps[i] - std::floor(x[i] / steps[i]);
      squares += std::pow(sum[i] - kRanks * static_cast<double>(x[i]), 2);
      variance += kRanks * part * (1 - part) * steps[i] * steps[i];
    }
    const auto of_all = [&](double mine) {
      double total = 0;
      for (const double one : rank.groups.world().values(mine)) total += one;
      return total;
    };
    EXPECT_NEAR(of_all(squares) / of_all(variance), 1, 0.1) << "8 if all drew alike";
  });
}

TEST(GradientExchange, TheAllReduceFormEncodesOnceAndAlikeOnAllRanks) {
  for (const Codec codec : {Codec::Int8, Codec::Fp8, Codec::Bf16, Codec::Fp32})
    for (const bool stochastic : {false, true})
      for (const int ranks : kWorlds) {
        const Formats formats{codec, codec, stochastic};
        SCOPED_TRACE(text(ranks, formats));
        Shared<ByTensor> partial_sums(ranks), sums(ranks);
        test::ThreadWorld(ranks).run([&](comm::Transport& transport) {
          Rank rank(transport, formats, false);
          rank.fill_all([&](int r, const ParamId& id) { return rank.invented(r, id); });
          const std::vector<ByTensor>& all = partial_sums.all(rank.groups.world(), decoded(rank));
          rank.grads.end_step(rank.ctx);
          const std::vector<ByTensor>& all_sums = sums.all(rank.groups.world(), decoded(rank));
          for (const ParamId& id : rank.ids()) {
            const model::ParamRow& row = rank.spec[id.param];
            const Codec kept = row.one_dimensional() ? Codec::Fp32 : codec;
            const std::vector<float> got = rank.sum(id), exact = test::summed(of(all, id));
            EXPECT_EQ(got, all_sums[0].at(id.tensor())) << model::logical_name(rank.spec, id);
            if (!stochastic || kept == Codec::Fp32) {
              EXPECT_EQ(got, test::through(kept, row.blocks(), exact)) << model::logical_name(rank.spec, id);
              continue;
            }
            const std::vector<double> steps = steps_of(kept, row.blocks(), exact);
            for (size_t i = 0; i < got.size(); ++i)
              ASSERT_LE(std::abs(got[i] - static_cast<double>(exact[i])), steps[i] * 1.0001);
          }
        });
      }
}

// How a sum is rounded depends on its place in the tensor, not on which rank does it.
void expect_same_draws_under_every_mesh(const Formats& formats) {
  std::mutex mutex;
  std::map<std::string, std::vector<float>> first;
  for (const int ranks : kWorlds)
    test::ThreadWorld(ranks).run([&](comm::Transport& transport) {
      Rank rank(transport, formats, false);
      rank.fill_all([&](int r, const ParamId& id) {
        return r < 2 ? rank.invented(r, id) : std::vector<float>(static_cast<size_t>(rank.spec[id.param].count()));
      });
      rank.grads.end_step(rank.ctx);
      const std::lock_guard lock(mutex);
      for (const ParamId& id : rank.ids()) {
        const auto [same, is_first] = first.emplace(model::logical_name(rank.spec, id), rank.sum(id));
        EXPECT_TRUE(is_first || rank.sum(id) == same->second) << same->first << " over " << ranks;
      }
    });
}

TEST(GradientExchange, TheAllReduceFormDrawsTheSameUnderEveryMesh) {
  expect_same_draws_under_every_mesh({Codec::Int8, Codec::Int8, true});
  expect_same_draws_under_every_mesh({Codec::Fp32, Codec::Int8, true});  // partial sums differ by rank, not by mesh
}

enum class Meet { Nowhere, BeforeStart, BeforeFinish };

// Everything that a rank has after exchanges through staging buffers of so many rows.
std::vector<uint8_t> exchanged(comm::Transport& transport, const Formats& formats, int64_t staging_rows,
                               Meet meet = Meet::Nowhere) {
  omp_set_num_threads(1);
  constexpr int64_t kRows = 97;
  const codec::RowBlocks row(320, 160);
  Arena arena(Device::Cpu, size_t{16} << 20);
  Context ctx(arena, Device::Cpu, DType::F32);
  const Groups groups(transport, data_parallel(transport, formats, true));
  const int ranks = groups.data().size();
  const int64_t staging = GradientExchange::staging_bytes(formats.wire, staging_rows, row);
  GradientExchange exchange(arena, formats.wire, formats.main != formats.wire, {staging, staging});
  std::vector<uint8_t> bytes;
  std::vector<SlicedGradient> gradients;
  for (uint32_t tensor = 0; tensor < 3; ++tensor) {
    SlicedGradient g{{}, kRows, slice_rows(kRows, ranks), tensor, {}, formats.stochastic};
    g.storage = codec::allocate(arena, Owner::Operands, formats.main, g.slice * ranks, row);
    const std::vector<float> values = test::invented(transport.rank(), tensor, kRows * row.cols);
    codec::encode(ctx, host_tensor(values.data(), {kRows, row.cols}), g.storage.row_range(0, kRows));
    gradients.push_back(g);
  }
  if (meet == Meet::BeforeStart) groups.world().barrier();
  for (const SlicedGradient& g : gradients) exchange.start(ctx, groups.data(), g);
  if (meet == Meet::BeforeFinish) groups.world().barrier();
  exchange.finish(ctx);
  for (const SlicedGradient& g : gradients)
    for (const Tensor& part : {g.storage.codes, g.storage.scales})
      if (part) bytes.insert(bytes.end(), part.raw(), part.raw() + part.bytes());
  return bytes;
}

TEST(GradientExchange, RoundsThroughSmallLanesGiveTheSame) {
  for (const Formats& formats : {Formats{Codec::Int8, Codec::Int8, true}, Formats{Codec::Fp32, Codec::Int8, true},
                                 Formats{Codec::Fp32, Codec::Bf16, true}, Formats{Codec::Fp32, Codec::Fp32, true}})
    for (const int ranks : kWorlds) {
      SCOPED_TRACE(text(ranks, formats));
      test::ThreadWorld(ranks).run([&](comm::Transport& transport) {
        const std::vector<uint8_t> at_once = exchanged(transport, formats, 200);
        EXPECT_EQ(exchanged(transport, formats, 3 * ranks), at_once);
        EXPECT_EQ(exchanged(transport, formats, ranks), at_once) << "row by row";
      });
    }
}

// Rank 0 starts all of its exchanges, more than the staging buffers hold, before any other rank has started one.
TEST(GradientExchange, StartingDoesNotWaitForOtherRanks) {
  for (const Formats& formats : {Formats{Codec::Int8, Codec::Int8, true}, Formats{Codec::Fp32, Codec::Int8, true}})
    for (const int ranks : kWorlds)
      test::ThreadWorld(ranks).run([&](comm::Transport& transport) {
        const std::vector<uint8_t> together = exchanged(transport, formats, 3 * ranks);
        const Meet meet = transport.rank() == 0 ? Meet::BeforeFinish : Meet::BeforeStart;
        EXPECT_EQ(exchanged(transport, formats, 3 * ranks, meet), together);
      });
}

TEST(GradientExchange, RefusesWhatDoesNotFit) {
  for (const Formats& formats : {Formats{Codec::Fp8, Codec::Int8, true}, Formats{Codec::Bf16, Codec::Int8, true}})
    test::ThreadWorld(2).run([&](comm::Transport& transport) {
      EXPECT_THROW(exchanged(transport, formats, 200), Error) << "only fp32 is encoded on the way";
    });
  test::ThreadWorld(2).run([&](comm::Transport& transport) {
    EXPECT_THROW(exchanged(transport, {Codec::Int8, Codec::Int8, true}, 1), Error) << "a row of each rank";
  });
}

// A model whose blocks are all full: what travels is a byte and 1/128 scale per number of a matrix, to other ranks
// only.
TEST(GradientExchange, SendsOneByteAParameterAndTwoInTheAllReduceForm) {
  model::ModelConfig config = test::tiny_model();
  config.hidden_size = config.ffn_size = 1024;
  config.heads = {8, 2, 128};
  config.layers = 1;
  const auto measure = [&](int ranks, const Formats& formats, bool shard) {
    test::ThreadWorld(ranks).run([&](comm::Transport& transport) {
      omp_set_num_threads(1);
      const Parallelism parallelism = data_parallel(transport, formats, shard);
      const model::LayerSpec spec(config);
      const Groups groups(transport, parallelism);
      const StageShard part(config, spec, parallelism);
      Arena arena(Device::Cpu, size_t{64} << 20);
      const Context ctx(arena, Device::Cpu, DType::F32);
      const ShardPlan plan(spec, groups, shard ? Sharding::Optimizer : Sharding::None, DType::F32);
      Gradients grads(arena, spec, part, precision_of(formats), parallelism, plan);
      grads.begin_step(ctx);
      grads.end_step(ctx);
      double matrices = 0, vectors = 0;
      for (const ParamId& id : part.ids)
        (spec[id.param].one_dimensional() ? vectors : matrices) += static_cast<double>(spec[id.param].count());
      const auto mean = [&](const comm::ProcessGroup& group) {
        uint64_t sent = 0;
        for (const uint64_t bytes : group.values(group.bytes_sent())) sent += bytes;
        return static_cast<double>(sent) / ranks;
      };
      const double others = (ranks - 1.0) / ranks, per_parameter = mean(groups.data()) / (matrices * others);
      EXPECT_LE(per_parameter, shard ? 1.02 : 2.04);
      EXPECT_GE(per_parameter, shard ? 1.0 : 2.0);
      // Norms go to every other rank in fp32, of a group of their own.
      EXPECT_LE(mean(groups.of(model::Reduction::DataAndTensor)), 4 * vectors * (ranks - 1) + 1000);
      EXPECT_LE(vectors, 1e-3 * matrices);
    });
  };
  for (const int ranks : kWorlds)
    for (const bool shard : {true, false}) {
      measure(ranks, {Codec::Int8, Codec::Int8, true}, shard);
      measure(ranks, {Codec::Fp32, Codec::Int8, true}, shard);
    }
}

}  // namespace
}  // namespace agoq::parallel
