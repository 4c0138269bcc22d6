// A model spread over a mesh of ranks trains as one process does: ranks are threads here. Built twice: for the CPU, and
// for ranks that share a GPU.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <mutex>

#include "comm/thread_transport.h"
#include "device/memory.h"
#include "device/transfer.h"
#include "parallel/rank_of_world.h"
#include "parallel/unquantized.h"
#include "sanitized.h"

namespace agoq::parallel {
namespace {

#if defined(AGOQ_TEST_ON_GPU)
constexpr Device kDevice = Device::Cuda;
#else
constexpr Device kDevice = Device::Cpu;
#endif
constexpr int kGlobalMicroBatches = 8;
constexpr int kSteps = agoq::test::kSanitized ? 4 : 20;  // sanitized, a run only has to pass every place

struct Shape {
  int tensor = 1, pipeline = 1, data = 1, chunks = 1, replicas = 1;
  int ranks() const { return tensor * pipeline * data_ranks(); }
  int data_ranks() const { return data * replicas; }
  std::string text() const {
    return fmt::format("tp{}_pp{}_dp{}_v{}_replicas{}", tensor, pipeline, data, chunks, replicas);
  }
};

// Micro-batch `index` of a step: tokens that can be predicted, so that losses fall; some do not count.
class Batch {
 public:
  Batch(const RunSpec& run_spec, int step, int index) {
    const int64_t tokens = run_spec.tokens();
    for (int64_t t = 0; t < tokens; ++t) {
      const int64_t sequence = t / run_spec.sequence_length, place = t % run_spec.sequence_length;
      const int64_t seed = (step * kGlobalMicroBatches + index) * run_spec.micro_batch_size + sequence;
      const auto token = [&](int64_t at) { return static_cast<int32_t>((seed * 31 + at * (3 + seed % 5)) % 97 + 1); };
      ids_.push_back(token(place));
      targets_.push_back(token(place + 1));
      weights_.push_back((seed + place) % 7 == 0 || (index == 3 && place > 4) ? 0.0f : 1.0f);
      positions_.push_back(static_cast<int32_t>(place));
      starts_.push_back(static_cast<int32_t>(t - place));
    }
  }
  MicroBatch view() {
    const auto tensor = [](auto& v) { return host_tensor(v.data(), {static_cast<int64_t>(v.size())}); };
    return {tensor(ids_), tensor(targets_), tensor(weights_), tensor(positions_), tensor(starts_)};
  }
  double weight() const {
    double sum = 0;
    for (const float w : weights_) sum += w;
    return sum;
  }

