// Tensor and sequence parallelism against the same model on one rank.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <random>

#include "base/error_of.h"
#include "comm/thread_transport.h"
#include "ops/sequence_parallel.h"
#include "parallel/training_state.h"

namespace agoq {
namespace {

using model::LayerSpec;
using model::ModelConfig;
using model::Param;
using model::ParamId;
using model::SavedTensor;
using model::TensorShard;

constexpr double kTolerance = 1e-5;  // relative, of sums in another order

ModelConfig gqa() {
  ModelConfig model;
  model.vocab_size = 257;  // never even
  model.hidden_size = 64;
  model.ffn_size = 160;
  model.layers = 2;
  model.heads = {8, 4, 8};
  model.max_positions = 128;
  model.rope.dim = 8;
  return model;
}

struct Case {
  const char* name;
  void (*change)(ModelConfig&);
  friend void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }
};
const Case kCases[] = {
    {"gqa", [](ModelConfig&) {}},
    {"tied", [](ModelConfig& m) { m.tied_embeddings = true; }},
    {"qkv_bias", [](ModelConfig& m) { m.qkv_bias = true; }},
    {"qk_norm", [](ModelConfig& m) { m.qk_norm = model::QkNorm::Head; }},
    {"post_norm", [](ModelConfig& m) { m.qk_norm = model::QkNorm::Wide, m.post_norm = true; }},
    {"layer_norm", [](ModelConfig& m) { m.layer_norm = m.tied_embeddings = true, m.heads.kv = 8; }},
    {"window", [](ModelConfig& m) { m.window = 5; }},
};

// Two micro-batches of packed documents, of which a different part counts.
class Batches {
 public:
  explicit Batches(const parallel::RunSpec& run_spec) : tokens_(run_spec.tokens()) {
    std::mt19937 random(7);
    for (auto* ints : {&ids_, &targets_})
      for (int64_t t = 0; t < 2 * tokens_; ++t)
        ints->push_back(static_cast<int32_t>(random() % static_cast<uint32_t>(run_spec.model.vocab_size)));
    for (int64_t t = 0; t < 2 * tokens_; ++t) {
      const int64_t in_batch = t % tokens_, in_sequence = in_batch % run_spec.sequence_length;
      const int64_t in_document = in_sequence < 7 ? in_sequence : in_sequence - 7;
      weights_.push_back(t < tokens_ ? (t % 3 == 0 ? 0.0f : 1.0f) : (t % 5 == 0 ? 0.5f : 0.0f));
      positions_.push_back(static_cast<int32_t>(in_document));
      starts_.push_back(static_cast<int32_t>(in_batch - in_document));
    }
  }
  parallel::MicroBatch of(int64_t i) { return range(i * tokens_, tokens_); }
  parallel::MicroBatch range(int64_t begin, int64_t count) {
    const auto part = [&](auto& all) { return host_tensor(all.data() + begin, {count}); };
    return {part(ids_), part(targets_), part(weights_), part(positions_), part(starts_)};
  }

