#include "ops/cross_entropy_cpu.h"

#include <cmath>

#include "ops/cpu.h"

namespace agoq::ops::cpu {
namespace {

float largest(const float* x, int64_t n) {
  float most = x[0];
#pragma omp simd reduction(max : most)
  for (int64_t i = 0; i < n; ++i) most = std::max(most, x[i]);
  return most;
}

}  // namespace

void cross_entropy(const Tensor& logits, const Targets& targets, const Tensor& nll) {
  const int64_t vocabulary = logits.cols();
  const int32_t* ids = targets.tokens.as<int32_t>();
  const float* weights = targets.weights.as<float>();
  float* losses = nll.as<float>();
  parallel_for(logits.shape[0], [&](int64_t t, int) {
    losses[t] = 0;
    if (weights[t] == 0) return;
    const float* x = logits.as<float>() + t * vocabulary;
    const float most = largest(x, vocabulary);
    const float total = sum(vocabulary, [&](int64_t i) { return fast_exp(x[i] - most); });
    losses[t] = most - x[ids[t]] + std::log(total);
  });
}

void cross_entropy_backward(const Tensor& logits, const Targets& targets, float scale, bool round, const Tensor& nll) {
  const int64_t vocabulary = logits.cols();
  const int32_t* ids = targets.tokens.as<int32_t>();
  const float* weights = targets.weights.as<float>();
  float* losses = nll.as<float>();
  parallel_for(logits.shape[0], [&](int64_t t, int) {
    float* x = logits.as<float>() + t * vocabulary;
    if (weights[t] == 0) {
      losses[t] = 0;
      std::fill_n(x, vocabulary, 0.0f);
      return;
    }
    const float most = largest(x, vocabulary), target = x[ids[t]];
    const float total = sum(vocabulary, [&](int64_t i) { return x[i] = fast_exp(x[i] - most); });
    losses[t] = most - target + std::log(total);
    const float factor = scale * weights[t], share = factor / total;
    for (int64_t i = 0; i < vocabulary; ++i) x[i] *= share;
    x[ids[t]] -= factor;
    if (!round) return;
    for (int64_t i = 0; i < vocabulary; ++i) x[i] = to_float(to_bf16(x[i]));
  });
}

}  // namespace agoq::ops::cpu
