#include "ops/accumulate_cuda.h"
#include "ops/by_type.h"
#include "ops/linear_cuda.h"
#include "ops/strips.cuh"

namespace agoq::ops::cuda {
namespace {

using namespace codec::cuda;

template <class T>
struct Accumulation {
  View main;
  const T* delta;
  int64_t begin;  // the row of the gradient that the first of delta belongs to
  bool fresh;
  Draws draws;
  Strips strips;  // of delta
};

template <class F, class T>
__global__ void __launch_bounds__(Strips::kThreads) add_blocks(const __grid_constant__ Accumulation<T> a) {
  const Strip strip = a.strips.mine();
  const Place p = a.main.row.template place<F>(strip.block, strip.lane);
  const int64_t cols = a.main.row.cols;
  const T* delta_row = a.delta + strip.begin * cols + p.col;
  View main_row = a.main.below(a.begin + strip.begin);
  Draws draws = a.draws;
  draws.first_row += a.begin + strip.begin;
  struct Inputs {
    Fetched8<T> delta;
    Fetched<F> main;
  };
  const auto fetch_row = [&] {
    Inputs inputs{fetch8(delta_row, p.n), {}};
    if (!a.fresh) inputs.main = fetch<F>(main_row, 0, p);
    return inputs;
  };
  Inputs next = fetch_row();
#pragma unroll 1
  for (int row = strip.begin; row < strip.end; ++row) {
    const Inputs now = next;
    const View to = main_row;
    delta_row += cols, main_row = main_row.below(1);
    if (row + 1 < strip.end) next = fetch_row();
    Numbers sum, delta;
    decode<F>(now.main, sum);
    unpack8(now.delta, delta);
#pragma unroll
    for (int i = 0; i < kGroup; ++i) sum[i] += delta[i];
    encode<F>(to, 0, p, sum, draws);
    ++draws.first_row;
  }
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
  Numbers sum = {};
  for (int64_t first_row = begin + threadIdx.y; first_row < end; first_row += kRows * kWarps) {
    decltype(fetch8(x, n)) packed[kRows];
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      const int64_t r = first_row + j * kWarps;
      packed[j] = fetch8(x + r * cols + col, r < end ? n : 0);
    }
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      Numbers row;
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

__global__ void add_slices(const float* partial, int slices, int64_t cols, float* out) {
  const int64_t col = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (col >= cols) return;
  float total = 0;
#pragma unroll 8
  for (int s = 0; s < slices; ++s) total += partial[s * cols + col];
  out[col] = total;
}

unsigned ctas(int64_t count, int64_t per_cta) {
  return static_cast<unsigned>((count + per_cta - 1) / per_cta);
}

}  // namespace

void accumulate(const Context& ctx, const MainGrad& grad, const Tensor& delta, int64_t begin) {
  const codec::Quantized& q = grad.data;
  const Strips strips(delta.shape[0], q.row.blocks());
  const Draws draws(grad.rounding(ctx.random), q.row);
  codec::dispatch(q.codec, [&]<class F>() {
    by_type(delta.dtype, [&]<class T>() {
      agoq::cuda::launch(ctx, add_blocks<F, T>, strips.grid(), Strips::kThreads,
                         Accumulation<T>{View(q), delta.as<T>(), begin, grad.fresh, draws, strips});
    });
  });
}

void dw_rows(const Context& ctx, const Tensor& dy, const Tensor& x, int64_t begin, bool add, const Tensor& dw,
             const Tensor& workspace) {
  const int64_t tokens = dy.shape[0], rows = dw.shape[0];
  Product p{{}, x, dw, true, false, add ? 1.0f : 0.0f, {}, {}, rows, dw.shape[1], tokens};
  p.a = Tensor{dy.raw() + static_cast<size_t>(begin) * size_of(dy.dtype), dy.dtype, dy.device, {tokens, rows}};
  p.a_stride = dy.cols();
  multiply(ctx, p, workspace);
}

void column_sums(const Context& ctx, const Tensor& x, const Tensor& partial, const Tensor& out) {
  const int64_t cols = x.cols(), slices = partial.shape[0];
  by_type(x.dtype, [&]<class T>() {
    agoq::cuda::launch(ctx, sum_slices<T>, dim3(ctas(cols, kColumns), static_cast<unsigned>(slices)), kSummers,
                       x.as<T>(), x.shape[0], cols, partial.as<float>());
  });
  agoq::cuda::launch(ctx, add_slices, ctas(cols, 256), 256, partial.as<float>(), static_cast<int>(slices), cols,
                     out.as<float>());
}

}  // namespace agoq::ops::cuda
