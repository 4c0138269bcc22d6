// What all norms over rows check and take.
#pragma once

#include "codec/codec.h"
#include "ops/cpu.h"
#include "ops/linear/fp8.h"

namespace agoq::ops {

inline void check_rows(const Context& ctx, const Tensor& x, int64_t cols, const char* op, const char* what) {
  require(x.shape.rank() == 2 && x.cols() == cols && x.dtype == ctx.compute(), "{}: {} is {} {}, not {} [T, {}]", op,
          what, name_of(x.dtype), x.shape.text(), name_of(ctx.compute()), cols);
}

inline void check_rstd(const Tensor& rstd, Shape shape, const char* op) {
  require(rstd.shape == shape && rstd.dtype == DType::F32, "{}: rstd is {} {}, not fp32 {}", op, name_of(rstd.dtype),
          rstd.shape.text(), shape.text());
}

inline void check_saved(const codec::Quantized& kept, int64_t rows, int64_t cols, const char* op) {
  require(kept.kept() && kept.rows == rows && kept.row.cols == cols, "{}: the kept input is {} [{}, {}], not [{}, {}]",
          op, codec::name_of(kept.codec), kept.rows, kept.row.cols, rows, cols);
}

// dx and the residual, if there is one, have the shape of dn.
inline void check_gradients(const Context& ctx, const Tensor& dn, const Tensor& residual, const Tensor& dx,
                            const char* op) {
  check_rows(ctx, dx, dn.cols(), op, "dx");
  require(dx.rows() == dn.rows(), "{}: dx {} has not the rows of dn {}", op, dx.shape.text(), dn.shape.text());
  if (!residual) return;
  check_rows(ctx, residual, dn.cols(), op, "the residual");
  require(residual.rows() == dn.rows(), "{}: the residual {} has not the rows of dn {}", op, residual.shape.text(),
          dn.shape.text());
}

// fp32 workspace for one row of every thread; only bf16 rows need it where `always` is false.
inline Tensor row_workspace(const Context& ctx, int64_t cols, bool always) {
  return cpu::thread_scratch(ctx, always || ctx.compute() == DType::BF16 ? cols : 0);
}

}  // namespace agoq::ops
