#include "codec/tile_schedulers.cuh"
#include "ops/by_type.h"
#include "ops/linear/fp8_codes.cuh"
#include "ops/linear/fp8_cuda.h"
#include "ops/mlp/swiglu_cuda.h"

namespace agoq::ops::cuda {
namespace {

using namespace codec::cuda;
using codec::Codec;
using codec::Quantized;
using codec::RowBlocks;

// 1 / (1 + exp(-x)) by the approximations of the special function unit, each within 2 units in the last place of fp32.
__device__ inline float sigmoid(float x) {
  float e, y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(x * -0x1.715476p+0f));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(1.0f + e));
  return y;
}

// The same eight columns of gate and of up.
template <class Tile>
struct LaneTiles {
  Tile gate, up;
};
template <class F, class Count = int>
__device__ inline LaneTiles<RowTile<BlockShare<Count>>> places(int block, int lane, const QuantRows& gate_up) {
  const int half = gate_up.row.blocks / 2;
  const auto gate = gate_up.row.place<F, Count>(block < half ? block : gate_up.row.blocks, lane);
  auto up = gate;
  up.block += half;
  up.col += gate_up.row.cols / 2;
  up.offset += static_cast<int>(gate_up.row_bytes / 2);
  return {gate, up};
}

template <class T>
struct Forward {
  const T* gate_up;        // [T, 2F]
  T* h;                    // [T, F]
  QuantRows kept_gate_up;  // no codes: not kept
  QuantRows kept_h;        // its blocks are those of gate
  StripScheduler strips;
};

template <class F, class T>
__global__ void __launch_bounds__(StripScheduler::kThreads) forward(const __grid_constant__ PdlArgs<Forward<T>> given) {
  const Forward<T>& f = given.wait();
  const Strip strip = f.strips.mine();
  const auto at = places<F>(strip.block, strip.lane, f.kept_gate_up);
  const int64_t width = f.kept_gate_up.row.cols / 2;
  struct SwigluInputs {
    Fetched8<T> gate, up;
  };
  const auto fetch_row = [&](int row) {
    const T* from = f.gate_up + row * (2 * width);
    return SwigluInputs{fetch8(from + at.gate.col, at.gate.n), fetch8(from + at.up.col, at.gate.n)};
  };
  SwigluInputs next = fetch_row(strip.begin);
#pragma unroll 1
  for (int row = strip.begin; row < strip.end; ++row) {
    const SwigluInputs now = next;
    if (row + 1 < strip.end) next = fetch_row(row + 1);
    FloatVec8 both[2], h;
    auto& [gate, up] = both;
    unpack8(now.gate, gate);
    unpack8(now.up, up);
#pragma unroll
    for (int i = 0; i < kGroup; ++i) h[i] = gate[i] * sigmoid(gate[i]) * up[i];
    store8(f.h + row * width + at.gate.col, at.gate.n, h);
    if (f.kept_gate_up.codes) encode_two<F>(f.kept_gate_up.at(row), {at.gate, at.up}, both);
    if (f.kept_h.codes) {
#pragma unroll
      for (int i = 0; i < kGroup; ++i) h[i] = to_float(from_float<T>(h[i]));
      encode<F>(f.kept_h.at(row), at.gate, h, codec::Nearest{});
    }
  }
}

template <class T>
struct Backward {
  const T* dh;  // [T, F]
  QuantRows gate_up;
  T* d_gate_up;  // [T, 2F]
  T* h;          // [T, F], or null if it need not be made again
  StripScheduler strips;
};

// gate and up become their gradients; h is made again. silu(x) = x·s(x), silu'(x) = s·(1 + x·(1 - s)).
__device__ inline void differentiate(const FloatVec8& dh, FloatVec8& gate, FloatVec8& up, FloatVec8& h) {
#pragma unroll
  for (int i = 0; i < kGroup; ++i) {
    const float s = sigmoid(gate[i]), silu = gate[i] * s;
    h[i] = silu * up[i];
    gate[i] = dh[i] * up[i] * (s * fmaf(gate[i], 1.0f - s, 1.0f));
    up[i] = dh[i] * silu;
  }
}

