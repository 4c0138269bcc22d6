#include "bench/fp8_product.h"

#include "ops/linear/linear.h"

namespace agoq::bench {

PreparedOp prepare(Workbench& bench, const Fp8Product& p) {
  const ops::Operand a = bench.codes(p.a, p.m, p.k), b = bench.codes(p.b, p.n, p.k);
  const Tensor c = bench.zeros(bench.ctx().compute(), {p.m, p.n});
  const auto run = [=, beta = p.beta, accumulation = p.accumulation](const Context& ctx) {
    ops::gemm(ctx, a, b, c, beta, accumulation);
  };
  return {run, 0, 2.0 * static_cast<double>(p.m) * static_cast<double>(p.n) * static_cast<double>(p.k)};
}

PreparedOp prepare_cast(Workbench& bench, int64_t rows, int64_t cols, ops::Major major, ops::OperandFormat format) {
  const Tensor x = bench.numbers({rows, cols});
  const bool turned = major == ops::Major::MN;
  const ops::Operand codes = turned ? bench.out(format, cols, rows) : bench.out(format, rows, cols);
  const auto into =
      turned ? static_cast<void (*)(const Context&, const Tensor&, const ops::Operand&)>(ops::to_fp8_transposed_into)
             : ops::to_fp8_into;
  return {[=](const Context& ctx) { into(ctx, x, codes); },
          static_cast<double>(x.bytes()) + fp8_bytes(codes.rows(), turned ? rows : cols, format)};
}

double fp8_bytes(int64_t rows, int64_t k, ops::OperandFormat format) {
  const int64_t padded = ops::padded_k(k, format.granularity);
  const int64_t scales = ops::scale_shape(rows, padded, format.granularity).count();
  return static_cast<double>(rows * padded) + 4.0 * static_cast<double>(scales);
}

}  // namespace agoq::bench