 private:
  int64_t tokens_;
  std::vector<int32_t> ids_, targets_, positions_, starts_;
  std::vector<float> weights_;
};

parallel::RunSpec exact_run_spec(const ModelConfig& model, model::Policy policy = model::Policy::Fp32,
                                 model::Recompute recompute = model::Recompute::None) {
  parallel::RunSpec run_spec;
  run_spec.model = model;
  run_spec.recipe = model::make_recipe(model, LayerSpec(model), policy, recompute, "");
  run_spec.precision.master = model::MasterForm::Fp32;
  run_spec.precision.main_grads = codec::Codec::Fp32;
  run_spec.micro_batch_size = 2;
  run_spec.sequence_length = 16;
  return run_spec;
}

// The rank's numbers of a parameter -> their places in the logical one.
template <class T>
void place(const model::ParamRow& row, const T* shard, std::vector<float>& logical, bool add) {
  const bool vector = row.one_dimensional();
  const int64_t cols = vector ? 1 : row.cols, logical_cols = vector ? 1 : row.logical_cols;
  logical.resize(static_cast<size_t>(row.logical_rows * row.logical_cols));
  for (const model::RowPiece& piece : row.pieces)
    for (int64_t r = 0; r < piece.count; ++r)
      for (int64_t c = 0; c < cols; ++c) {
        float& to = logical[static_cast<size_t>((piece.global_begin + r) * logical_cols + row.first_col + c)];
        to = shard[(piece.local_begin + r) * cols + c] + (add ? to : 0.0f);
      }
}
// And the other way round.
std::vector<float> shard_of(const model::ParamRow& row, const std::vector<float>& logical) {
  std::vector<float> places(static_cast<size_t>(row.count())), shard(places.size());
  for (size_t i = 0; i < places.size(); ++i) places[i] = static_cast<float>(i);
  std::vector<float> back(logical.size(), -1.0f);
  place(row, places.data(), back, false);
  for (size_t i = 0; i < logical.size(); ++i)
    if (back[i] >= 0) shard[static_cast<size_t>(back[i])] = logical[i];
  return shard;
}

// Norms and biases would otherwise begin as ones and zeros, which hide mistakes.
void vary_vectors(parallel::TrainingState& state) {
  for (const ParamId& id : state.params().ids()) {
    const model::ParamRow& row = state.spec()[id.param];
    if (!row.one_dimensional()) continue;
    std::vector<float> logical(static_cast<size_t>(row.logical_cols));
    for (size_t i = 0; i < logical.size(); ++i)
      logical[i] = (row.init == model::Init::Ones ? 1.0f : 0.0f) + 0.3f * std::sin(static_cast<float>(i + id.tensor()));
    ops::store_fp32(state.context(), state.params().at(id), shard_of(row, logical).data());
  }
}

parallel::Parallelism tensor_ranks(int ranks, int rank) {
  parallel::Parallelism parallelism;
  parallelism.mesh = parallel::training_mesh({ranks, 1, 1});
  parallelism.rank = rank;
  return parallelism;
}

struct Step {
  double loss = 0, valid_loss = 0;
  std::map<std::string, std::vector<float>> gradients;  // logical tensors
  std::vector<float> logits;
};

// A step on `ranks` ranks, in memory of exactly the planned size.
Step run(parallel::RunSpec run_spec, int ranks) {
  Step step;
  std::mutex mutex;
  test::ThreadWorld world(ranks);
  world.run([&](comm::Transport& transport) {
    omp_set_num_threads(1);
    parallel::RunSpec mine = run_spec;
    mine.parallelism = tensor_ranks(ranks, transport.rank());
    Arena planned(Device::Meta, 0);
    parallel::TrainingState dry(planned, Device::Cpu, mine);
    dry.dry_run();
    Arena arena(Device::Cpu, planned.total_bytes());
    parallel::TrainingState state(arena, Device::Cpu, mine, &transport);
    EXPECT_EQ(arena.owned_bytes(), planned.owned_bytes());
    state.params().initialize(state.context(), 11);
    vary_vectors(state);
    Batches batches(mine);
    state.begin_step();
    for (const int i : {0, 1}) state.forward_backward(batches.of(static_cast<uint32_t>(i)), i, 0.1f);
    const double loss = state.take_loss();
    state.evaluate(batches.of(1));
    const double valid_loss = state.take_loss();
    std::vector<float> logits;
    state.logits(batches.range(0, 5), 4,
                 [&](std::span<const float> of_token) { logits.assign(of_token.begin(), of_token.end()); });
    EXPECT_LE(arena.total_bytes(), planned.total_bytes());

    const std::lock_guard lock(mutex);
    if (!step.logits.empty()) {  // those of a rank that came before: all ranks have the same
      EXPECT_EQ(loss, step.loss);
      EXPECT_EQ(logits, step.logits);
    }
    step.loss = loss, step.valid_loss = valid_loss, step.logits = logits;
    for (const ParamId& id : state.params().ids()) {
      const model::ParamRow& row = state.spec()[id.param];
      const codec::Quantized& data = state.grads().data(id);
      std::vector<float> numbers(static_cast<size_t>(row.count()));
      codec::decode(state.context(), data, host_tensor(numbers.data(), {row.rows, row.cols}));
      place(row, numbers.data(), step.gradients[model::logical_name(state.spec(), id)],
            row.reduction == model::Reduction::DataAndTensor);
    }
  });
  return step;
}

double relative_error(const std::vector<float>& got, const std::vector<float>& want) {
  EXPECT_EQ(got.size(), want.size());
  double difference = 0, norm = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    difference += std::pow(static_cast<double>(got[i]) - want[i], 2);
    norm += std::pow(static_cast<double>(want[i]), 2);
  }
  EXPECT_GT(norm, 0);
  return std::sqrt(difference / norm);
}

