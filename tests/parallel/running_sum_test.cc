// What ZeRO-2 costs in precision: a rank's slice of the sum is encoded again for every micro-batch, where ZeRO-1 keeps
// partial sums of all ranks and never encodes their sum.
#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>

#include "base/philox.h"
#include "comm/thread_transport.h"
#include "parallel/gradients.h"
#include "sanitized.h"

namespace agoq::parallel {
namespace {

using codec::Codec;
using model::ParamId;

constexpr ParamId kQkv{0, model::Param::Qkv}, kHead{-1, model::Param::Head};
constexpr int kRanks = 4;

// A gradient with a part that all micro-batches share and a larger one that they do not, as real ones have.
float contribution(int rank, int micro_batch, size_t i) {
  const auto normal = [&](uint32_t a, uint32_t b) {
    const Philox4 words = philox4x32_7({static_cast<uint32_t>(i), a, b, 17}, {3, 5});
    return normal_pair(words[0], words[1])[0];
  };
  return 0.3f * normal(1000, 1000) + normal(static_cast<uint32_t>(rank), static_cast<uint32_t>(micro_batch));
}

struct Setting {
  Sharding sharding = Sharding::Gradients;
  int micro_batches = 1;
  Codec main = Codec::Int8, wire = Codec::Int8;
  bool stochastic = true;
  uint64_t seed = 1;
  int replicas = 1;  // of which each has kRanks / replicas
};

// The summed gradient of a matrix, from the slices of all ranks.
std::vector<float> summed(const Setting& s, const ParamId& id) {
  model::ModelConfig config = model::preset("demo");
  config.layers = 1;
  config.vocab_size = 101;  // slices that are not equal
  std::vector<float> whole;
  std::mutex mutex;
  test::ThreadWorld(kRanks).run([&](comm::Transport& transport) {
    omp_set_num_threads(1);
    Parallelism parallelism;
    parallelism.mesh = training_mesh({1, kRanks / s.replicas, 1, s.replicas});
    parallelism.rank = transport.rank();
    parallelism.grad_reduce = s.wire;
    Precision precision;
    precision.main_grads = s.main;
    precision.stochastic = s.stochastic;
    const model::LayerSpec spec(config);
    const Groups groups(transport, parallelism);
    const StageShard part(config, spec, parallelism);
    const ShardPlan plan(spec, groups, s.sharding, DType::F32);
    Arena arena(Device::Cpu, size_t{64} << 20);
    Context ctx(arena, Device::Cpu, DType::F32);
    ctx.random.seed = s.seed;
    Gradients grads(arena, spec, part, precision, parallelism, plan);

    const model::ParamRow& row = spec[id.param];
    std::vector<float> delta(static_cast<size_t>(row.count()));
    grads.begin_step(ctx, s.micro_batches);
    for (int k = 0; k < s.micro_batches; ++k) {
      ctx.random.micro_batch = parallelism.global_index(k);
      for (size_t i = 0; i < delta.size(); ++i) delta[i] = contribution(transport.rank(), k, i);
      ops::accumulate(ctx, grads.acquire(ctx, id), host_tensor(delta.data(), {row.rows, row.cols}));
      grads.contributed(ctx, id);
    }
    grads.end_step(ctx);

    const model::Range rows = plan.rows(id.param, Role::Sum);
    const std::lock_guard lock(mutex);
    whole.resize(delta.size());
    const ops::GradientSum sum = grads.sum(id);
    for (int64_t r = 0; r < rows.count(); ++r)
      for (int64_t block = 0; block < row.blocks().blocks(); ++block)
        ops::decode_block(sum, r, block,
                          &whole[static_cast<size_t>((rows.begin + r) * row.cols + row.blocks().begin(block))]);
  });
  return whole;
}

std::vector<double> truth(int micro_batches, size_t count) {
  std::vector<double> sum(count);
  for (int rank = 0; rank < kRanks; ++rank)
    for (int k = 0; k < micro_batches; ++k)
      for (size_t i = 0; i < count; ++i) sum[i] += contribution(rank, k, i);
  return sum;
}

double relative_error(const std::vector<float>& got, const std::vector<double>& want) {
  double error = 0, norm = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    error += (got[i] - want[i]) * (got[i] - want[i]);
    norm += want[i] * want[i];
  }
  return std::sqrt(error / norm);
}

// A step of int8 is a 127th of a block's largest number, which of 128 normal ones is 2.6 deviations. Stochastic
// rounding errs by at most half of that, 0.0084 of the deviation (root mean square: a step times sqrt(1/6)), each time
// that a number is encoded. Mirrored draws can only lessen it.
TEST(RunningSum, ErrsByWhatEncodingTheSumAgainCosts) {
  constexpr double kOnce = 2.6 / 127 * 0.41;
  for (const int micro_batches : {1, 8, 64}) {
    if (micro_batches > 1 && test::kSanitized) continue;
    const std::vector<float> one = summed({Sharding::Optimizer, micro_batches}, kQkv);
    const std::vector<float> two = summed({Sharding::Gradients, micro_batches}, kQkv);
    const std::vector<double> want = truth(micro_batches, one.size());
    const double error_one = relative_error(one, want), error_two = relative_error(two, want);
    RecordProperty(fmt::format("zero1_k{}", micro_batches), fmt::format("{:.5f}", error_one));
    RecordProperty(fmt::format("zero2_k{}", micro_batches), fmt::format("{:.5f}", error_two));
    fmt::print("{} micro-batches: ZeRO-1 errs by {:.4f}, ZeRO-2 by {:.4f}\n", micro_batches, error_one, error_two);
    // The sum after k of K micro-batches is encoded for k = 1 to K, and has grown to at most its end's size.
    EXPECT_LT(error_two, kOnce * std::sqrt(2.0 + micro_batches)) << micro_batches;
    EXPECT_GT(error_two, 0.3 * kOnce) << "or nothing was encoded";
    EXPECT_LT(error_two, 2 * error_one) << micro_batches;
  }
}

// In fp32 nothing is encoded: what is left is the order of sums.
TEST(RunningSum, InFp32IsTheSumToItsRounding) {
  for (const ParamId& id : {kQkv, kHead})
    for (const int micro_batches : {1, 5}) {
      const Setting exact{Sharding::Gradients, micro_batches, Codec::Fp32, Codec::Fp32};
      const std::vector<float> got = summed(exact, id);
      EXPECT_LT(relative_error(got, truth(micro_batches, got.size())), 1e-6);
      if (micro_batches > 1) continue;
      Setting whole = exact;
      whole.sharding = Sharding::Optimizer;
      EXPECT_EQ(got, summed(whole, id)) << "one micro-batch: to the bit";
    }
}

// Partial sums may travel in fewer bits than their sum is kept in; here that is what ZeRO-1 cannot do without full
// fp32 gradients.
TEST(RunningSum, KeptInFp32ErrsByOneEncodingForEachContribution) {
  const Setting s{Sharding::Gradients, 8, Codec::Fp32, Codec::Int8};
  const std::vector<float> got = summed(s, kQkv);
  const double error = relative_error(got, truth(8, got.size()));
  EXPECT_LT(error, relative_error(summed({Sharding::Gradients, 8}, kQkv), truth(8, got.size())));
  EXPECT_GT(error, 1e-4);
}

// The mean over seeds comes as close to the truth as independent errors of mean zero do. Nearest rounding does not: a
// number that is always rounded the same way stays away from it.
TEST(RunningSum, IsUnbiased) {
  if (test::kSanitized) GTEST_SKIP() << "statistics, of paths that other tests pass";
  constexpr int kSeeds = 64, kMicroBatches = 4;
  std::vector<double> mean;
  double one = 0;
  const auto want = [&] { return truth(kMicroBatches, mean.size()); };
  for (int seed = 0; seed < kSeeds; ++seed) {
    Setting s{Sharding::Gradients, kMicroBatches};
    s.seed = static_cast<uint64_t>(seed + 1);
    const std::vector<float> got = summed(s, kQkv);
    mean.resize(got.size());
    for (size_t i = 0; i < got.size(); ++i) mean[i] += static_cast<double>(got[i]) / kSeeds;
    if (seed == 0) one = relative_error(got, want());
  }
  const std::vector<float> averaged(mean.begin(), mean.end());
  EXPECT_LT(relative_error(averaged, want()), 1.15 * one / std::sqrt(kSeeds));
}

double root_mean_square_error(Setting s, int seeds) {
  double squares = 0;
  for (int seed = 1; seed <= seeds; ++seed) {
    s.seed = static_cast<uint64_t>(seed);
    const std::vector<float> got = summed(s, kQkv);
    squares += std::pow(relative_error(got, truth(s.micro_batches, got.size())), 2) / seeds;
  }
  return std::sqrt(squares);
}

// Ranks of different replicas encode the same rows: draws that they shared would add up to a larger error.
TEST(RunningSum, ReplicasRoundIndependently) {
  const Setting flat{Sharding::Optimizer, 1, Codec::Fp32, Codec::Int8};
  Setting replicas = flat;
  replicas.replicas =
      2;  // partial sums are encoded, then sums of replicas, then the whole sum, each with the same error
  if (test::kSanitized) GTEST_SKIP() << "statistics, of paths that other tests pass";
  constexpr int kSeeds = 6;
  const double once = root_mean_square_error(flat, kSeeds), thrice = root_mean_square_error(replicas, kSeeds);
  // A contribution's square is 1 + 0.3², that of a sum of n of them n + (0.3 n)²: four are encoded; then two of two,
  // and one of four.
  const auto square = [](double n) { return n + 0.09 * n * n; };
  const double first = 4 * square(1);
  EXPECT_NEAR(thrice / once, std::sqrt((first + 2 * square(2) + square(4)) / first), 0.02);
  for (const Sharding sharding : {Sharding::Optimizer, Sharding::Gradients}) {
    const Setting two{sharding, 3, Codec::Fp32, Codec::Fp32, true, 1, 2};
    const std::vector<float> got = summed(two, kHead);
    EXPECT_LT(relative_error(got, truth(3, got.size())), 1e-6);
  }
}

TEST(RunningSum, IsTheSameEveryTime) {
  const Setting s{Sharding::Gradients, 3};
  EXPECT_EQ(summed(s, kHead), summed(s, kHead));
}

}  // namespace
}  // namespace agoq::parallel
