#include <type_traits>

#include "codec/tile_schedulers.cuh"
#include "ops/by_type.h"
#include "ops/gradient/accumulate_cuda.h"
#include "ops/linear/linear_cuda.h"

namespace agoq::ops::cuda {
namespace {

using namespace codec::cuda;

// main += delta, for rows that follow one another in the whole tensor, too.
template <class T>
struct BlockSums {
  QuantRows main;
  const T* delta;
  bool fresh;
  bool whole_blocks;    // no block is short, and lanes' numbers are aligned
  int64_t whole_block;  // the first block here, counted in the whole tensor
  RngOffsets draws;
  StripScheduler strips;
};

template <class F, class T>
__device__ void add_row_by_row(const BlockSums<T>& a, const Strip& strip) {
  const LaneTile p = a.main.row.template place<F>(strip.block, strip.lane);
  const int64_t cols = a.main.row.cols;
  const T* delta_row = a.delta + strip.begin * cols + p.col;
  QuantPtr main_row = a.main.at(strip.begin);
  RngOffsets draws = a.draws;
  draws.global_offset.first_row += strip.begin;
  struct FoldInputs {
    Fetched8<T> delta;
    Fetched<F> main;
  };
  const auto fetch_row = [&] {
    FoldInputs inputs{fetch8(delta_row, p.n), {}};
    if (!a.fresh) inputs.main = fetch<F>(main_row, p);
    return inputs;
  };
  FoldInputs next = fetch_row();
#pragma unroll 1
  for (int row = strip.begin; row < strip.end; ++row) {
    const FoldInputs now = next;
    const QuantPtr to = main_row;
    delta_row += cols, main_row.advance(a.main.row_bytes, a.main.row.blocks);
    if (row + 1 < strip.end) next = fetch_row();
    FloatVec8 sum, delta;
    decode<F>(now.main, sum);
    unpack8(now.delta, delta);
#pragma unroll
    for (int i = 0; i < kGroup; ++i) sum[i] += delta[i];
    encode<F>(to, p, sum, draws, 0);
    ++draws.global_offset.first_row;
  }
}

// A whole strip of whole blocks of 8-bit codes. All loads are on their way before the first sum; of the four rows'
// scales a lane loads and finds one. False, with nothing stored, if a scale does not bound its numbers, which is rare.
template <class F, class T>
__device__ bool add_whole_strip(const BlockSums<T>& a, const Strip& strip) {
  constexpr int kRows = StripScheduler::kRows, kSharers = kLanes / kRows;
  const int64_t blocks = a.main.row.blocks, groups = blocks * kLanes;  // in a row
  const int64_t block = strip.begin * blocks + strip.block, group = block * kLanes + strip.lane;
  const T* delta = a.delta + group * kGroup;
  uint2* codes = reinterpret_cast<uint2*>(a.main.codes) + group;
  Bf16* scales = a.main.scales + block + strip.lane / kSharers * blocks;
  const auto of_row = [&](float of_lane, int row) { return __shfl_sync(kWholeWarp, of_lane, row * kSharers, kLanes); };

  Fetched8<T> partial_sums[kRows];
  uint2 old_codes[kRows] = {};
  Bf16 old_scale;
#pragma unroll
  for (int j = 0; j < kRows; ++j) partial_sums[j] = fetch8(delta + j * groups * kGroup, AllOrNone{true});
  if (!a.fresh) {
    old_scale = *scales;
#pragma unroll
    for (int j = 0; j < kRows; ++j) old_codes[j] = codes[j * groups];
  }
  FloatVec8 sums[kRows];
#pragma unroll
  for (int j = 0; j < kRows; ++j) unpack8(partial_sums[j], sums[j]);
  if (!a.fresh) {
#pragma unroll
    for (int j = 0; j < kRows; ++j)
      codec::add_group<F>({old_codes[j].x, old_codes[j].y}, of_row(to_float(old_scale), j), sums[j]);
  } else if constexpr (!std::is_same_v<F, codec::Int8>) {
#pragma unroll
    for (int j = 0; j < kRows; ++j)
      for (float& sum : sums[j]) sum += 0.0f;  // -0 becomes 0: codes of fp8 have a sign
  }
  float amax[kRows];
#pragma unroll
  for (int j = 0; j < kRows; ++j) amax[j] = group_amax(sums[j]);
  const Bf16 scale = codec::group_scale<F>(amax_of_share(amax, strip.lane));
  if (!__all_sync(kWholeWarp, codec::bounds_numbers<F>(scale))) return false;
  if (strip.lane % kSharers == 0) *scales = scale;
  const float inverse = codec::group_reciprocal<F>(scale);
  const auto store_rows = [&](const auto& rounding) {
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      const codec::Packed packed = codec::encode_group<F>(sums[j], of_row(inverse, j), rounding(j));
      codes[j * groups] = make_uint2(packed.low, packed.high);
    }
  };
  if (a.draws.stochastic) {
    const int64_t per_row = a.draws.global_offset.blocks_per_row;
    const int64_t first = a.whole_block + strip.begin * per_row + strip.block;
    store_rows([&](int j) { return codec::Bounded{a.draws.of_block(first + j * per_row, strip.lane)}; });
  } else {
    store_rows([](int) { return codec::Nearest{}; });
  }
  return true;
}

// The formats of 8 bits that gradients have in training.
template <class F>
constexpr bool kByStrips = std::is_same_v<F, codec::Int8> || std::is_same_v<F, codec::Fp8>;
constexpr int kCtas = 8;  // of an SM: as many as have registers for a strip

template <class F, class T>
__global__ void __launch_bounds__(StripScheduler::kThreads, kCtas)
    add_blocks(const __grid_constant__ PdlArgs<BlockSums<T>> given) {
  const BlockSums<T>& a = given.wait();
  const Strip strip = a.strips.mine();
  if constexpr (kByStrips<F>) {
    const bool two_blocks = (strip.block | 1) < a.main.row.blocks;  // one for each half of the warp
    if (a.whole_blocks && two_blocks && strip.end - strip.begin == StripScheduler::kRows &&
        add_whole_strip<F>(a, strip))
      return;
  }
  add_row_by_row<F>(a, strip);
}

constexpr int kWarps = 8;              // of a CTA that sums columns
constexpr int kColumns = 32 * kGroup;  // that it sums
constexpr int kPitch = 36;             // of 32 sums in shared memory: neither writing nor reading shares a bank
constexpr int kRows = 4;               // whose loads a thread has in flight
constexpr dim3 kSummers = {32, kWarps};

// Sums of 256 columns over one slice of the rows: a warp takes every eighth row, then the warps' sums are added in
// order.
template <class T>
__global__ void __launch_bounds__(32 * kWarps) sum_slices(const T* x, int64_t rows, int64_t cols, float* partial) {
  __shared__ float sums[kWarps][kGroup * kPitch];
  const int64_t first = int64_t{blockIdx.x} * kColumns, col = first + threadIdx.x * kGroup;
  const int n = static_cast<int>(min(max(cols - col, int64_t{0}), int64_t{kGroup}));
  const int64_t begin = rows * blockIdx.y / gridDim.y, end = rows * (blockIdx.y + 1) / gridDim.y;
  FloatVec8 sum = {};
  for (int64_t first_row = begin + threadIdx.y; first_row < end; first_row += kRows * kWarps) {
    decltype(fetch8(x, n)) packed[kRows];
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      const int64_t r = first_row + j * kWarps;
      packed[j] = fetch8(x + r * cols + col, r < end ? n : 0);
    }
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      FloatVec8 row;
      unpack8(packed[j], row);
#pragma unroll
      for (int i = 0; i < kGroup; ++i) sum[i] += row[i];
    }
  }
