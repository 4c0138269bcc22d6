#include "codec/tile_schedulers.cuh"
#include "ops/by_type.h"
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
struct LaneTiles {
  LaneTile gate, up;
};
template <class F>
__device__ inline LaneTiles places(const Strip& strip, const QuantRows& gate_up) {
  const int half = gate_up.row.blocks / 2;
  const LaneTile gate = gate_up.row.place<F>(strip.block < half ? strip.block : gate_up.row.blocks, strip.lane);
  LaneTile up = gate;
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
  const LaneTiles at = places<F>(strip, f.kept_gate_up);
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

// silu(x) = x·s(x), silu'(x) = s·(1 + x·(1 - s)).
template <class F, class T>
__global__ void __launch_bounds__(StripScheduler::kThreads)
    backward(const __grid_constant__ PdlArgs<Backward<T>> given) {
  const Backward<T>& b = given.wait();
  const Strip strip = b.strips.mine();
  const LaneTiles at = places<F>(strip, b.gate_up);
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
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      const float s = sigmoid(gate[i]), silu = gate[i] * s;
      h[i] = silu * up[i];
      gate[i] = d[i] * up[i] * (s * fmaf(gate[i], 1.0f - s, 1.0f));
      up[i] = d[i] * silu;
    }
    T* to = b.d_gate_up + row * (2 * width);
    store8(to + at.gate.col, at.gate.n, gate);
    store8(to + at.up.col, at.gate.n, up);
    if (b.h) store8(b.h + row * width + at.gate.col, at.gate.n, h);
  }
}

void check_segments(const Quantized& gate_up) {
  require(gate_up.row.cols / 2 % gate_up.row.segment == 0,
          "swiglu: gate and up are kept in segments of {}, which cross the border between them at column {}",
          gate_up.row.segment, gate_up.row.cols / 2);
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

}  // namespace agoq::ops::cuda