 private:
  std::vector<int32_t> ids_, targets_, positions_, starts_;
  std::vector<float> weights_;
};

RunSpec run_spec_of(const Shape& shape, RunSpec run_spec, int rank) {
  run_spec.parallelism.mesh = training_mesh({shape.tensor, shape.data, shape.pipeline, shape.replicas});
  run_spec.parallelism.rank = rank;
  run_spec.parallelism.chunks = shape.chunks;
  run_spec.parallelism.micro_batches = kGlobalMicroBatches / shape.data_ranks();
  run_spec.parallelism.grad_reduce = run_spec.precision.main_grads;
  return run_spec;
}

struct Trained {
  std::vector<double> losses, norms;
  double valid_loss = 0;
  std::vector<float> logits;
  std::map<std::string, std::vector<uint8_t>> stored;  // logical tensors
  std::map<int, int> in_flight;                        // the most activations of a stage at a time
  bool operator==(const Trained&) const = default;
};

// Puts the pieces of a rank's tensors in their places; each place is written by one rank.
void gather(const Context& ctx, const std::vector<StoredTensor>& tensors, Trained& to) {
  for (const StoredTensor& tensor : tensors) {
    const Rectangle whole = tensor.whole();
    const size_t size = size_of(tensor.dtype);
    std::vector<uint8_t>& bytes = to.stored[tensor.name];
    for (const StoredPiece& piece : tensor.pieces) {
      if (piece.replica) continue;
      bytes.resize(static_cast<size_t>(whole.count()) * size);
      std::vector<uint8_t> part(piece.data.bytes());
      download(ctx, piece.data, part.data());
      copy_part({part.data(), piece.at}, {bytes.data(), whole}, piece.at, size);
    }
  }
}

// The bytes of a stored tensor as numbers of a type.
template <class Number>
std::vector<Number> numbers_of(const std::vector<uint8_t>& bytes) {
  std::vector<Number> numbers(bytes.size() / sizeof(Number));
  std::memcpy(numbers.data(), bytes.data(), bytes.size());
  return numbers;
}

using Values = std::map<std::string, std::vector<float>>;

// fp32 as it is stored, or of bf16 and its correction.
std::vector<float> weights_of(const Trained& trained, const std::string& name, int64_t count) {
  const std::vector<uint8_t>& bytes = trained.stored.at("weights/" + name);
  if (static_cast<int64_t>(bytes.size() / sizeof(float)) == count) return numbers_of<float>(bytes);
  const auto high = numbers_of<uint16_t>(bytes);
  const auto low = numbers_of<int16_t>(trained.stored.at("corrections/" + name));
  std::vector<float> weights;
  for (size_t i = 0; i < high.size(); ++i)
    weights.push_back(std::bit_cast<float>((uint32_t{high[i]} << 16) + static_cast<uint32_t>(int32_t{low[i]})));
  return weights;
}

std::vector<float> moments_of(const Trained& trained, const std::string& kind, const std::string& name,
                              const model::ParamRow& row, codec::Codec codec) {
  std::vector<uint8_t> codes = trained.stored.at(kind + ".codes/" + name), scales;
  codec::Quantized q{codec, Device::Cpu, row.rows, row.blocks(), {}, {}};
  q.codes = host_tensor(codes.data(), {row.rows, static_cast<int64_t>(codes.size()) / row.rows});
  if (codec::has_scales(codec)) {
    scales = trained.stored.at(kind + ".scales/" + name);
    q.scales = Tensor{scales.data(), DType::BF16, Device::Cpu, {row.rows, row.blocks().blocks()}};
  }
  return test::decoded(q);
}

// Every logical tensor of the model and of its moments, as numbers.
Values values_of(const Trained& trained, const RunSpec& run_spec) {
  Values values;
  const model::LayerSpec spec(run_spec.model);
  for (const model::ParamId& id : model::all_params(run_spec.model, spec)) {
    const std::string name = model::logical_name(spec, id);
    const model::ParamRow& row = spec[id.param];
    const auto codec_of = [&](codec::Codec of_matrices) {
      return row.one_dimensional() ? codec::Codec::Fp32 : of_matrices;
    };
    values["weights/" + name] = weights_of(trained, name, row.count());
    values["exp_avg/" + name] = moments_of(trained, "exp_avg", name, row, codec_of(run_spec.precision.exp_avg));
    values["exp_avg_sq/" + name] =
        moments_of(trained, "exp_avg_sq", name, row, codec_of(run_spec.precision.exp_avg_sq));
  }
  return values;
}

// |a - b| / |b|
double relative_distance(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return std::numeric_limits<double>::infinity();
  double error = 0, size = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    error += std::pow(double{a[i]} - b[i], 2);
    size += double{b[i]} * b[i];
  }
  return std::sqrt(error / std::max(size, 1e-30));
}

void expect_near(const Values& many, const Values& one, double tolerance) {
  ASSERT_EQ(many.size(), one.size());
  for (const auto& [name, values] : one) EXPECT_LT(relative_distance(many.at(name), values), tolerance) << name;
}

// `seed`: of draws alone; weights begin alike.
Trained train(const Shape& shape, const RunSpec& run_spec, int steps = kSteps, uint64_t seed = 5) {
  Trained trained;
  std::mutex mutex;
  test::ThreadWorld world(shape.ranks());
  world.run([&](comm::Transport& transport) {
    omp_set_num_threads(1);
    const RunSpec mine = run_spec_of(shape, run_spec, transport.rank());
    Arena planned(Device::Meta, 0);
    TrainingState dry(planned, kDevice, mine);
    dry.dry_run();
    const Traffic planned_step = dry.dry_traffic();
    EXPECT_EQ(planned_step.tensor > 0, shape.tensor > 1);
    EXPECT_EQ(planned_step.pipeline > 0, shape.pipeline > 1);
    EXPECT_GE(planned_step.data > 0, shape.data > 1);
    DeviceMemory memory(kDevice);
    const Arena& arena = memory.reserve(planned.total_bytes());
    TrainingState state(memory.arena(), kDevice, mine, &transport);
    Context& ctx = state.context();
    ctx.random.seed = seed;
    state.params().initialize(ctx, 11);
    Trained own;
    Traffic sent_before;
    for (int step = 0; step < steps; ++step) {
      ctx.random.step = static_cast<uint32_t>(step);
      if (step == 1) sent_before = state.groups().sent();  // groups on a GPU open their links in the first step
      std::vector<Batch> batches;
      double weight = 0;
      for (int i = 0; i < kGlobalMicroBatches; ++i) {
        Batch batch(mine, step, i);
        weight += batch.weight();
        if (i % shape.data_ranks() == mine.parallelism.data_rank()) batches.push_back(std::move(batch));
      }
      std::vector<MicroBatch> views;
      for (Batch& batch : batches) views.push_back(batch.view());
      state.begin_step(static_cast<int>(views.size()));
      state.forward_backward(views, static_cast<float>(1 / weight));
      state.optimizer().step(ctx, 3e-3, {});
      own.losses.push_back(state.take_loss() / weight);
      own.norms.push_back(state.end_step().grad_norm);
    }
    const Traffic sent = state.groups().sent() - sent_before;
    const auto times = [&](uint64_t bytes) { return bytes * static_cast<uint64_t>(steps - 1); };
    EXPECT_EQ(sent.tensor, times(planned_step.tensor)) << shape.text();
    EXPECT_EQ(sent.data, times(planned_step.data)) << shape.text();
    EXPECT_EQ(sent.pipeline, times(planned_step.pipeline)) << shape.text();
    Batch held_out(mine, 1000, 0);
    state.evaluate(held_out.view());
    own.valid_loss = state.take_loss() / shape.data_ranks();
    state.logits(held_out.view(), 5, [&](std::span<const float> l) { own.logits.assign(l.begin(), l.end()); });
    EXPECT_LE(arena.total_bytes(), planned.total_bytes()) << shape.text();
    EXPECT_EQ(arena.owned_bytes(), planned.owned_bytes()) << shape.text();

    const std::lock_guard lock(mutex);
    if (!trained.losses.empty()) {  // all ranks say the same
      EXPECT_EQ(own.losses, trained.losses);
      EXPECT_EQ(own.norms, trained.norms);
      EXPECT_EQ(own.logits, trained.logits);
    }
    own.stored = std::move(trained.stored);
    own.in_flight = std::move(trained.in_flight);
    own.in_flight[mine.parallelism.stage()] = state.saved().most_in_use();
    trained = std::move(own);
    gather(ctx, state.named_tensors(), trained);
  });
  return trained;
}

RunSpec exact_run_spec() {
  model::ModelConfig model = test::tiny_model();
  model.layers = 4;
  RunSpec run_spec = test::tiny_run_spec(model);
  run_spec.recipe = model::make_recipe(model, model::LayerSpec(model), model::Policy::Fp32, model::Recompute::None, "");
  run_spec.precision = unquantized(DType::F32).precision;
  run_spec.precision.stochastic = false;
  return run_spec;
}

RunSpec agoq_run_spec(DType compute = DType::F32) {
  model::ModelConfig model = test::tiny_model();
  model.layers = 4;
  RunSpec run_spec = test::tiny_run_spec(model);
  run_spec.precision.compute = compute;
  return run_spec;
}

// Skipped without a GPU, where they are built for one.
class Mesh : public testing::Test {
 protected:
  void SetUp() override {
    if constexpr (kCudaBuild && kDevice == Device::Cuda)
      if (const std::string why = why_no_gpu(); !why.empty()) GTEST_SKIP() << why;
  }
};
// What one process trains is the same for every mesh: trained once.
class MeshSeeds : public Mesh {
 protected:
  static const Trained& exact_alone() {
    static const Trained trained = train({}, exact_run_spec());
    return trained;
  }
  static const Trained& bf16_alone() {
    static const Trained trained = train({}, agoq_run_spec(DType::BF16), 4);
    return trained;
  }
  static const std::vector<Trained>& seeds_alone() {
    static const std::vector<Trained> trained = [] {
      std::vector<Trained> seeds;
      for (const uint64_t seed : {5, 6, 7, 8}) seeds.push_back(train({}, agoq_run_spec(), kSteps, seed));
      return seeds;
    }();
    return trained;
  }
  // How far the other seeds end from the first, by tensor; at most.
  static const std::map<std::string, double>& apart_by_seed() {
    static const std::map<std::string, double> apart = [] {
      std::map<std::string, double> largest;
      const Values first = values_of(seeds_alone()[0], agoq_run_spec());
      for (const Trained& seed : seeds_alone())
        for (const auto& [name, values] : values_of(seed, agoq_run_spec()))
          largest[name] = std::max(largest[name], relative_distance(values, first.at(name)));
      return largest;
    }();
    return apart;
  }
};

class Meshes : public MeshSeeds, public testing::WithParamInterface<Shape> {};

TEST_P(Meshes, ExactTrainingIsThatOfOneProcess) {
  const Trained& one = exact_alone();
  const Trained many = train(GetParam(), exact_run_spec());
  EXPECT_NEAR(many.losses[0], one.losses[0], 1e-5);
  for (size_t i = 0; i < one.losses.size(); ++i) {
    EXPECT_NEAR(many.losses[i], one.losses[i], 1e-4) << "step " << i;
    EXPECT_NEAR(many.norms[i], one.norms[i], 1e-3 * one.norms[i]) << "step " << i;
  }
  EXPECT_LT(one.losses.back(), one.losses.front() - 0.025 * kSteps) << "or nothing was learnt";
  EXPECT_NEAR(many.valid_loss, one.valid_loss, 1e-2);
  EXPECT_EQ(many.stored.size(), one.stored.size());
  expect_near(values_of(many, exact_run_spec()), values_of(one, exact_run_spec()), 1e-2);
}

// A mesh changes the order of sums, and so what is rounded up or down: no more than another seed does.
TEST_P(Meshes, QuantizedTrainingIsWithinTheSpreadOfSeedsAndRepeatsToTheBit) {
  const std::vector<Trained>& one = seeds_alone();
  const Trained many = train(GetParam(), agoq_run_spec());
  EXPECT_NEAR(many.losses[0], one[0].losses[0], 1e-5) << "forward is exact";
  double spread = 0;
  for (size_t i = 0; i < kSteps; ++i) {
    const auto [low, high] = std::minmax({one[0].losses[i], one[1].losses[i], one[2].losses[i], one[3].losses[i]});
    spread = std::max(spread, high - low);  // steps differ in it; the largest so far, since errors stay
    EXPECT_NEAR(many.losses[i], (low + high) / 2, 1.5 * spread + 1e-5) << "step " << i;
  }
  EXPECT_LT(spread, 0.1) << "or it says nothing";
  const Values values = values_of(many, agoq_run_spec());
  for (const auto& [name, alone] : values_of(one[0], agoq_run_spec()))
    EXPECT_LT(relative_distance(values.at(name), alone), 2 * apart_by_seed().at(name) + 1e-3) << name;
  EXPECT_TRUE(train(GetParam(), agoq_run_spec()) == many);
}

// Sums that are encoded again for every micro-batch, or for replicas, err by up to twice as much, and are as even.
TEST_F(MeshSeeds, SumsThatAreEncodedAgainTrainWithinTheSpreadOfSeeds) {
  const std::vector<Trained>& one = seeds_alone();
  using enum Sharding;
  for (const auto& [shape, sharding] : {std::pair{Shape{1, 1, 4}, Gradients},
                                        {Shape{1, 1, 2, 1, 2}, Optimizer},
                                        {Shape{1, 1, 2, 1, 2}, Weights},
                                        {Shape{2, 2, 2}, Weights}}) {
    SCOPED_TRACE(fmt::format("{}, strategy {}", shape.text(), static_cast<int>(sharding)));
    RunSpec run_spec = agoq_run_spec();
    run_spec.parallelism.sharding = sharding;
    const Trained many = train(shape, run_spec);
    EXPECT_NEAR(many.losses[0], one[0].losses[0], 1e-5) << "forward is exact";
    double spread = 0;
    for (size_t i = 0; i < kSteps; ++i) {
      const auto [low, high] = std::minmax({one[0].losses[i], one[1].losses[i], one[2].losses[i], one[3].losses[i]});
      spread = std::max(spread, high - low);
      EXPECT_NEAR(many.losses[i], (low + high) / 2, 3 * spread + 1e-5) << "step " << i;
    }
    EXPECT_TRUE(train(shape, run_spec) == many) << "it repeats to the bit";
  }
}

#if !defined(AGOQ_TEST_ON_GPU)  // whose products of 8-bit floats take larger matrices
// Scales are powers of two, so a matrix cut along k has the same codes, but for those that are subnormal. What rounds
// one way or the other with another order of sums is a step of e4m3, 16 times one of bf16.
TEST_F(Mesh, Fp8TrainingIsThatOfOneProcess) {
  RunSpec run_spec = exact_run_spec();
  constexpr ops::OperandFormat kRow{}, kWhole{DType::E4M3, ops::Granularity::Tensor};
  run_spec.precision.fp8.recipe = ops::Fp8Recipe{kRow, kRow, kRow, kWhole, kWhole};
  RunSpec cached = run_spec;
  cached.precision.fp8.cache_weights = true;
  const Trained one = train({}, run_spec), exact = train({}, exact_run_spec());
  EXPECT_TRUE(train({}, cached) == one);
  for (const Shape& shape : {Shape{2, 1, 1}, Shape{1, 2, 1}, Shape{1, 1, 2}, Shape{2, 2, 2}}) {
    const Trained many = train(shape, run_spec);
    EXPECT_TRUE(train(shape, cached) == many) << shape.text() << ": a cache of weights changes no bit";
    for (size_t i = 0; i < one.losses.size(); ++i)
      EXPECT_NEAR(many.losses[i], one.losses[i], 0.01) << shape.text() << ", step " << i;
    EXPECT_NE(many.losses[0], exact.losses[0]) << "or nothing was rounded";
  }
}

// Each rank sees some of a tensor's columns, tokens or layers; what is remembered of it is of all of them.
TEST_F(Mesh, DelayedScalesHaveTheHistoryOfOneProcess) {
  RunSpec run_spec = exact_run_spec();
  constexpr ops::OperandFormat kWhole{DType::E4M3, ops::Granularity::Tensor};
  ops::Fp8Recipe recipe{kWhole, kWhole, kWhole, kWhole, kWhole};
  recipe.delayed = ops::DelayedScaling{3, false, 0};
  run_spec.precision.fp8.recipe = recipe;
  constexpr int kFew = 4;  // one more than is remembered
  const Trained one = train({}, run_spec, kFew);
  for (const Shape& shape : {Shape{2, 1, 1}, Shape{1, 2, 1}, Shape{1, 1, 2}, Shape{2, 2, 2}, Shape{1, 2, 1, 2}}) {
    SCOPED_TRACE(shape.text());
    const Trained many = train(shape, run_spec, kFew);
    EXPECT_EQ(many.stored.size(), one.stored.size());
    for (size_t i = 0; i < one.losses.size(); ++i) EXPECT_NEAR(many.losses[i], one.losses[i], 0.01) << "step " << i;
    for (int64_t layer = 0; layer < run_spec.model.layers; ++layer) {
      const std::string name = fmt::format("amax_history/layers.{}", layer);
      const auto got = numbers_of<float>(many.stored.at(name)), want = numbers_of<float>(one.stored.at(name));
      ASSERT_EQ(want.size(), 12U * 3) << name;
      // What rounds one way or the other is a step of e4m3 of a few numbers, and gradients are sums of such.
      for (size_t i = 0; i < want.size(); ++i) {
        EXPECT_GT(want[i], 0) << name << ' ' << i;
        EXPECT_NEAR(got[i], want[i], 0.1 * want[i]) << name << ' ' << i;
      }
    }
  }
  EXPECT_TRUE(train({1, 2, 1}, run_spec, kFew).stored == one.stored) << "stages change no number";
}
#endif

TEST_P(Meshes, InBf16WhatIsExactIsSliced) {
  const Trained& one = bf16_alone();
  const Trained many = train(GetParam(), agoq_run_spec(DType::BF16), 4);
  for (size_t i = 0; i < one.losses.size(); ++i) EXPECT_NEAR(many.losses[i], one.losses[i], 0.05) << "step " << i;
  const RunSpec run_spec = agoq_run_spec(DType::BF16);
  expect_near(values_of(many, run_spec), values_of(one, run_spec), 0.25);  // of other places it would be 1 and more
}

#if defined(AGOQ_TEST_ON_GPU)
TEST_F(Mesh, GradientsExchangedInPlaceAreThoseThatTravelToTheBit) {
  for (const bool shard : {true, false}) {
    RunSpec staged = agoq_run_spec();
    staged.model.vocab_size = 256;  // no padding, which is swapped but not planned
    staged.parallelism.sharding = shard ? Sharding::Optimizer : Sharding::None;
    RunSpec direct = staged;
    direct.parallelism.links.gpu_transport = comm::GpuTransport::Direct;
    for (const Shape& shape : {Shape{1, 1, 2, 1}, Shape{2, 1, 2, 1}, Shape{1, 2, 2, 2}})
      EXPECT_TRUE(train(shape, direct, 4) == train(shape, staged, 4)) << shape.text() << ", sharded: " << shard;
  }
}
#endif

void expect_as_one_process(const RunSpec& run_spec) {
  const Trained one = train({}, run_spec);
  for (const Shape& shape : {Shape{1, 2, 2, 1}, Shape{1, 2, 2, 2}, Shape{2, 2, 2, 1}, Shape{1, 4, 2, 1}}) {
    SCOPED_TRACE(shape.text());
    const Trained many = train(shape, run_spec);
    for (size_t i = 0; i < one.losses.size(); ++i) {
      EXPECT_NEAR(many.losses[i], one.losses[i], 1e-4) << "step " << i;
      EXPECT_NEAR(many.norms[i], one.norms[i], 1e-3 * one.norms[i]) << "step " << i;
    }
  }
}

// The first and the last stage have partial sums of one gradient.
TEST_F(Mesh, TiedEmbeddingsOfAPipelineTrainAsThoseOfOneProcess) {
  RunSpec run_spec = exact_run_spec();
  run_spec.model.tied_embeddings = true;
  expect_as_one_process(run_spec);
}

// OLMo 2: the norms of q and k go over the heads of all ranks.
TEST_F(Mesh, NormsBehindAttentionAndMlpTrainAsThoseOfOneProcess) {
  RunSpec run_spec = exact_run_spec();
  run_spec.model.post_norm = true;
  run_spec.model.qk_norm = model::QkNorm::Wide;
  run_spec.recipe = model::make_recipe(run_spec.model, model::LayerSpec(run_spec.model), model::Policy::Fp32,
                                       model::Recompute::None, "");
  expect_as_one_process(run_spec);
}

// What a strategy divides changes where it lies and when it travels. In fp32 the sums are the same to the bit where a
// rank has one micro-batch; of several, ZeRO-2 adds up ranks first and ZeRO-1 micro-batches. Without sharding the norm
// is added up in another order.
TEST_F(Mesh, EveryShardingStrategyTrainsTheSame) {
  using enum Sharding;
  constexpr int kFew = agoq::test::kSanitized ? 2 : 4;
  for (const bool tied : {false, true})
    for (const Shape& shape : {Shape{1, 1, 8}, Shape{2, 1, 4}, Shape{1, 2, 2, 2}, Shape{2, 2, 2}, Shape{1, 1, 2, 1, 4},
                               Shape{1, 2, 2, 1, 2}, Shape{2, 1, 1, 1, 2}}) {
      SCOPED_TRACE(shape.text() + (tied ? ", tied" : ""));
      RunSpec run_spec = exact_run_spec();
      run_spec.model.tied_embeddings = tied;
      const auto trained = [&](Sharding sharding) {
        run_spec.parallelism.sharding = sharding;
        return train(shape, run_spec, kFew);
      };
      const Trained optimizer = trained(Optimizer);
      const bool one_micro_batch = kGlobalMicroBatches == shape.data_ranks();
      const Trained flat = train({shape.tensor, shape.pipeline, shape.data_ranks(), shape.chunks}, run_spec, kFew);
      for (size_t i = 0; i < flat.losses.size(); ++i) EXPECT_NEAR(flat.losses[i], optimizer.losses[i], 1e-4) << i;
      for (const Sharding sharding : {None, Gradients, Weights}) {
        if (sharding == None && shape.replicas > 1) continue;
        const Trained other = trained(sharding);
        const bool same_bits = one_micro_batch && sharding != None;
        EXPECT_TRUE(!same_bits || other.losses == optimizer.losses);
        EXPECT_TRUE(!same_bits || other.stored == optimizer.stored);
        for (size_t i = 0; i < other.losses.size(); ++i) {
          EXPECT_NEAR(other.losses[i], optimizer.losses[i], 1e-4) << "step " << i;
          EXPECT_NEAR(other.norms[i], optimizer.norms[i], 1e-3 * optimizer.norms[i]) << "step " << i;
        }
      }
    }
}

TEST_F(Mesh, AsManyActivationsAreInFlightAsTheScheduleSays) {
  RunSpec run_spec = exact_run_spec();
  run_spec.model.layers = 8;
  run_spec.recipe = model::make_recipe(run_spec.model, model::LayerSpec(run_spec.model), model::Policy::Fp32,
                                       model::Recompute::None, "");
  using Counts = std::map<int, int>;
  EXPECT_EQ(train({1, 4, 1, 2}, run_spec, 2).in_flight, (Counts{{0, 11}, {1, 9}, {2, 7}, {3, 5}}));
  EXPECT_EQ(train({1, 4, 1, 1}, run_spec, 2).in_flight, (Counts{{0, 4}, {1, 3}, {2, 2}, {3, 1}}));
  EXPECT_EQ(train({}, run_spec, 2).in_flight, (Counts{{0, 1}}));
}

std::vector<Shape> all_meshes() {
  std::vector<Shape> meshes;
  for (const int tensor : {1, 2})
    for (const int pipeline : {1, 2})
      for (const int data : {1, 2})
        for (const int chunks : {1, 2})
          if (pipeline > 1 || chunks == 1)
            if (tensor * pipeline * data > 1) meshes.push_back({tensor, pipeline, data, chunks});
  meshes.push_back({1, 4, 1, 1});
  meshes.push_back({1, 1, 4, 1});
  meshes.push_back({1, 1, 3, 1});
  return meshes;
}
INSTANTIATE_TEST_SUITE_P(All, Meshes, testing::ValuesIn(all_meshes()),
                         [](const auto& info) { return info.param.text(); });

}  // namespace
}  // namespace agoq::parallel