void expect_same(const Step& got, const Step& want, double tolerance, double gradient_tolerance) {
  EXPECT_NEAR(got.loss / want.loss, 1, tolerance);
  EXPECT_NEAR(got.valid_loss / want.valid_loss, 1, tolerance);
  EXPECT_LT(relative_error(got.logits, want.logits), tolerance);
  ASSERT_EQ(got.gradients.size(), want.gradients.size());
  for (const auto& [name, gradient] : want.gradients)
    EXPECT_LT(relative_error(got.gradients.at(name), gradient), gradient_tolerance) << name;
}

class TensorParallel : public testing::TestWithParam<std::tuple<Case, int>> {
 protected:
  ModelConfig config() const {
    ModelConfig model = gqa();
    std::get<0>(GetParam()).change(model);
    return model;
  }
  int ranks() const { return std::get<1>(GetParam()); }
};
INSTANTIATE_TEST_SUITE_P(Models, TensorParallel, testing::Combine(testing::ValuesIn(kCases), testing::Values(2, 4)),
                         [](const auto& info) {
                           return std::string(std::get<0>(info.param).name) + "_" +
                                  std::to_string(std::get<1>(info.param));
                         });

TEST_P(TensorParallel, LossAndGradientsAreThoseOfOneRank) {
  const parallel::RunSpec run_spec = exact_run_spec(config());
  expect_same(run(run_spec, ranks()), run(run_spec, 1), kTolerance, kTolerance);
}

TEST_P(TensorParallel, RecomputationChangesNothing) {
  const Step want = run(exact_run_spec(config()), 1);
  for (const model::Recompute recompute : {model::Recompute::Selective, model::Recompute::Full})
    expect_same(run(exact_run_spec(config(), model::Policy::Fp32, recompute), ranks()), want, kTolerance, kTolerance);
}

// A difference in the last bit can move a number to the next code, which is one of thousands.
TEST_P(TensorParallel, QuantizedActivationsGiveNearlyTheSameGradients) {
  for (const model::Policy policy : {model::Policy::Agoq, model::Policy::Paper, model::Policy::Fp8}) {
    const parallel::RunSpec run_spec = exact_run_spec(config(), policy);
    expect_same(run(run_spec, ranks()), run(run_spec, 1), kTolerance, 0.02);
  }
}

TEST_P(TensorParallel, Bf16RoundsEachRanksAddend) {
  parallel::RunSpec run_spec = exact_run_spec(config(), model::Policy::Bf16);
  run_spec.precision.compute = DType::BF16;
  expect_same(run(run_spec, ranks()), run(exact_run_spec(config()), 1), 0.02, 0.05);
}

