#include "parallel/optimizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "parallel/tiny_state.h"

namespace agoq::parallel {
namespace {

using test::TinyState;

RunSpec fp32_run_spec() {
  RunSpec run_spec = test::tiny_run_spec();
  run_spec.precision.main_grads = run_spec.precision.exp_avg = run_spec.precision.exp_avg_sq = codec::Codec::Fp32;
  return run_spec;
}

// Weights, moments and all, byte by byte.
std::vector<uint8_t> bytes_of(TinyState& state) {
  std::vector<uint8_t> bytes;
  for (const StoredTensor& tensor : state->named_tensors())
    for (const StoredPiece& piece : tensor.pieces)
      bytes.insert(bytes.end(), piece.data.raw(), piece.data.raw() + piece.data.bytes());
  return bytes;
}

std::string name_of(TinyState& state, const model::ParamId& id) {
  return model::logical_name(state->spec(), id);
}

// A finite gradient everywhere but in `id`, as damage looks in each format.
void damage(TinyState& state, const model::ParamId& id, float value) {
  const codec::Quantized& grad = state->grads().data(id);
  if (grad.scales)
    grad.row_scales(grad.rows - 1)[0] = Bf16{0x7fc0};  // what a block with NaN or infinity gets
  else if (grad.codec == codec::Codec::Fp32)
    grad.plain().as<float>()[grad.plain().count() - 1] = value;
  else
    grad.plain().as<Bf16>()[0] = to_bf16(value);
}

TEST(Optimizer, ANonFiniteGradientSkipsTheStepAndIsNamed) {
  const float nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();
  for (const codec::Codec codec : {codec::Codec::Int8, codec::Codec::Fp8, codec::Codec::Bf16, codec::Codec::Fp32})
    for (const float value : {nan, infinity, -infinity}) {
      RunSpec run_spec = test::tiny_run_spec();
      run_spec.precision.main_grads = codec;
      TinyState state(run_spec);
      state->params().initialize(state->context(), 1);
      state.step();
      const std::vector<uint8_t> before = bytes_of(state);
      const std::vector<model::ParamId>& ids = state->params().ids();
      for (size_t i = 0; i < ids.size(); i += 5) {
        const model::ParamId id = ids[i];
        state.gradients();
        damage(state, id, value);
        const UpdateResult result = state.update(1e-2);
        EXPECT_TRUE(result.skipped);
        EXPECT_EQ(result.non_finite, name_of(state, id));
        EXPECT_FALSE(std::isfinite(result.grad_norm));
      }
      EXPECT_EQ(state->optimizer().updates(state->context()), 1) << "skipped steps are no updates";
      EXPECT_EQ(bytes_of(state), before);
      state.step(1e-2);
      EXPECT_EQ(state->optimizer().updates(state->context()), 2);
      EXPECT_NE(bytes_of(state), before);
    }
}

TEST(Optimizer, OfSeveralTheFirstTensorIsNamed) {
  TinyState state(fp32_run_spec());
  state->params().initialize(state->context(), 1);
  state.gradients();
  const std::vector<model::ParamId>& ids = state->params().ids();
  for (const size_t i : {ids.size() - 1, size_t{3}, size_t{5}}) damage(state, ids[i], NAN);
  EXPECT_EQ(state.update(1e-2).non_finite, name_of(state, ids[3]));
}

struct Numbers {
  std::vector<double> weights, grads, m, v;
};

Numbers numbers_of(TinyState& state) {
  Numbers n;
  const std::vector<float> weights = state.weights();
  n.weights.assign(weights.begin(), weights.end());
  const auto append = [](std::vector<double>& to, const codec::Quantized& from) {
    const Tensor plain = from.plain();
    to.insert(to.end(), plain.as<float>(), plain.as<float>() + plain.count());
  };
  for (const model::ParamId& id : state->params().ids()) {
    const ops::AdamWState& s = *state->optimizer().state(id);
    append(n.grads, s.grad.first);
    append(n.m, s.m);
    append(n.v, s.v);
  }
  return n;
}

double norm_of(const std::vector<double>& values) {
  double sum = 0;
  for (const double x : values) sum += x * x;
  return std::sqrt(sum);
}

// |got - want| within `tolerance` of the largest |want|.
void expect_near(const std::vector<double>& got, const std::vector<double>& want, double tolerance) {
  ASSERT_EQ(got.size(), want.size());
  double largest = 0, error = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    largest = std::max(largest, std::abs(want[i]));
    error = std::max(error, std::abs(got[i] - want[i]));
  }
  EXPECT_LE(error, tolerance * largest);
}

// One AdamW step of all parameters as one long vector, in double, clipped as torch.nn.utils.clip_grad_norm_ does it.
// An epsilon of the size of the gradients, so that their scale shows in the weights.
TEST(Optimizer, ClippingEqualsADoubleComputation) {
  for (const double share : {0.5, 0.01, 2.0, 0.0}) {  // of the norm; 2: too large to clip, 0: no clipping
    TinyState state(fp32_run_spec());
    state->params().initialize(state->context(), 1);
    state.gradients();
    const Numbers before = numbers_of(state);
    const double norm = norm_of(before.grads), clip = share * norm, lr = 1e-2;
    const AdamWConfig config{0.9, 0.95, 1e-2, 0.0, clip};

    const UpdateResult result = state.update(lr, config);
    EXPECT_NEAR(result.grad_norm, norm, 1e-6 * norm) << "of the gradients as they came";
    const double scale = clip > 0 ? std::min(1.0, clip / (norm + 1e-6)) : 1.0;
    Numbers want = before;
    for (size_t i = 0; i < want.grads.size(); ++i) {
      const double g = before.grads[i] * scale;
      want.m[i] = (1 - config.beta1) * g;
      want.v[i] = (1 - config.beta2) * g * g;
      want.weights[i] -= lr * g / (std::abs(g) + config.eps);
    }
    const Numbers after = numbers_of(state);
    expect_near(after.m, want.m, 1e-6);
    expect_near(after.v, want.v, 1e-6);
    std::vector<double> change(after.weights.size()), wanted_change(after.weights.size());
    for (size_t i = 0; i < change.size(); ++i) {
      change[i] = after.weights[i] - before.weights[i];
      wanted_change[i] = want.weights[i] - before.weights[i];
    }
    const double last_digit = 6e-8 / (lr * scale);  // of weights around 1, beside changes of at most lr
    expect_near(change, wanted_change, 1e-5 + last_digit);
    if (share == 0.5) {
      EXPECT_NEAR(norm_of(after.m), (1 - config.beta1) * clip, 1e-5 * clip);
    }
  }
}

// After many updates the moments have no bias to correct: a first gradient then moves a weight by less than lr.
TEST(Optimizer, CorrectsForTheUpdatesThatItIsToldOf) {
  TinyState state(fp32_run_spec());
  state->params().initialize(state->context(), 1);
  state.gradients();
  const Numbers before = numbers_of(state);
  const double lr = 1e-2;
  const AdamWConfig config{0.9, 0.99, 1e-12, 0.0, 0.0};
  state->optimizer().set_updates(state->context(), 100000);
  state.update(lr, config);
  EXPECT_EQ(state->optimizer().updates(state->context()), 100001);
  std::vector<double> want = before.weights;
  for (size_t i = 0; i < want.size(); ++i) {
    const double g = before.grads[i];
    want[i] -= lr * (1 - config.beta1) * g / (std::sqrt(1 - config.beta2) * std::abs(g) + config.eps);
  }
  expect_near(numbers_of(state).weights, want, 1e-6);
}

}  // namespace
}  // namespace agoq::parallel