template <class F, class T>
__global__ void __launch_bounds__(StripScheduler::kThreads)
    backward(const __grid_constant__ PdlArgs<Backward<T>> given) {
  const Backward<T>& b = given.wait();
  const Strip strip = b.strips.mine();
  const auto at = places<F>(strip.block, strip.lane, b.gate_up);
  const int64_t width = b.gate_up.row.cols / 2;
  struct SwigluInputs {
    Fetched8<T> d;
    Fetched<F> gate, up;
  };
  const auto fetch_row = [&](int row) {
    return SwigluInputs{fetch8(b.dh + row * width + at.gate.col, at.gate.n), fetch<F>(b.gate_up.at(row), at.gate),
                        fetch<F>(b.gate_up.at(row), at.up)};
  };
  SwigluInputs next = fetch_row(strip.begin);
#pragma unroll 1
  for (int row = strip.begin; row < strip.end; ++row) {
    const SwigluInputs now = next;
    if (row + 1 < strip.end) next = fetch_row(row + 1);
    FloatVec8 gate, up, d, h;
    unpack8(now.d, d);
    decode<F>(now.gate, gate);
    decode<F>(now.up, up);
    differentiate(d, gate, up, h);
    T* to = b.d_gate_up + row * (2 * width);
    store8(to + at.gate.col, at.gate.n, gate);
    store8(to + at.up.col, at.gate.n, up);
    if (b.h) store8(b.h + row * width + at.gate.col, at.gate.n, h);
  }
}

// --- in 8-bit floats: a CTA has a row, whose numbers wait in shared memory until its largest is known --------------

constexpr int kRowThreads = 512, kRowCtas = 2;  // at most of a CTA; CTAs of a multiprocessor, at least

// Blocks that a CTA has at a time. All turns of its threads are as full as they can be.
__device__ inline int row_blocks() {
  return static_cast<int>(blockDim.x) / kLanes;
}
dim3 row_threads(int64_t blocks) {
  constexpr int kMost = kRowThreads / kLanes, kWarpBlocks = 2;
  const int all = static_cast<int>(blocks), turns = ceil_div(all, kMost);
  return {static_cast<unsigned>(ceil_div(ceil_div(all, turns), kWarpBlocks) * kWarpBlocks * kLanes)};
}

using EvenTiles = LaneTiles<EvenLaneTile>;
template <class F>
__device__ inline EvenTiles even_places(int block, int lane, const QuantRows& gate_up) {
  return places<F, AllOrNone>(block, lane, gate_up);
}

// A thread's own numbers of a block of the row.
__device__ inline uint4& held_numbers(int block, int lane) {
  extern __shared__ uint4 numbers[];
  return numbers[block * kLanes + lane];
}
// x in bf16 to there; raises the magnitudes `most`.
__device__ inline void hold(int block, int lane, const FloatVec8& x, uint32_t& most) {
  const uint4 words = bf16_words(x);
  held_numbers(block, lane) = words;
  most = larger_magnitudes(most, words);
}

// Calls fn(block, what fetch(block) gave) for the thread's blocks of the row, all of a warp together, and fetches for
// the next one before.
template <class Fetch, class Fn>
__device__ inline void each_row_block(int blocks, Fetch&& fetch, Fn&& fn) {
  const int first = static_cast<int>(threadIdx.x) / kLanes, step = row_blocks();
  auto next = fetch(first);
#pragma unroll 1
  for (int block = first; block - first < blocks; block += step) {
    const auto now = next;
    if (block + step - first < blocks) next = fetch(block + step);
    fn(block, now);
  }
}

struct ForwardRows {
  const Bf16* gate_up;     // [T, 2F]
  QuantRows kept_gate_up;  // no codes: not kept
  Fp8Rows h;
};