// Codes drawn for a shard are the codes of the logical tensor, in gradients and in moments.
TEST_P(TensorParallel, DrawsAreThoseOfTheLogicalTensor) {
  const ModelConfig model = config();
  const LayerSpec whole(model);
  Arena arena(Device::Cpu, size_t{64} << 20);
  Context ctx(arena, Device::Cpu, DType::F32);
  ctx.random = {.seed = 3, .step = 5, .micro_batch = 2};
  const auto rounded = [&](const model::ParamRow& row, std::vector<float> delta) {
    const ops::MainGrad grad{codec::allocate(arena, Owner::Operands, codec::Codec::Int8, row.rows, row.blocks()), 9,
                             true, false, row.global_offset()};
    ops::accumulate(ctx, grad, host_tensor(delta.data(), {row.rows, row.cols}));
    ops::AdamWState state;
    state.weight.value = arena.allocate(Owner::Operands, DType::F32, {row.rows, row.cols});
    state.grad = {grad.data};
    state.m = codec::allocate(arena, Owner::Operands, codec::Codec::Dyn8, row.rows, row.blocks());
    state.v = codec::allocate(arena, Owner::Operands, codec::Codec::Dyn8Unsigned, row.rows, row.blocks());
    state.global_offset = row.global_offset();
    const Tensor scalars = arena.allocate(Owner::Operands, DType::U8, ops::update_scalars_shape());
    const float square = 1;
    ops::decide_update(ctx, host_tensor(&square, {1}), 1e-3, {}, scalars);
    ops::adamw(ctx, {&state, 1}, 1e-3, {}, scalars);
    std::array<std::vector<float>, 3> numbers;
    const codec::Quantized* const parts[] = {&state.grad.first, &state.m, &state.v};
    for (size_t i = 0; i < 3; ++i) {
      numbers[i].resize(delta.size());
      codec::decode(ctx, *parts[i], host_tensor(numbers[i].data(), {row.rows, row.cols}));
    }
    return numbers;
  };
  std::mt19937 random(1);
  std::normal_distribution<float> gaussian;
  for (const model::ParamRow& row : whole.params) {
    if (!row.present() || row.one_dimensional()) continue;
    std::vector<float> delta(static_cast<size_t>(row.count()));
    for (float& x : delta) x = gaussian(random);
    const auto want = rounded(row, delta);
    for (int rank = 0; rank < ranks(); ++rank) {
      const LayerSpec cut(model, {ranks(), rank});
      const auto got = rounded(cut[row.param], shard_of(cut[row.param], delta));
      for (size_t i = 0; i < want.size(); ++i)
        EXPECT_EQ(got[i], shard_of(cut[row.param], want[i])) << row.name << " of rank " << rank;
    }
  }
}

// What the first layer keeps of its input, and how many bytes travel in backward.
struct SavedCodes {
  std::vector<uint8_t> codes, scales;
  uint64_t backward_bytes = 0;
};

