#include <limits>

#include "codec/block_cuda.cuh"
#include "ops/attention/rope_cuda.h"
#include "ops/by_type.h"
#include "ops/linear/fp8_codes.cuh"
#include "ops/linear/fp8_cuda.h"

namespace agoq::ops::cuda {
namespace {

using namespace codec::cuda;

constexpr int kThreads = 128;
constexpr int kHeads = 4;  // of a thread, all of them in flight at once

// How the threads of all CTAs share out rows, the heads of a row, and the pairs of a head: by eights.
struct Shares {
  int heads, half;      // of a row; pairs of a head
  int of_head, of_row;  // threads for the pairs of a head; for those of a row, in such teams
  uint32_t threads;     // of all rows
  FastDivmod by_head, by_row;

  Shares(int64_t rows, int64_t row_heads, int64_t dim)
      : heads(static_cast<int>(row_heads)),
        half(static_cast<int>(dim / 2)),
        of_head(ceil_div(half, kGroup)),
        of_row(ceil_div(heads, kHeads)),
        threads(static_cast<uint32_t>(rows * of_row * of_head)),
        by_head(static_cast<uint32_t>(of_head)),
        by_row(static_cast<uint32_t>(of_row)) {
    require(rows * of_row * of_head <= std::numeric_limits<int32_t>::max(),
            "rope: {} tokens of {} heads of {} are too many for one kernel: use smaller micro-batches", rows, heads,
            dim);
  }
};

// A thread's eight pairs of every `of_row`-th head of its row.
struct Share {
  int64_t row;
  int head, pair;  // the first ones

