// Norms over bf16 rows of whole blocks: one pass over memory. A CTA holds a row in its registers and fetches the next
// one before it works on one, so that loads are always under way.
#pragma once

#include <cuda_pipeline_primitives.h>

#include <type_traits>

#include "ops/norm/norm_rows.cuh"

namespace agoq::ops::cuda {

inline constexpr int kHeld = 2;  // groups of a row that a thread holds; encode_two takes two
// Threads of a CTA at most, which leaves a thread 64 registers, and in backward 96: a multiprocessor then runs two CTAs
// of backward for rows of up to 5120 numbers.
inline constexpr int kMostThreads = 1024, kMostBackwardThreads = 640;

template <class Fn>
__device__ inline void each_held(Fn&& fn) {
#pragma unroll
  for (int g = 0; g < kHeld; ++g) fn(g);
}

// A thread's place in all rows. Its warp holds four neighbouring blocks, so its groups are a constant distance apart:
// with pointers to the first of them, all addresses in a row are a pointer and a constant.
struct Held {
  static constexpr int kBlocks = kWarp / kLanes;  // from a group to the next

  int block, lane;  // of the first group
  int blocks;       // of a row

  __device__ explicit Held(const codec::cuda::RowLayout& row)
      : block(static_cast<int>(threadIdx.x) / kWarp * kHeld * kBlocks + static_cast<int>(threadIdx.x) % kWarp / kLanes),
        lane(static_cast<int>(threadIdx.x) % kLanes),
        blocks(row.blocks) {}

  __device__ int first_col() const { return block * static_cast<int>(codec::kBlock) + lane * kGroup; }
  // In memory from row `row` on.
  __device__ int64_t place_of(int64_t row) const { return row * blocks * codec::kBlock + first_col(); }
  template <class T>
  __device__ T* of(T* numbers, int64_t row) const {
    return numbers + place_of(row);
  }
  template <class F>
  __device__ QuantPtr of(const QuantRows& kept, int64_t row) const {
    return kept.at(row).after(block * codec::cuda::code_bytes<F>(codec::kBlock), block);
  }
  // Group g relative to the first; beyond the end of a row it has no numbers.
  template <class F>
  __device__ WholeLaneTile place(int g) const {
    return {{g * kBlocks, lane, n(g)}, col(g), g * kBlocks * codec::cuda::code_bytes<F>(codec::kBlock)};
  }
  __device__ static constexpr int col(int g) { return g * kBlocks * static_cast<int>(codec::kBlock); }
  __device__ AllOrNone n(int g) const { return {block + g * kBlocks < blocks}; }
};

// The thread's part of a row of bf16 numbers.
struct HeldNumbers {
  Fetched8<Bf16> groups[kHeld];

  __device__ void fetch(const Held& held, const Bf16* row) {
    each_held([&](int g) { groups[g] = fetch8(row + Held::col(g), held.n(g)); });
  }
  __device__ float sum() const {
    float sum = 0;
    each_held([&](int g) {
      FloatVec8 numbers;
      unpack8(groups[g], numbers);
      sum = sum_of(numbers, sum);
    });
    return sum;
  }
};

__device__ inline void load_weights(const FloatPtr& w, const Held& held, FloatVec8 (&to)[kHeld]) {
  const auto load = [&](const auto* first) {
    decltype(fetch8(first, AllOrNone{})) groups[kHeld];
    each_held([&](int g) { groups[g] = fetch8(first + Held::col(g), held.n(g)); });
    each_held([&](int g) { unpack8(groups[g], to[g]); });
  };
  w.bf16 ? load(w.as<Bf16>() + held.first_col()) : load(w.as<float>() + held.first_col());
}

// Shared memory that a thread has to itself, for what its registers have no room for: kWords times sixteen bytes.
template <int kWords>
class OwnMemory {
 public:
  static constexpr size_t bytes(int threads) { return kWords * sizeof(uint4) * static_cast<size_t>(threads); }

