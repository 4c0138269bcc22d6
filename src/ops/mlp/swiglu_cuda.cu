#include <algorithm>

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

// Of a multiprocessor: its threads, which leaves each 72 registers, and its shared memory, without what CTAs have
// beside their rows. While a CTA waits for its largest the others work, so it has as many as its memory can hold.
constexpr int kRowThreads = 896, kLeastThreads = 128;
constexpr size_t kRowMemory = size_t{216} << 10;

// Blocks that a CTA has at a time. All turns of its threads are as full as they can be.
__device__ inline int row_blocks() {
  return static_cast<int>(blockDim.x) / kLanes;
}
dim3 row_threads(int64_t blocks, size_t held) {
  constexpr int kWarpBlocks = 2;
  const int ctas = std::clamp(static_cast<int>(kRowMemory / held), 1, kRowThreads / kLeastThreads);
  const int all = static_cast<int>(blocks), turns = ceil_div(all, kRowThreads / ctas / kLanes);
  return {static_cast<unsigned>(ceil_div(ceil_div(all, turns), kWarpBlocks) * kWarpBlocks * kLanes)};
}

// Where a row begins in global memory. The compiler would otherwise compute it again at every access.
template <class T>
__device__ inline T* held_pointer(T* p) {
  size_t address = __cvta_generic_to_global(p);
  asm volatile("" : "+l"(address));
  return static_cast<T*>(__cvta_global_to_generic(address));
}
__device__ inline QuantPtr held_pointers(QuantPtr q) {
  q.codes = held_pointer(q.codes);
  q.scales = held_pointer(q.scales);
  return q;
}

// The thread's part of a block of gate, and of up.
template <class F, class Tile>
__device__ inline LaneTiles<Tile> row_places(int block, const QuantRows& gate_up) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  if constexpr (std::is_same_v<Tile, WholeLaneTile>) {
    const int blocks = gate_up.row.blocks / 2;
    return {RowLayout::place_whole<F>(block, lane, block < blocks),
            RowLayout::place_whole<F>(block + blocks, lane, block < blocks)};
  } else {
    return places<F, AllOrNone>(block, lane, gate_up);
  }
}