SavedCodes keep_and_run_back(const ModelConfig& model, model::Policy policy, int ranks, int64_t tokens) {
  SavedCodes saved_codes;
  test::ThreadWorld world(ranks);
  world.run([&](comm::Transport& transport) {
    omp_set_num_threads(1);
    parallel::RunSpec run_spec = exact_run_spec(model, policy);
    run_spec.parallelism = tensor_ranks(ranks, transport.rank());
    run_spec.micro_batch_size = 1;
    run_spec.sequence_length = tokens;
    const LayerSpec spec(model, run_spec.parallelism.tensor());
    Arena arena(Device::Cpu, size_t{64} << 20);
    parallel::TrainingState state(arena, Device::Cpu, run_spec, &transport);
    const comm::ProcessGroup& group = state.groups().tensor();
    state.params().initialize(state.context(), 1);
    Batches batches(run_spec);
    const parallel::MicroBatch batch = batches.of(0);
    Context& ctx = state.context();
    ctx.positions = batch.positions;
    ctx.document_start = batch.document_start;
    const model::Model built(arena, run_spec.model, state.spec(), tokens, run_spec.recipe.recompute);
    const std::vector<model::SavedTensors> saved = {model::SavedTensors(arena, spec, run_spec.recipe, 0, tokens)};
    Scope scope(ctx);
    const Tensor x = ctx.empty({spec.own_tokens(tokens), model.hidden_size});
    built.embed(ctx, state.params(), batch.tokens, x);
    built.forward(ctx, state.params(), x, 0, 1, saved);
    const codec::Quantized x1 = ops::all_gather_tokens(ctx, saved[0][SavedTensor::X1]);
    const uint64_t before = group.bytes_sent();
    state.begin_step();
    built.backward(ctx, state.params(), x, 0, 1, saved, state.grads());
    if (transport.rank() > 0) return;
    saved_codes.codes.assign(x1.codes.raw(), x1.codes.raw() + x1.codes.bytes());
    saved_codes.scales.assign(x1.scales.raw(), x1.scales.raw() + x1.scales.bytes());
    saved_codes.backward_bytes = group.bytes_sent() - before;
  });
  return saved_codes;
}

TEST_P(TensorParallel, CodesAreThoseOfOneRank) {
  const SavedCodes one = keep_and_run_back(config(), model::Policy::Agoq, 1, 16);
  const SavedCodes many = keep_and_run_back(config(), model::Policy::Agoq, ranks(), 16);
  EXPECT_EQ(many.codes, one.codes);
  EXPECT_EQ(many.scales, one.scales);
}

// Backward gathers x1 and x2 as they were kept: 4-bit codes, scales and rstd instead of n1 and n2 in bf16. Everything
// else that it sends is the same, whatever was kept.
TEST(TensorParallelWire, CodesTravelInsteadOfBf16) {
  ModelConfig model = gqa();
  model.hidden_size = 512;
  constexpr int kRanks = 4;
  constexpr int64_t kTokens = 16;
  const double u = 2.0 * kTokens * 512 * (kRanks - 1) / kRanks;  // sent by a rank that gathers a bf16 hidden state
  const auto bytes = [&](model::Policy policy) {
    return static_cast<double>(keep_and_run_back(model, policy, kRanks, kTokens).backward_bytes);
  };
  const double saved_by_codes = bytes(model::Policy::Bf16) - bytes(model::Policy::Agoq);  // of two gathers
  EXPECT_LE(1 - saved_by_codes / 2 / u, 0.27);
  EXPECT_GE(1 - saved_by_codes / 2 / u, 0.25);
}

TEST(TensorParallelSpec, SizesThatDoNotDivideAreRefusedWithThoseThatDo) {
  const auto message = [](const ModelConfig& model, TensorShard shard) {
    return error_of([&] { const LayerSpec spec(model, shard); });
  };
  EXPECT_EQ(message(gqa(), {4, 3}), "");
  EXPECT_THAT(message(gqa(), {8, 0}), testing::HasSubstr("use 1, 2, 4"));
  EXPECT_THAT(message(gqa(), {3, 0}), testing::HasSubstr("use 1, 2, 4"));
  EXPECT_THAT(message(gqa(), {4, 4}), testing::HasSubstr("no rank 4 of 4"));
  ModelConfig odd = gqa();
  odd.ffn_size = 162;
  EXPECT_THAT(message(odd, {4, 0}), testing::HasSubstr("use 1, 2"));
}

TEST(TensorParallelSpec, TokensThatDoNotDivideAreRefused) {
  parallel::RunSpec run_spec = exact_run_spec(gqa());
  run_spec.micro_batch_size = 1;
  run_spec.sequence_length = 15;
  run_spec.parallelism = tensor_ranks(2, 0);
  Arena arena(Device::Meta, 0);
  EXPECT_THROW(parallel::TrainingState(arena, Device::Cpu, run_spec), Error);
}

}  // namespace
}  // namespace agoq
