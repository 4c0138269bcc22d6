#include "codec/codec_cuda.h"

#include "codec/tile_schedulers.cuh"

namespace agoq::codec::cuda {
namespace {

constexpr int kTurns = 4;  // blocks of a half-warp, all fetched before the first is worked on
constexpr int kThreads = BlockScheduler::kThreads;

template <class Number>
struct Encoding {
  const Number* x;
  QuantRows q;
  BlockScheduler tasks;
  RngOffsets draws;
};

template <class F, class Number>
__global__ void __launch_bounds__(kThreads) encode_kernel(const __grid_constant__ PdlArgs<Encoding<Number>> given) {
  const Encoding<Number>& e = given.wait();
  const QuantRows& q = e.q;
  Fetched8<Number> fetched[kTurns];
#pragma unroll
  for (uint32_t i = 0; i < kTurns; ++i) {
    const BlockScheduler::Task task = e.tasks.mine(i);
    const LaneTile p = q.row.place<F>(task.block, task.lane);
    fetched[i] = fetch8(e.x + task.row * q.row.cols + p.col, p.n);
  }
#pragma unroll
  for (uint32_t i = 0; i < kTurns; ++i) {
    const BlockScheduler::Task task = e.tasks.mine(i);
    FloatVec8 numbers;
    unpack8(fetched[i], numbers);
    encode<F>(q.at(task.row), q.row.place<F>(task.block, task.lane), numbers, e.draws, task.row);
  }
}

template <class Number>
struct Decoding {
  QuantRows q;
  Number* x;
  BlockScheduler tasks;
};

template <class F, class Number>
__global__ void __launch_bounds__(kThreads) decode_kernel(const __grid_constant__ PdlArgs<Decoding<Number>> given) {
  const Decoding<Number>& d = given.wait();
  const QuantRows& q = d.q;
  Fetched<F> fetched[kTurns];
#pragma unroll
  for (uint32_t i = 0; i < kTurns; ++i) {
    const BlockScheduler::Task task = d.tasks.mine(i);
    fetched[i] = fetch<F>(q.at(task.row), q.row.place<F>(task.block, task.lane));
  }
#pragma unroll
  for (uint32_t i = 0; i < kTurns; ++i) {
    const BlockScheduler::Task task = d.tasks.mine(i);
    const LaneTile p = q.row.place<F>(task.block, task.lane);
    FloatVec8 numbers;
    decode<F>(fetched[i], numbers);
    store8(d.x + task.row * q.row.cols + p.col, p.n, numbers);
  }
}

// Calls f.operator()<float>() or f.operator()<Bf16>().
template <class Fn>
void by_type(DType dtype, Fn&& fn) {
  dtype == DType::F32 ? fn.template operator()<float>() : fn.template operator()<Bf16>();
}

// Numbers stored as they are come and go as bytes.
bool same_bytes(const Quantized& q, const Tensor& x) {
  return (q.codec == Codec::Fp32 || q.codec == Codec::Bf16) && q.plain().dtype == x.dtype;
}
void copy(const Context& ctx, const void* from, const Tensor& to) {
  AGOQ_CUDA_CHECK(cudaMemcpyAsync(to.data, from, to.bytes(), cudaMemcpyDeviceToDevice, agoq::cuda::stream(ctx)));
}

}  // namespace

// A bf16 number needs no rounding, by whatever draw.
void encode(const Context& ctx, const Tensor& x, const Quantized& out, const Rounding& rounding) {
  if (same_bytes(out, x)) return copy(ctx, x.data, out.plain());
  const BlockScheduler tasks(out.rows, out.row.blocks(), kTurns);
  dispatch(out.codec, [&]<class F>() {
    by_type(x.dtype, [&]<class Number>() {
      agoq::cuda::launch(ctx, encode_kernel<F, Number>, tasks.grid(), kThreads,
                         Encoding<Number>{x.as<Number>(), QuantRows(out), tasks, RngOffsets(rounding, out.row)});
    });
  });
}

void decode(const Context& ctx, const Quantized& in, const Tensor& out) {
  if (same_bytes(in, out)) return copy(ctx, in.plain().data, out);
  const BlockScheduler tasks(in.rows, in.row.blocks(), kTurns);
  dispatch(in.codec, [&]<class F>() {
    by_type(out.dtype, [&]<class Number>() {
      agoq::cuda::launch(ctx, decode_kernel<F, Number>, tasks.grid(), kThreads,
                         Decoding<Number>{QuantRows(in), out.as<Number>(), tasks});
    });
  });
}

}  // namespace agoq::codec::cuda