// A thread's own numbers of a block of the row.
__device__ inline uint4& held_numbers(int block) {
  extern __shared__ uint4 numbers[];
  return numbers[block * kLanes + static_cast<int>(threadIdx.x) % kLanes];
}
// x in bf16 to there; raises the magnitudes `most`.
__device__ inline void hold(int block, const FloatVec8& x, uint32_t& most) {
  const uint4 words = bf16_words(x);
  held_numbers(block) = words;
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

// What the CTA holds from block `held` on, to the columns from `col` on of an operand's row.
template <class F, class Tile, bool kCounts>
__device__ inline void write_held(const QuantRows& gate_up, int held, int64_t row, int col, Fp8Rows out, float inv) {
  const int blocks = gate_up.row.blocks / 2;
  const uint4* numbers = &held_numbers(held);
  out.codes = held_pointer(out.codes + row * out.pitch + col);
  const auto write = [&](const Fp8Rows& to) {
#pragma unroll 2
    for (int block = static_cast<int>(threadIdx.x) / kLanes; block < blocks; block += row_blocks()) {
      const auto p = row_places<F, Tile>(block, gate_up).gate;
      FloatVec8 x;
      unpack8(numbers[block * kLanes], x);
      to.store8<kCounts>(0, p.col, p.n, x, inv);
    }
  };
  // Each loop knows its format, and so has the instructions of one.
  if (out.format.e5m2) {
    out.format.e5m2 = true;
    write(out);
  } else {
    out.format.e5m2 = false;
    write(out);
  }
}

struct ForwardRows {
  const Bf16* gate_up;     // [T, 2F]
  QuantRows kept_gate_up;  // no codes: not kept
  Fp8Rows h;
};

template <class F, class Tile, bool kCounts>
__global__ void __launch_bounds__(kRowThreads) forward_rows(const __grid_constant__ PdlArgs<ForwardRows> given) {
  const ForwardRows& f = given.wait();
  const int64_t row = blockIdx.x;
  const int blocks = f.kept_gate_up.row.blocks / 2;
  const Bf16* from = held_pointer(f.gate_up + row * f.kept_gate_up.row.cols);
  const QuantPtr keep = held_pointers(f.kept_gate_up.at(row));
  struct RowInputs {
    uint4 gate, up;
  };
  uint32_t most = 0;
  each_row_block(
      blocks,
      [&](int block) {
        const auto at = row_places<F, Tile>(block, f.kept_gate_up);
        return RowInputs{fetch8(from + at.gate.col, at.gate.n), fetch8(from + at.up.col, at.gate.n)};
      },
      [&](int block, const RowInputs& now) {
        const auto at = row_places<F, Tile>(block, f.kept_gate_up);
        FloatVec8 both[2], h;
        auto& [gate, up] = both;
        unpack8(now.gate, gate);
        unpack8(now.up, up);
#pragma unroll
        for (int i = 0; i < kGroup; ++i) h[i] = gate[i] * sigmoid(gate[i]) * up[i];
        if (f.kept_gate_up.codes) encode_two<F>(keep, {at.gate, at.up}, both, {now.gate, now.up});
        if (block < blocks) hold(block, h, most);
      });
  CtaMax cta_max;
  const float inv = f.h.open(row, cta_max(magnitude_of(most)), threadIdx.x == 0);
  write_held<F, Tile, kCounts>(f.kept_gate_up, 0, row, 0, f.h, inv);
}

struct BackwardRows {
  const Bf16* dh;  // [T, F]
  QuantRows gate_up;
  Fp8Rows d_gate_up, h;
};

template <class F, class Tile, bool kCounts>
__global__ void __launch_bounds__(kRowThreads) backward_rows(const __grid_constant__ PdlArgs<BackwardRows> given) {
  const BackwardRows& b = given.wait();
  const int64_t row = blockIdx.x;
  const int blocks = b.gate_up.row.blocks / 2, width = b.gate_up.row.cols / 2;
  const Bf16* dh = held_pointer(b.dh + row * width);
  const QuantPtr kept = held_pointers(b.gate_up.at(row));
  struct RowInputs {
    uint4 d;
    Fetched<F> gate, up;
  };
  uint32_t most = 0, most_h = 0;
  each_row_block(
      blocks,
      [&](int block) {
        const auto at = row_places<F, Tile>(block, b.gate_up);
        return RowInputs{fetch8(dh + at.gate.col, at.gate.n), fetch<F>(kept, at.gate), fetch<F>(kept, at.up)};
      },
      [&](int block, const RowInputs& now) {
        FloatVec8 gate, up, d, h;
        unpack8(now.d, d);
        decode<F>(now.gate, gate);
        decode<F>(now.up, up);
        differentiate(d, gate, up, h);
        if (block >= blocks) return;
        hold(block, gate, most);
        hold(block + blocks, up, most);
        hold(block + 2 * blocks, h, most_h);
      });
  CtaMax cta_max;
  const float inv = b.d_gate_up.open(row, cta_max(magnitude_of(most)), threadIdx.x == 0);
  const float h_inv = b.h.open(row, cta_max(magnitude_of(most_h)), threadIdx.x == 0);
  write_held<F, Tile, kCounts>(b.gate_up, 0, row, 0, b.d_gate_up, inv);
  write_held<F, Tile, kCounts>(b.gate_up, blocks, row, width, b.d_gate_up, inv);
  write_held<F, Tile, kCounts>(b.gate_up, 2 * blocks, row, 0, b.h, h_inv);
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

// Starts a kernel by rows that holds `numbers` for each of gate: kernels.operator()<tile, whether it counts>() for
// `out`.
template <class Kernels, class Arguments>
void launch_rows(const Context& ctx, const Operand& out, const RowLayout& row, int64_t numbers, const Kernels& kernels,
                 const Arguments& arguments) {
  const auto kernel = out.counts           ? kernels.template operator()<EvenLaneTile, true>()
                      : row.whole_halves() ? kernels.template operator()<WholeLaneTile, false>()
                                           : kernels.template operator()<EvenLaneTile, false>();
  const int64_t blocks = row.blocks / 2;
  const size_t held = static_cast<size_t>(numbers * blocks) * kLanes * sizeof(uint4);
  agoq::cuda::launch(ctx, {dim3(static_cast<unsigned>(out.rows())), row_threads(blocks, held), held}, kernel,
                     arguments);
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
  const ForwardRows forward{gate_up.as<Bf16>(), QuantRows(kept), Fp8Rows(h)};
  codec::dispatch(kept.kept() ? kept.codec : Codec::Fp32, [&]<class F>() {
    const auto kernels = [&]<class Tile, bool kCounts>() { return forward_rows<F, Tile, kCounts>; };
    launch_rows(ctx, h, forward.kept_gate_up.row, 1, kernels, forward);
  });
}

void swiglu_backward_rows(const Context& ctx, const Tensor& dh, const Quantized& kept_gate_up, const Operand& d_gate_up,
                          const Operand& h) {
  check_even_rows(kept_gate_up, dh);
  clear_max_scale(ctx, d_gate_up);
  clear_max_scale(ctx, h);
  const BackwardRows backward{dh.as<Bf16>(), QuantRows(kept_gate_up), Fp8Rows(d_gate_up), Fp8Rows(h)};
  codec::dispatch(kept_gate_up.codec, [&]<class F>() {
    const auto kernels = [&]<class Tile, bool kCounts>() { return backward_rows<F, Tile, kCounts>; };
    launch_rows(ctx, d_gate_up, backward.gate_up.row, kHeldInBackward, kernels, backward);
  });
}

}  // namespace agoq::ops::cuda
