#include "ops/optimizer/adamw_cpu.h"

#include <cmath>
#include <numeric>
#include <vector>

#include "ops/cpu.h"

namespace agoq::ops::cpu {
namespace {

using codec::Codec;
using codec::kBlock;

constexpr int64_t kSerialBlocks = 64;  // fewer are done before the threads have woken up

// A block of each operand, in fp32; m and v times beta1 and beta2.
struct BlockState {
  alignas(64) float g[kBlock], m[kBlock], v[kBlock], p[kBlock];
};

// Whole blocks always, so that the loop has a fixed length; what lies behind a short block is not stored.
void update(const AdamWFactors& f, const UpdateScalars& s, float decay, BlockState& b) {
  const float of_gradient = f.h * s.gradient_scale;
  for (int i = 0; i < kBlock; ++i) {
    const float h = b.g[i] * of_gradient;
    b.m[i] = std::fma(f.m_part, h, b.m[i]);
    b.v[i] = std::fma(h, h, b.v[i]);
    const float denominator = std::sqrt(b.v[i]) / s.root_correction + f.eps;
    b.p[i] = b.p[i] * decay - s.step_size * (b.m[i] / denominator);
  }
}

// n elements of the weight from element `first` on.
void load(const Weight& w, int64_t first, int64_t n, float* p) {
  if (w.correction) {
    const auto* high = static_cast<const Bf16*>(w.value.data) + first;
    const auto* low = static_cast<const int16_t*>(w.correction.data) + first;
    for (int64_t i = 0; i < n; ++i) p[i] = join_fp32(high[i], low[i]);
  } else {
    const Tensor& exact = w.master ? w.master : w.value;
    std::memcpy(p, static_cast<const float*>(exact.data) + first, static_cast<size_t>(n) * sizeof(float));
  }
}

void store(const Weight& w, int64_t first, int64_t n, const float* p) {
  auto* value = static_cast<Bf16*>(w.value.data) + first;
  if (w.correction) {
    auto* low = static_cast<int16_t*>(w.correction.data) + first;
    for (int64_t i = 0; i < n; ++i) split_fp32(p[i], value[i], low[i]);
    return;
  }
  const Tensor& exact = w.master ? w.master : w.value;
  std::memcpy(static_cast<float*>(exact.data) + first, p, static_cast<size_t>(n) * sizeof(float));
  if (!w.master) return;
  for (int64_t i = 0; i < n; ++i) {  // the same bf16 as in split form, so that both forms train alike
    int16_t low;
    split_fp32(p[i], value[i], low);
  }
}

codec::Rounding rounding(const codec::Quantized& moment, RandomKey key, RngStream stream, const AdamWState& state) {
  if (moment.codec == Codec::Fp32) return codec::Rounding::nearest();
  key.stream = stream;
  key.micro_batch = 0;
  key.tensor = state.tensor;
  return codec::Rounding::random(key, state.global_offset);
}

}  // namespace

void decide_update(const Tensor& squares, double lr, const AdamWConfig& config, UpdateScalars& scalars) {
  const int64_t columns = squares.cols();
  std::vector<double> of_column(static_cast<size_t>(columns));
  uint32_t non_finite = 0;
  for (int64_t i = 0; i < squares.count(); ++i) {  // rank by rank
    const float square = squares.as<float>()[i];
    of_column[static_cast<size_t>(i % columns)] += square;
    if (!std::isfinite(square) && non_finite == 0) non_finite = static_cast<uint32_t>(i) + 1;
  }
  decide(scalars, std::accumulate(of_column.begin(), of_column.end(), 0.0), non_finite, lr, config);
}

void adamw(const RandomKey& key, const AdamWState& state, const AdamWFactors& factors, const UpdateScalars& scalars) {
  const codec::RowBlocks& row = state.m.row;
  const codec::Rounding m_rounding = rounding(state.m, key, RngStream::FirstMoment, state);
  const codec::Rounding v_rounding = rounding(state.v, key, RngStream::SecondMoment, state);
  const float decay = state.decay ? factors.decay : 1.0f;
  const bool v_is_root = state.v.codec == Codec::Dyn8Unsigned;
  const int64_t blocks = row.blocks(), count = state.m.rows * blocks;
#pragma omp parallel for schedule(static) if (count > kSerialBlocks)
  for (int64_t i = 0; i < count; ++i) {
    const int64_t r = i / blocks, block = i % blocks, n = row.size(block), first = r * row.cols + row.begin(block);
    BlockState b = {};
    decode_block(state.grad, r, block, b.g);
    codec::decode_block(state.m, r, block, b.m, factors.beta1);
    codec::decode_block(state.v, r, block, b.v, v_is_root ? factors.root_beta2 : factors.beta2);
    load(state.weight, first, n, b.p);
    if (v_is_root)
      for (float& v : b.v) v *= v;
    update(factors, scalars, decay, b);
    store(state.weight, first, n, b.p);
    codec::encode_block(state.m, r, block, b.m, m_rounding);
    if (v_is_root)
      for (float& v : b.v) v = std::sqrt(v);
    codec::encode_block(state.v, r, block, b.v, v_rounding);
  }
}

}  // namespace agoq::ops::cpu