  __device__ OwnMemory() {
    extern __shared__ uint4 words[];
    first_ = words + threadIdx.x / kWarp * (kWarp * kWords) + threadIdx.x % kWarp;
  }
  template <class Word>
  __device__ Word& at(int i) const {
    static_assert(sizeof(Word) == sizeof(uint4));
    return reinterpret_cast<Word&>(first_[i * kWarp]);
  }

 private:
  uint4* first_;  // a warp's words lie side by side
};

// The thread's weights in the first words of its memory.
inline constexpr int kWeightWords = 2 * kHeld;
template <class Memory>
__device__ inline void keep_weights(const FloatPtr& w, const Held& held, const Memory& memory) {
  FloatVec8 numbers[kHeld];
  load_weights(w, held, numbers);
  each_held([&](int g) {
    const FloatVec8& x = numbers[g];
    memory.template at<float4>(2 * g) = make_float4(x[0], x[1], x[2], x[3]);
    memory.template at<float4>(2 * g + 1) = make_float4(x[4], x[5], x[6], x[7]);
  });
}
template <class Memory>
__device__ inline void scale_by_weights(const Memory& memory, int g, FloatVec8& x) {
  FloatVec8 w;
  unpack8({memory.template at<float4>(2 * g), memory.template at<float4>(2 * g + 1)}, w);
  scale(x, w);
}

// The thread's part of a row in 8-bit floats, rounded to bf16 first.
template <bool kCounts>
__device__ inline void store_fp8(const Fp8Rows& to, int row, const Held& held, CtaMax& cta_max, FloatVec8 (&x)[kHeld]) {
  uint32_t most = 0;
  each_held([&](int g) {
    const uint4 words = bf16_words(x[g]);
    if (held.n(g).all) most = larger_magnitudes(most, words);
    unpack8(words, x[g]);
  });
  const float inv = to.open(row, cta_max(magnitude_of(most)), threadIdx.x == 0);
  each_held([&](int g) { to.store8<kCounts>(row, held.first_col() + Held::col(g), held.n(g), x[g], inv); });
}

template <NormKind kNormKind, class F, bool kCounts>
__global__ void __launch_bounds__(kMostThreads)
    norm_forward_kernel(const __grid_constant__ PdlArgs<NormForward> given) {
  const NormForward& f = given.wait();
  constexpr bool kCentred = kNormKind == NormKind::Layer, kKeeps = !std::is_same_v<F, NotKept>;
  const Held held(f.keep.row);
  CtaSum cta_sum;
  CtaMax cta_max;
  const OwnMemory<kWeightWords> memory;
  const Bf16* x = held.of(f.x.as<Bf16>(), blockIdx.x);
  Bf16* n = held.of(f.n.as<Bf16>(), blockIdx.x);
  QuantPtr keep;
  if constexpr (kKeeps) keep = held.of<F>(f.keep, blockIdx.x);
  HeldNumbers next;
  next.fetch(held, x);
  if constexpr (!kCentred) keep_weights(f.w, held, memory);  // while the first row is on its way
  for (int row = static_cast<int>(blockIdx.x); row < f.rows.count; row += f.rows.step, n += f.rows.numbers) {
    const HeldNumbers now = next;
    x += f.rows.numbers;
    if (row + f.rows.step < f.rows.count) next.fetch(held, x);
    FloatVec8 row_x[kHeld];
    float sum = 0;  // of x, or of its squares where no mean is taken off
    each_held([&](int g) {
      unpack8(now.groups[g], row_x[g]);
      sum = kCentred ? sum_of(row_x[g], sum) : sum_of_squares(row_x[g], sum);
    });
    cta_sum.give(sum);
    if constexpr (kKeeps) {
      codec::cuda::encode_two<F>(keep, {held.place<F>(0), held.place<F>(1)}, row_x);
      keep.advance(f.rows.bytes, f.rows.blocks);
    }
    float mean = 0, squares = cta_sum.take();
    if constexpr (kCentred) {
      mean = squares * f.share;
      float centred_squares = 0;
      each_held([&](int g) {
        centre(row_x[g], held.n(g), mean);
        centred_squares = sum_of_squares(row_x[g], centred_squares);
      });
      squares = cta_sum(centred_squares);
    }
    const float rstd = rstd_of(squares * f.share, f.eps);
    if (f.rstd && threadIdx.x == 0) f.rstd[row] = rstd;
    each_held([&](int g) {
      scale(row_x[g], rstd);
      if constexpr (!kCentred) scale_by_weights(memory, g, row_x[g]);
      if (!f.fp8) store8(n + Held::col(g), held.n(g), row_x[g]);
    });
    if (f.fp8) store_fp8<kCounts>(f.fp8, row, held, cta_max, row_x);
  }
}

// What was kept of the thread's part of a row.
template <class F>
struct HeldCodes {
  codec::cuda::Fetched<F> groups[kHeld];
  float rstd;