  __device__ Share(const Shares& all, uint32_t thread) {
    const uint32_t team = all.by_head.divide(thread), r = all.by_row.divide(team);
    row = r;
    head = static_cast<int>(team - r * static_cast<uint32_t>(all.of_row));
    pair = static_cast<int>(thread - team * static_cast<uint32_t>(all.of_head)) * kGroup;
  }
};

template <class T>
struct Rotation {
  T* qkv;
  const float* table;        // cos | sin of each position
  const int32_t* positions;  // of each row
  int64_t cols;
  float sign;
  Shares shares;
};

__device__ inline void turn(const FloatVec8& x, const FloatVec8& y, const FloatVec8& cosine, const FloatVec8& sine,
                            FloatVec8& turned_x, FloatVec8& turned_y) {
#pragma unroll
  for (int i = 0; i < kGroup; ++i) {
    turned_x[i] = x[i] * cosine[i] - y[i] * sine[i];
    turned_y[i] = y[i] * cosine[i] + x[i] * sine[i];
  }
}

// Pairs are (i, i + D/2), and a thread's angles are the same for all its heads. Operation by operation as on the CPU,
// so that the bits are the same. Count: AllOrNone where heads are whole eights of pairs, and aligned.
template <class T, class Count>
__global__ void __launch_bounds__(kThreads) rotate_heads(const __grid_constant__ PdlArgs<Rotation<T>> given) {
  const Rotation<T>& r = given.wait();
  const Shares& all = r.shares;
  const uint32_t thread = blockIdx.x * kThreads + threadIdx.x;
  if (thread >= all.threads) return;
  const Share mine(all, thread);
  const int32_t position = r.positions[mine.row];  // on its way while the numbers are asked for
  T* const row = r.qkv + mine.row * r.cols + mine.pair;
  const auto head = [&](int j) { return mine.head + j * all.of_row; };
  const auto at = [&](int j) { return row + head(j) * 2 * all.half; };
  const auto count = [&](bool there) {
    if constexpr (std::is_same_v<Count, AllOrNone>)
      return AllOrNone{there};
    else
      return there ? min(all.half - mine.pair, kGroup) : 0;
  };
  Fetched8<T> first[kHeads], second[kHeads];
#pragma unroll
  for (int j = 0; j < kHeads; ++j) {
    first[j] = fetch8(at(j), count(head(j) < all.heads));
    second[j] = fetch8(at(j) + all.half, count(head(j) < all.heads));
  }
  __syncwarp();  // keeps the compiler from waiting for the position before that
  const float* angles = r.table + int64_t{position} * 2 * all.half + mine.pair;
  FloatVec8 cosine, sine;
  load8(angles, count(true), cosine);
  load8(angles + all.half, count(true), sine);
#pragma unroll
  for (float& s : sine) s *= r.sign;
#pragma unroll
  for (int j = 0; j < kHeads; ++j) {
    FloatVec8 x, y, turned_x, turned_y;
    unpack8(first[j], x);
    unpack8(second[j], y);
    turn(x, y, cosine, sine, turned_x, turned_y);
    store8(at(j), count(head(j) < all.heads), turned_x);
    store8(at(j) + all.half, count(head(j) < all.heads), turned_y);
  }
}

// --- backward into 8-bit floats: a CTA has a row, a thread two groups of eight pairs of it --------------------------

struct RotatedRows {
  Bf16* dqkv;
  const float* table;
  const int32_t* positions;
  int64_t cols;
  int groups, rotated, of_head, half;  // groups of pairs in a row; those of q and k; those of a head; pairs of a head
  FastDivmod by_head;
  Fp8Rows out;
  bool in_place_too;
};
constexpr int kHeldGroups = 2, kRowThreads = kMostPairGroups / kHeldGroups;

template <bool kCounts>
__global__ void __launch_bounds__(kRowThreads) rotate_rows(const __grid_constant__ PdlArgs<RotatedRows> given) {
  const RotatedRows& r = given.wait();
  const int64_t row = blockIdx.x;
  const int32_t position = r.positions[row];
  Bf16* const dqkv = r.dqkv + row * r.cols;
  int col[kHeldGroups];
  AllOrNone n[kHeldGroups], changed[kHeldGroups];
  uint4 first[kHeldGroups], second[kHeldGroups];
#pragma unroll
  for (int j = 0; j < kHeldGroups; ++j) {
    const int group = static_cast<int>(j * blockDim.x + threadIdx.x);
    const int head = static_cast<int>(r.by_head.divide(static_cast<uint32_t>(group)));
    const int pair = (group - head * r.of_head) * kGroup;
    n[j] = {group < r.groups};
    col[j] = head * 2 * r.half + pair;
    first[j] = fetch8(dqkv + col[j], n[j]);
    second[j] = fetch8(dqkv + col[j] + r.half, n[j]);
    changed[j] = {r.in_place_too && group < r.rotated};
    if (group >= r.rotated) continue;
    FloatVec8 cosine, sine, x, y, turned_x, turned_y;
    const float* angles = r.table + int64_t{position} * 2 * r.half + pair;
    load8(angles, AllOrNone{true}, cosine);
    load8(angles + r.half, AllOrNone{true}, sine);
#pragma unroll
    for (float& s : sine) s = -s;
    unpack8(first[j], x);
    unpack8(second[j], y);
    turn(x, y, cosine, sine, turned_x, turned_y);
    first[j] = bf16_words(turned_x);
    second[j] = bf16_words(turned_y);
  }
  uint32_t most = 0;
#pragma unroll
  for (int j = 0; j < kHeldGroups; ++j) most = larger_magnitudes(larger_magnitudes(most, first[j]), second[j]);
  CtaMax cta_max;
  const float inv = r.out.open(row, cta_max(magnitude_of(most)), threadIdx.x == 0);
#pragma unroll
  for (int j = 0; j < kHeldGroups; ++j) {
    FloatVec8 x, y;
    unpack8(first[j], x);
    unpack8(second[j], y);
    r.out.store8<kCounts>(row, col[j], n[j], x, inv);
    r.out.store8<kCounts>(row, col[j] + r.half, n[j], y, inv);
    put8(dqkv + col[j], changed[j], first[j]);
    put8(dqkv + col[j] + r.half, changed[j], second[j]);
  }
}

}  // namespace

void rotate_back_rows(const Context& ctx, const Tensor& dqkv, const Heads& heads, const Tensor& table,
                      const Operand& rows, bool in_place_too) {
  static_assert(kRotatedEights == kGroup);
  require(aligned<uint4>(dqkv.data) && aligned<uint4>(table.data), "rope_backward: memory is not aligned");
  constexpr int kWarpSize = 32;
  const int half = static_cast<int>(heads.dim / 2), of_head = half / kGroup;
  const int groups = static_cast<int>(heads.cols()) / (2 * kGroup);
  const int threads = ceil_div(ceil_div(groups, kHeldGroups), kWarpSize) * kWarpSize;
  clear_max_scale(ctx, rows);
  agoq::cuda::launch(ctx, counting_kernel(rows, [&]<bool kCounts>() { return rotate_rows<kCounts>; }),
                     dim3(static_cast<unsigned>(dqkv.rows())), dim3(static_cast<unsigned>(threads)),
                     RotatedRows{dqkv.as<Bf16>(), table.as<float>(), ctx.positions.as<int32_t>(), dqkv.cols(), groups,
                                 static_cast<int>(heads.query + heads.kv) * of_head, of_head, half,
                                 FastDivmod(static_cast<uint32_t>(of_head)), Fp8Rows(rows), in_place_too});
}

void rotate(const Context& ctx, const Tensor& qkv, int64_t heads, int64_t dim, const Tensor& table, float sign) {
  const Shares shares(qkv.rows(), heads, dim);
  const dim3 ctas((shares.threads + kThreads - 1) / kThreads);
  const bool whole = shares.half % kGroup == 0 && aligned<uint4>(qkv.data) && qkv.cols() % kGroup == 0;
  by_type(qkv.dtype, [&]<class T>() {
    const Rotation<T> rotation{qkv.as<T>(), table.as<float>(), ctx.positions.as<int32_t>(), qkv.cols(), sign, shares};
    agoq::cuda::launch(ctx, whole ? rotate_heads<T, AllOrNone> : rotate_heads<T, int>, ctas, kThreads, rotation);
  });
}

}  // namespace agoq::ops::cuda