template <class F>
__global__ void __launch_bounds__(kRowThreads, kRowCtas)
    forward_rows(const __grid_constant__ PdlArgs<ForwardRows> given) {
  const ForwardRows& f = given.wait();
  const int64_t row = blockIdx.x;
  const int lane = static_cast<int>(threadIdx.x) % kLanes, blocks = f.kept_gate_up.row.blocks / 2;
  const Bf16* from = f.gate_up + row * f.kept_gate_up.row.cols;
  const QuantPtr keep = f.kept_gate_up.at(row);
  struct RowInputs {
    EvenTiles at;
    uint4 gate, up;
  };
  uint32_t most = 0;
  each_row_block(
      blocks,
      [&](int block) {
        const EvenTiles at = even_places<F>(block, lane, f.kept_gate_up);
        return RowInputs{at, fetch8(from + at.gate.col, at.gate.n), fetch8(from + at.up.col, at.gate.n)};
      },
      [&](int block, const RowInputs& now) {
        FloatVec8 both[2], h;
        auto& [gate, up] = both;
        unpack8(now.gate, gate);
        unpack8(now.up, up);
#pragma unroll
        for (int i = 0; i < kGroup; ++i) h[i] = gate[i] * sigmoid(gate[i]) * up[i];
        if (f.kept_gate_up.codes) encode_two<F>(keep, {now.at.gate, now.at.up}, both);
        if (block < blocks) hold(block, lane, h, most);
      });
  CtaMax cta_max;
  const float inv = f.h.open(row, cta_max(magnitude_of(most)), threadIdx.x == 0);
  for (int block = static_cast<int>(threadIdx.x) / kLanes; block < blocks; block += row_blocks()) {
    const auto p = f.kept_gate_up.row.place<F, AllOrNone>(block, lane);
    FloatVec8 h;
    unpack8(held_numbers(block, lane), h);
    f.h.store8(row, p.col, p.n, h, inv);
  }
}

struct BackwardRows {
  const Bf16* dh;  // [T, F]
  QuantRows gate_up;
  Fp8Rows d_gate_up, h;
};

template <class F>
__global__ void __launch_bounds__(kRowThreads, kRowCtas)
    backward_rows(const __grid_constant__ PdlArgs<BackwardRows> given) {
  const BackwardRows& b = given.wait();
  const int64_t row = blockIdx.x;
  const int lane = static_cast<int>(threadIdx.x) % kLanes, blocks = b.gate_up.row.blocks / 2;
  const Bf16* dh = b.dh + row * (b.gate_up.row.cols / 2);
  const QuantPtr kept = b.gate_up.at(row);
  struct RowInputs {
    uint4 d;
    Fetched<F> gate, up;
  };
  uint32_t most = 0, most_h = 0;
  each_row_block(
      blocks,
      [&](int block) {
        const EvenTiles at = even_places<F>(block, lane, b.gate_up);
        return RowInputs{fetch8(dh + at.gate.col, at.gate.n), fetch<F>(kept, at.gate), fetch<F>(kept, at.up)};
      },
      [&](int block, const RowInputs& now) {
        FloatVec8 gate, up, d, h;
        unpack8(now.d, d);
        decode<F>(now.gate, gate);
        decode<F>(now.up, up);
        differentiate(d, gate, up, h);
        if (block >= blocks) return;
        hold(block, lane, gate, most);
        hold(block + blocks, lane, up, most);
        hold(block + 2 * blocks, lane, h, most_h);
      });
  CtaMax cta_max;
  const float inv = b.d_gate_up.open(row, cta_max(magnitude_of(most)), threadIdx.x == 0);
  const float h_inv = b.h.open(row, cta_max(magnitude_of(most_h)), threadIdx.x == 0);
  for (int block = static_cast<int>(threadIdx.x) / kLanes; block < blocks; block += row_blocks()) {
    const EvenTiles at = even_places<F>(block, lane, b.gate_up);
    FloatVec8 gate, up, h;
    unpack8(held_numbers(block, lane), gate);
    unpack8(held_numbers(block + blocks, lane), up);
    unpack8(held_numbers(block + 2 * blocks, lane), h);
    b.d_gate_up.store8(row, at.gate.col, at.gate.n, gate, inv);
    b.d_gate_up.store8(row, at.up.col, at.gate.n, up, inv);
    b.h.store8(row, at.gate.col, at.gate.n, h, h_inv);
  }
}

void check_segments(const Quantized& gate_up) {
  require(gate_up.row.cols / 2 % gate_up.row.segment == 0,
          "swiglu: gate and up are kept in segments of {}, which cross the border between them at column {}",
          gate_up.row.segment, gate_up.row.cols / 2);
}