#pragma unroll
  for (int i = 0; i < kGroup; ++i) sums[threadIdx.y][i * kPitch + threadIdx.x] = sum[i];
  __syncthreads();
  const int mine = static_cast<int>(threadIdx.y * 32 + threadIdx.x);  // the column that this thread finishes
  if (first + mine >= cols) return;
  float total = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) total += sums[w][mine % kGroup * kPitch + mine / kGroup];
  partial[int64_t{blockIdx.y} * cols + first + mine] = total;
}

constexpr int kSumColumns = 32, kSumRows = 16;  // of a CTA's threads that add slices

struct SliceSum {
  const float* slices;  // [count, cols]
  int count, cols;
  bool add;  // to what is there
  float* sum;
};

// Each thread sums every kSumRows-th slice in order, then kSumRows lanes add the sums of a column.
__global__ void __launch_bounds__(kSumColumns* kSumRows)
    add_up_slices(const __grid_constant__ PdlArgs<SliceSum> given) {
  const SliceSum& s = given.wait();
  __shared__ float sums[kSumRows][kSumColumns + 1];
  const int thread = static_cast<int>(threadIdx.x), first = static_cast<int>(blockIdx.x) * kSumColumns;
  const int row = thread / kSumColumns, col = thread % kSumColumns;
  float sum = 0;
  if (first + col < s.cols) {
#pragma unroll 16
    for (int i = row; i < s.count; i += kSumRows) sum += s.slices[int64_t{i} * s.cols + first + col];
  }
  sums[row][col] = sum;
  __syncthreads();
  const int lane = thread % kSumRows, mine = thread / kSumRows;
  float total = sums[lane][mine];
#pragma unroll
  for (int other = kSumRows / 2; other > 0; other /= 2) total += __shfl_xor_sync(kWholeWarp, total, other);
  if (lane > 0 || first + mine >= s.cols) return;
  float& to = s.sum[first + mine];
  to = s.add ? to + total : total;
}

