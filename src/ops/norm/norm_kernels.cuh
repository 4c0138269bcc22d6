// RMSNorm and LayerNorm over rows: which kernels take which rows.
#pragma once

#include <algorithm>
#include <limits>

#include "ops/linear/fp8_cuda.h"
#include "ops/norm/norm_any_rows.cuh"
#include "ops/norm/norm_turned.cuh"
#include "ops/norm/norm_whole_rows.cuh"

namespace agoq::ops::cuda {

// The CTA that holds a row of whole blocks.
inline int held_threads(const codec::RowBlocks& row) {
  constexpr int kOfAWarp = kHeld * Held::kBlocks;
  return codec::cuda::ceil_div(static_cast<int>(row.blocks()), kOfAWarp) * kWarp;
}

// Rows that norm_whole_rows.cuh takes: of whole blocks, not too long, their numbers bf16; all memory aligned.
inline bool whole_rows(const codec::RowBlocks& row, int most_threads, std::initializer_list<Tensor> numbers,
                       const Tensor& w, const codec::Quantized& kept) {
  const auto aligned = [](const Tensor& t) { return reinterpret_cast<uintptr_t>(t.data) % sizeof(uint4) == 0; };
  return row.segment % codec::kBlock == 0 && held_threads(row) <= most_threads && aligned(w) &&
         (!kept.kept() || aligned(kept.codes)) && std::all_of(numbers.begin(), numbers.end(), [&](const Tensor& t) {
           return !t || (t.dtype == DType::BF16 && aligned(t));
         });
}

// CTAs that loop over rows: as many as a GPU runs at once if a multiprocessor has registers for `most_threads`.
inline dim3 row_ctas(const Context& ctx, int64_t rows, int threads, int most_threads) {
  require(rows <= std::numeric_limits<int32_t>::max() / 2, "a norm over {} rows: use smaller micro-batches", rows);
  const int64_t at_once = int64_t{ctx.gpu().multiprocessors()} * std::max(most_threads / threads, 1);
  return {static_cast<unsigned>(std::min(rows, at_once))};
}

inline float share_of(int64_t cols) {
  return 1.0f / static_cast<float>(cols);
}

// What an op writes: numbers, or the rows of an operand in 8-bit floats, whose max_scale starts at zero.
inline Tensor numbers_of(const Operand& out) {
  return is_fp8(out.dtype()) ? Tensor{} : out.data;
}
inline Fp8Rows fp8_rows_of(const Context& ctx, const Operand& out) {
  if (!out.data || !is_fp8(out.dtype())) return {};
  clear_max_scale(ctx, out);
  return Fp8Rows(out);
}

// w is empty for Norm::Layer. n is numbers or by rows.
template <NormKind kNormKind>
void norm_forward(const Context& ctx, const Tensor& x, const Tensor& w, float eps, const codec::Quantized& keep_x,
                  const Tensor& rstd, const Operand& out) {
  const Tensor n = numbers_of(out);
  const codec::RowBlocks row = keep_x.kept() ? keep_x.row : codec::RowBlocks(x.cols());
  QuantRows keep(keep_x);
  keep.row = codec::cuda::RowLayout(row);
  const bool whole = whole_rows(row, kMostThreads, {x, n}, w, keep_x);
  const int threads = whole ? held_threads(row) : kAnyThreads;
  const dim3 ctas = row_ctas(ctx, x.rows(), threads, kMostThreads), cta(static_cast<unsigned>(threads));
  const NormForward f{FloatPtr(x),
                      FloatPtr(w),
                      eps,
                      share_of(row.cols),
                      keep,
                      rstd ? rstd.as<float>() : nullptr,
                      FloatPtr(n),
                      fp8_rows_of(ctx, out),
                      RowChunk(x.rows(), ctas, keep)};
  const size_t shared = whole && w ? OwnMemory<kWeightWords>::bytes(threads) : 0;
  const auto launch = [&]<class F>() {
    const auto of_whole = [&]<bool kCounts>() { return norm_forward_kernel<kNormKind, F, kCounts>; };
    agoq::cuda::launch(ctx, {ctas, cta, shared},
                       whole ? counting_kernel(out, of_whole) : norm_any_forward_kernel<kNormKind, F>, f);
  };
  keep_x.kept() ? codec::dispatch(keep_x.codec, launch) : launch.template operator()<NotKept>();
}

template <NormKind kNormKind>
void recompute_norm(const Context& ctx, const codec::Quantized& kept_x, const Tensor& rstd, const Tensor& w,
                    const Tensor& n) {
  const codec::RowBlocks& row = kept_x.row;
  const QuantRows kept(kept_x);
  const bool whole = whole_rows(row, kMostThreads, {n}, w, kept_x);
  const int threads = whole ? held_threads(row) : kAnyThreads;
  const dim3 ctas = row_ctas(ctx, n.rows(), threads, kMostThreads), cta(static_cast<unsigned>(threads));
  const NormRecompute a{kept,        share_of(row.cols), rstd.as<float>(),
                        FloatPtr(w), FloatPtr(n),        RowChunk(n.rows(), ctas, kept)};
  codec::dispatch(kept_x.codec, [&]<class F>() {
    agoq::cuda::launch(ctx, whole ? recompute_norm_kernel<kNormKind, F> : recompute_norm_any_kernel<kNormKind, F>, ctas,
                       cta, a);
  });
}

// partial [slices, H] is written for Norm::Rms, and empty for Norm::Layer. dx_rows by rows, or none.
template <NormKind kNormKind>
void norm_backward(const Context& ctx, const Tensor& dn, const codec::Quantized& kept_x, const Tensor& rstd,
                   const Tensor& w, const Tensor& residual, const Tensor& dx, const Operand& dx_rows,
                   const Tensor& partial) {
  const codec::RowBlocks& row = kept_x.row;
  const NormBackward b{FloatPtr(dn),
                       QuantRows(kept_x),
                       share_of(row.cols),
                       rstd.as<float>(),
                       FloatPtr(w),
                       FloatPtr(residual),
                       FloatPtr(dx),
                       fp8_rows_of(ctx, dx_rows),
                       partial ? partial.as<float>() : nullptr,
                       dn.rows()};
  const bool whole = whole_rows(row, kMostBackwardThreads, {dn, residual, dx}, w, kept_x);
  const int threads = whole ? held_threads(row) : kAnyThreads;
  const dim3 ctas =
      partial ? dim3(static_cast<unsigned>(partial.rows())) : row_ctas(ctx, dn.rows(), threads, kMostBackwardThreads);
  const size_t shared = whole ? BackwardMemory::bytes(threads) : 0;
  codec::dispatch(kept_x.codec, [&]<class F>() {
    const auto of_whole = [&]<bool kCounts>() { return norm_backward_kernel<kNormKind, F, kCounts>; };
    agoq::cuda::launch(ctx, {ctas, dim3(static_cast<unsigned>(threads)), shared},
                       whole ? counting_kernel(dx_rows, of_whole) : norm_any_backward_kernel<kNormKind, F>, b);
  });
}

}  // namespace agoq::ops::cuda