  __device__ void fetch(const Held& held, const QuantPtr& row, const float* row_rstd) {
    each_held([&](int g) { groups[g] = codec::cuda::fetch<F>(row, held.place<F>(g)); });
    rstd = *row_rstd;
  }
  // All numbers; returns their sum.
  __device__ float decode(FloatVec8 (&x)[kHeld]) const {
    float sum = 0;
    each_held([&](int g) {
      codec::cuda::decode<F>(groups[g], x[g]);
      sum = sum_of(x[g], sum);
    });
    return sum;
  }
};

template <NormKind kNormKind, class F>
__global__ void __launch_bounds__(kMostThreads)
    recompute_norm_kernel(const __grid_constant__ PdlArgs<NormRecompute> given) {
  const NormRecompute& a = given.wait();
  constexpr bool kCentred = kNormKind == NormKind::Layer;
  const Held held(a.kept.row);
  CtaSum cta_sum;
  QuantPtr kept = held.of<F>(a.kept, blockIdx.x);
  Bf16* n = held.of(a.n.as<Bf16>(), blockIdx.x);
  HeldCodes<F> next;
  next.fetch(held, kept, a.rstd + blockIdx.x);
  FloatVec8 w[kHeld];
  if constexpr (!kCentred) load_weights(a.w, held, w);
  for (int row = static_cast<int>(blockIdx.x); row < a.rows.count; row += a.rows.step, n += a.rows.numbers) {
    const HeldCodes<F> now = next;
    kept.advance(a.rows.bytes, a.rows.blocks);
    if (row + a.rows.step < a.rows.count) next.fetch(held, kept, a.rstd + row + a.rows.step);
    FloatVec8 x[kHeld];
    const float sum = now.decode(x);
    float mean = 0;
    if constexpr (kCentred) mean = cta_sum(sum) * a.share;
    each_held([&](int g) {
      if constexpr (kCentred) centre(x[g], held.n(g), mean);
      scale(x[g], now.rstd);
      if constexpr (!kCentred) scale(x[g], w[g]);
      store8(n + Held::col(g), held.n(g), x[g]);
    });
  }
}

using BackwardMemory = OwnMemory<kWeightWords + 2 * kHeld>;

// The residuals of a row and of the next, on their way to shared memory while the CTA works: registers have no room for
// them. A thread reads what it asked for itself, so it waits for no other.
class ComingResiduals {
 public:
  __device__ explicit ComingResiduals(const BackwardMemory& memory) : memory_(memory) {}

  __device__ void ask_for(const Held& held, const Bf16* row) {  // or none
    turn_ ^= 1;
    each_held([&](int g) {
      if (row && held.n(g).all) __pipeline_memcpy_async(&word(turn_, g), row + Held::col(g), sizeof(uint4));
    });
    __pipeline_commit();
  }
  // Until those of the row before the last asked for are there. Unlike __pipeline_wait_prior(1), which takes a barrier
  // to follow, it keeps the compiler from reading them earlier.
  __device__ void wait() { asm volatile("cp.async.wait_group 1;" ::: "memory"); }
  __device__ void add_to(int g, FloatVec8& x) const {
    FloatVec8 residual;
    unpack8(word(turn_ ^ 1, g), residual);
    add(x, residual);
  }