unsigned ctas(int64_t count, int64_t per_cta) {
  return static_cast<unsigned>((count + per_cta - 1) / per_cta);
}

bool aligned(const void* data) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0;
}

void add_rows(const Context& ctx, const codec::Quantized& q, const Tensor& delta, const codec::Rounding& rounding,
              bool fresh) {
  const StripScheduler strips(q.rows, q.row.blocks());
  const RngOffsets draws(rounding, q.row);
  const bool whole_blocks = q.row.segment % codec::kBlock == 0 && aligned(q.codes.data) && aligned(delta.data);
  codec::dispatch(q.codec, [&]<class F>() {
    by_type(delta.dtype, [&]<class T>() {
      agoq::cuda::launch(
          ctx, add_blocks<F, T>, strips.grid(), StripScheduler::kThreads,
          BlockSums<T>{QuantRows(q), delta.as<T>(), fresh, whole_blocks, draws.block(0, 0), draws, strips});
    });
  });
}

}  // namespace

void accumulate(const Context& ctx, const MainGrad& grad, const Tensor& delta, int64_t begin) {
  const codec::Rounding rounding = grad.rounding(ctx.random);
  for (int64_t row = 0, rows = 0; row < delta.shape[0]; row += rows) {
    const codec::GlobalOffset global_offset = rounding.global_offset.from_row(begin + row);
    rows = global_offset.run(delta.shape[0] - row);
    const codec::Quantized q = grad.data.row_range(begin + row, begin + row + rows);
    add_rows(ctx, q, delta.row_range(row, row + rows), {rounding.stochastic, rounding.key, global_offset}, grad.fresh);
  }
}

void dw_rows(const Context& ctx, const Tensor& dy, const Tensor& x, int64_t begin, bool add, const Tensor& dw,
             const Tensor& workspace) {
  Operand columns = transposed(Tensor{
      dy.raw() + static_cast<size_t>(begin) * size_of(dy.dtype), dy.dtype, dy.device, {dy.shape[0], dw.shape[0]}});
  columns.stride = dy.cols();
  multiply(ctx, {columns, transposed(x), dw, add ? 1.0f : 0.0f}, workspace);
}

void column_sums(const Context& ctx, const Tensor& x, const Tensor& slices) {
  const dim3 grid(ctas(x.cols(), kColumns), static_cast<unsigned>(slices.rows()));
  by_type(x.dtype, [&]<class T>() {
    agoq::cuda::launch(ctx, sum_slices<T>, grid, kSummers, x.as<T>(), x.shape[0], x.cols(), slices.as<float>());
  });
}

void add_slices(const Context& ctx, const Tensor& slices, bool add, const Tensor& sum) {
  const SliceSum s{slices.as<float>(), static_cast<int>(slices.rows()), static_cast<int>(slices.cols()), add,
                   sum.as<float>()};
  agoq::cuda::launch(ctx, add_up_slices, ctas(slices.cols(), kSumColumns), kSumColumns * kSumRows, s);
}

}  // namespace agoq::ops::cuda
