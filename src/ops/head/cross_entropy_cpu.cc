#include "ops/head/cross_entropy_cpu.h"

#include <cmath>

#include "ops/cpu.h"
#include "ops/head/row_sums.h"

namespace agoq::ops::cpu {
namespace {

float largest(const float* x, int64_t n) {
  float most = x[0];
#pragma omp simd reduction(max : most)
  for (int64_t i = 0; i < n; ++i) most = std::max(most, x[i]);
  return most;
}

// `target` is its place in the row; x becomes exp(x - most) if asked.
RowSums sum_row(float* x, int64_t n, int64_t target, bool exponentiate) {
  RowSums s{largest(x, n), 0, target >= 0 && target < n ? x[target] : 0};
  s.total = exponentiate ? sum(n, [&](int64_t i) { return x[i] = fast_exp(x[i] - s.most); })
                         : sum(n, [&](int64_t i) { return fast_exp(x[i] - s.most); });
  return s;
}

float loss_of(const RowSums& row) {
  return row.most - row.target + std::log(row.total);
}

// Parts in rank order, `stride` apart -> the row's.
RowSums whole_row(const RowSums* parts, int64_t ranks, int64_t stride) {
  RowSums whole = parts[0];
  for (int64_t r = 1; r < ranks; ++r) whole.most = std::max(whole.most, parts[r * stride].most);
  whole.total = whole.target = 0;
  for (int64_t r = 0; r < ranks; ++r) {
    const RowSums& part = parts[r * stride];
    whole.total += part.total * fast_exp(part.most - whole.most);
    whole.target += part.target;
  }
  return whole;
}

// Exponentials become the gradient factor · (softmax - onehot); share · exp = factor · softmax.
void gradient_row(float* x, int64_t n, float share, float factor, int64_t target, bool round) {
  for (int64_t i = 0; i < n; ++i) x[i] *= share;
  if (target >= 0 && target < n) x[target] -= factor;
  if (!round) return;
  for (int64_t i = 0; i < n; ++i) x[i] = to_float(to_bf16(x[i]));
}

// body(t, row of the logits, place of the target in it) for rows that count, otherwise without(t, row).
template <class Body, class Without>
void for_rows(const Tensor& logits, const Targets& targets, Body&& body, Without&& without) {
  const int64_t vocabulary = logits.cols();
  const int32_t* ids = targets.tokens.as<int32_t>();
  const float* weights = targets.weights.as<float>();
  float* const rows = logits.as<float>();
  parallel_for(logits.shape[0], [&](int64_t t, int) {
    if (weights[t] == 0)
      without(t, rows + t * vocabulary);
    else
      body(t, rows + t * vocabulary, ids[t] - targets.first);
  });
}

}  // namespace

void cross_entropy(const Tensor& logits, const Targets& targets, const Tensor& nll) {
  float* losses = nll.as<float>();
  for_rows(
      logits, targets,
      [&](int64_t t, float* x, int64_t target) { losses[t] = loss_of(sum_row(x, logits.cols(), target, false)); },
      [&](int64_t t, float*) { losses[t] = 0; });
}

void cross_entropy_backward(const Tensor& logits, const Targets& targets, float scale, bool round, const Tensor& nll) {
  const int64_t vocabulary = logits.cols();
  const float* weights = targets.weights.as<float>();
  float* losses = nll.as<float>();
  for_rows(
      logits, targets,
      [&](int64_t t, float* x, int64_t target) {
        const RowSums row = sum_row(x, vocabulary, target, true);
        losses[t] = loss_of(row);
        const float factor = scale * weights[t];
        gradient_row(x, vocabulary, factor / row.total, factor, target, round);
      },
      [&](int64_t t, float* x) {
        losses[t] = 0;
        std::fill_n(x, vocabulary, 0.0f);
      });
}

void sum_exponentials(const Tensor& logits, const Targets& targets, bool exponentiate, const Tensor& sums) {
  auto* const rows = reinterpret_cast<RowSums*>(sums.as<float>());
  for_rows(
      logits, targets,
      [&](int64_t t, float* x, int64_t target) { rows[t] = sum_row(x, logits.cols(), target, exponentiate); },
      [&](int64_t t, float*) { rows[t] = {}; });
}

void cross_entropy_of_sums(const Tensor& sums, const Targets& targets, const Tensor& nll) {
  const auto* const parts = reinterpret_cast<const RowSums*>(sums.as<float>());
  const float* weights = targets.weights.as<float>();
  float* losses = nll.as<float>();
  const int64_t ranks = sums.shape[0], rows = sums.shape[1];
  for (int64_t t = 0; t < rows; ++t) losses[t] = weights[t] == 0 ? 0 : loss_of(whole_row(parts + t, ranks, rows));
}

void cross_entropy_gradient(const Tensor& sums, int rank, const Targets& targets, float scale, bool round,
                            const Tensor& exponentials) {
  const auto* const parts = reinterpret_cast<const RowSums*>(sums.as<float>());
  const float* weights = targets.weights.as<float>();
  const int64_t ranks = sums.shape[0], rows = sums.shape[1], vocabulary = exponentials.cols();
  for_rows(
      exponentials, targets,
      [&](int64_t t, float* x, int64_t target) {
        const RowSums whole = whole_row(parts + t, ranks, rows);
        const float own = fast_exp(parts[rank * rows + t].most - whole.most);  // x is relative to the own largest
        const float factor = scale * weights[t];
        gradient_row(x, vocabulary, factor / whole.total * own, factor, target, round);
      },
      [&](int64_t, float* x) { std::fill_n(x, vocabulary, 0.0f); });
}

}  // namespace agoq::ops::cpu