void check_even_rows(const Quantized& gate_up, const Tensor& numbers) {
  check_segments(gate_up);
  require(gate_up.row.even() && aligned<uint4>(numbers.data) && QuantRows(gate_up).aligned(),
          "swiglu: rows in segments of {} are not written as 8-bit floats at once, or memory is not aligned",
          gate_up.row.segment);
}

// Down the blocks of gate.
StripScheduler strips_of(const Quantized& gate_up, int64_t rows) {
  return {rows, gate_up.row.blocks() / 2};
}

}  // namespace

void swiglu(const Context& ctx, const Tensor& gate_up, const Quantized& keep_gate_up, const Quantized& keep_h,
            const Tensor& h) {
  const int64_t width = h.cols();
  Quantized kept = keep_gate_up;
  if (!kept.kept()) kept.row = RowBlocks(2 * width, width);
  check_segments(kept);
  const bool fused_h = keep_h.kept() && keep_h.codec == kept.codec && keep_h.row == RowBlocks(width, kept.row.segment);
  const StripScheduler strips = strips_of(kept, h.rows());
  codec::dispatch(kept.kept() ? kept.codec : Codec::Fp32, [&]<class F>() {
    by_type(h.dtype, [&]<class T>() {
      agoq::cuda::launch(
          ctx, forward<F, T>, strips.grid(), StripScheduler::kThreads,
          Forward<T>{gate_up.as<T>(), h.as<T>(), QuantRows(kept), fused_h ? QuantRows(keep_h) : QuantRows(), strips});
    });
  });
  if (keep_h.kept() && !fused_h) codec::encode(ctx, h, keep_h);
}

void swiglu_backward(const Context& ctx, const Tensor& dh, const Quantized& kept_gate_up, const Quantized& kept_h,
                     const SwigluGradients& out) {
  check_segments(kept_gate_up);
  codec::dispatch(kept_gate_up.codec, [&]<class F>() {
    by_type(dh.dtype, [&]<class T>() {
      const StripScheduler strips = strips_of(kept_gate_up, dh.rows());
      agoq::cuda::launch(ctx, backward<F, T>, strips.grid(), StripScheduler::kThreads,
                         Backward<T>{dh.as<T>(), QuantRows(kept_gate_up), out.d_gate_up.as<T>(),
                                     kept_h.kept() ? nullptr : out.h.as<T>(), strips});
    });
  });
  if (kept_h.kept()) codec::decode(ctx, kept_h, out.h);
}

void swiglu_rows(const Context& ctx, const Tensor& gate_up, const Quantized& keep_gate_up, const Operand& h) {
  Quantized kept = keep_gate_up;
  if (!kept.kept()) kept.row = RowBlocks(gate_up.cols(), gate_up.cols() / 2);
  check_even_rows(kept, gate_up);
  clear_max_scale(ctx, h);
  const auto held = static_cast<size_t>(kept.row.blocks() / 2) * kLanes * sizeof(uint4);
  codec::dispatch(kept.kept() ? kept.codec : Codec::Fp32, [&]<class F>() {
    agoq::cuda::launch_with(ctx, forward_rows<F>, dim3(static_cast<unsigned>(gate_up.rows())),
                            row_threads(kept.row.blocks() / 2), held,
                            ForwardRows{gate_up.as<Bf16>(), QuantRows(kept), Fp8Rows(h)});
  });
}

void swiglu_backward_rows(const Context& ctx, const Tensor& dh, const Quantized& kept_gate_up, const Operand& d_gate_up,
                          const Operand& h) {
  check_even_rows(kept_gate_up, dh);
  clear_max_scale(ctx, d_gate_up);
  clear_max_scale(ctx, h);
  const auto held = static_cast<size_t>(kept_gate_up.row.blocks() / 2 * kHeldInBackward) * kLanes * sizeof(uint4);
  codec::dispatch(kept_gate_up.codec, [&]<class F>() {
    agoq::cuda::launch_with(ctx, backward_rows<F>, dim3(static_cast<unsigned>(dh.rows())),
                            row_threads(kept_gate_up.row.blocks() / 2), held,
                            BackwardRows{dh.as<Bf16>(), QuantRows(kept_gate_up), Fp8Rows(d_gate_up), Fp8Rows(h)});
  });
}

}  // namespace agoq::ops::cuda