 private:
  __device__ uint4& word(int turn, int g) const { return memory_.at<uint4>(kWeightWords + turn * kHeld + g); }

  const BackwardMemory& memory_;
  int turn_ = 0;
};

// One CTA, one slice of the rows; dw stays in registers until its end.
template <NormKind kNormKind, class F, bool kCounts>
__global__ void __launch_bounds__(kMostBackwardThreads)
    norm_backward_kernel(const __grid_constant__ PdlArgs<NormBackward> given) {
  const NormBackward& b = given.wait();
  constexpr bool kCentred = kNormKind == NormKind::Layer;
  const int64_t cols = b.kept.row.cols;
  const CtaRows slice(b.rows);
  const Held held(b.kept.row);
  CtaSum cta_sum;
  CtaMax cta_max;
  const BackwardMemory memory;
  FloatVec8 dw[kHeld] = {};
  HeldNumbers next_dn;
  HeldCodes<F> next;
  ComingResiduals residuals(memory);
  QuantPtr kept = held.of<F>(b.kept, slice.begin);  // of the row to fetch next
  int64_t place = held.place_of(slice.begin);       // the same: the thread's first number
  const auto fetch = [&](int row) {
    const bool there = row < slice.end;
    if (there) next_dn.fetch(held, b.dn.as<Bf16>() + place);
    if (there) next.fetch(held, kept, b.rstd + row);
    residuals.ask_for(held, there && b.residual ? b.residual.as<Bf16>() + place : nullptr);
    kept.advance(b.kept.row_bytes, b.kept.row.blocks);
    place += cols;
  };
  fetch(slice.begin);
  if constexpr (!kCentred) keep_weights(b.w, held, memory);
  Bf16* dx = held.of(b.dx.as<Bf16>(), slice.begin);
  for (int row = slice.begin; row < slice.end; ++row, dx += cols) {
    const HeldNumbers now_dn = next_dn;
    const HeldCodes<F> now = next;
    fetch(row + 1);
    FloatVec8 hat[kHeld];  // x̂
    float mean = 0, mean_dn = 0, products = 0;
    const float sum = now.decode(hat);
    if constexpr (kCentred) mean = cta_sum(sum) * b.share, mean_dn = cta_sum(now_dn.sum()) * b.share;
    each_held([&](int g) {
      if constexpr (kCentred) centre(hat[g], held.n(g), mean);
      scale(hat[g], now.rstd);
      FloatVec8 grad;
      unpack8(now_dn.groups[g], grad);
      if constexpr (!kCentred) add_products(grad, hat[g], dw[g]);
      if constexpr (!kCentred) scale_by_weights(memory, g, grad);
      products = sum_of_products(grad, hat[g], products);
    });
    const float mean_product = cta_sum(products) * b.share;
    residuals.wait();
    each_held([&](int g) {
      FloatVec8 grad;
      unpack8(now_dn.groups[g], grad);
      if constexpr (!kCentred) scale_by_weights(memory, g, grad);
      differentiate(grad, hat[g], now.rstd, mean_dn, mean_product);
      if (b.residual) residuals.add_to(g, grad);
      store8(dx + Held::col(g), held.n(g), grad);
#pragma unroll
      for (int i = 0; i < kGroup; ++i) hat[g][i] = grad[i];
    });
    if (b.fp8) store_fp8<kCounts>(b.fp8, row, held, cta_max, hat);
  }
  if constexpr (!kCentred) {
    float* partial = held.of(b.partial, blockIdx.x);
    each_held([&](int g) { store8(partial + Held::col(g), held.n(g), dw[g]); });
  }
}

}  // namespace agoq::ops::cuda
