#include <string_view>

#include "bench/op.h"
#include "ops/linear/fp8.h"
#include "ops/linear/linear.h"

namespace agoq::bench {
namespace {

using model::Param;
using ops::Accumulation;
using ops::Granularity;
using ops::Operand;
using ops::OperandFormat;

// How the operands of a product are scaled, and its sums made.
struct Fp8Way {
  std::string_view name;
  Granularity a, b;
  Accumulation accumulation;
};
constexpr Fp8Way kFast{"row, fast sums", Granularity::Row, Granularity::Row, Accumulation::Fast};
constexpr Fp8Way kRow{"row", Granularity::Row, Granularity::Row, Accumulation::Fp32};
constexpr Fp8Way kTensor{"tensor", Granularity::Tensor, Granularity::Tensor, Accumulation::Fp32};
constexpr Fp8Way kBlocks{"1x128 by 128x128", Granularity::Block1x128, Granularity::Block128x128, Accumulation::Fp32};
constexpr Fp8Way kTokenBlocks{"1x128 by 1x128", Granularity::Block1x128, Granularity::Block1x128, Accumulation::Fp32};

// c [m, n] = a [m, k] · b [n, k]ᵀ
struct ProductSize {
  int64_t m, n, k;
  double flops() const { return 2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k); }
};

double bytes_of(const Operand& x) {
  return static_cast<double>(x.data.bytes() + x.scale.bytes());
}

// Memory of an operand, to be filled.
Operand operand(const Workbench& b, int64_t rows, int64_t k, OperandFormat format) {
  const int64_t padded = ops::padded_k(k, format.granularity);
  return {b.zeros(format.dtype, {rows, padded}),
          b.zeros(DType::F32, ops::scale_shape(rows, padded, format.granularity)), format.granularity};
}

Operand random_operand(const Workbench& b, int64_t rows, int64_t k, Granularity granularity) {
  const Operand codes = operand(b, rows, k, {DType::E4M3, granularity});
  Scope scope(b.ctx());
  const Tensor numbers = b.ctx().empty({rows, k});
  b.fill(numbers);
  ops::to_fp8_into(b.ctx(), numbers, codes);
  return codes;
}

PreparedOp product(Workbench& b, const ProductSize& size, const Fp8Way& way) {
  const Operand a = random_operand(b, size.m, size.k, way.a), w = random_operand(b, size.n, size.k, way.b);
  const Tensor c = b.zeros(b.ctx().compute(), {size.m, size.n});
  return {[=](const Context& ctx) { ops::gemm(ctx, a, w, c, 0, way.accumulation); }, 0, size.flops()};
}

PreparedOp cast(Workbench& b, int64_t rows, int64_t cols, ops::Major major, Granularity granularity) {
  const Tensor x = b.numbers({rows, cols});
  const bool k_major = major == ops::Major::K;
  const Operand codes = operand(b, k_major ? rows : cols, k_major ? cols : rows, {DType::E4M3, granularity});
  const double bytes = static_cast<double>(x.bytes()) + bytes_of(codes);
  if (k_major) return {[=](const Context& ctx) { ops::to_fp8_into(ctx, x, codes); }, bytes};
  return {[=](const Context& ctx) { ops::to_fp8_transposed_into(ctx, x, codes); }, bytes};
}

}  // namespace

std::vector<Op> fp8_ops(const parallel::RunSpec& run_spec) {
  const model::LayerSpec spec(run_spec.model);
  const int64_t tokens = run_spec.tokens();
  std::vector<Op> all;
  const auto add = [&](const std::string& name, auto make) { all.push_back({name, OpPhase::Alone, make}); };
  for (const Param p : {Param::Qkv, Param::Out, Param::GateUp, Param::Down}) {
    const auto& w = spec[p];
    const auto add_product = [&](const char* part, const ProductSize& size, const Fp8Way& way) {
      add(fmt::format("{} {}, {}", w.name, part, way.name), [=](Workbench& b) { return product(b, size, way); });
    };
    for (const Fp8Way& way : {kFast, kRow, kTensor, kBlocks}) {
      add_product("forward", {tokens, w.rows, w.cols}, way);
      add_product("dx", {tokens, w.cols, w.rows}, way);
    }
    for (const Fp8Way& way : {kFast, kRow, kTensor, kTokenBlocks}) add_product("dw", {w.rows, w.cols, tokens}, way);
    for (const Granularity granularity : {Granularity::Row, Granularity::Block1x128}) {
      add(fmt::format("{}'s dy, {}", w.name, name_of(granularity)),
          [=, rows = w.rows](Workbench& b) { return cast(b, tokens, rows, ops::Major::K, granularity); });
      add(fmt::format("{}'s dy transposed, {}", w.name, name_of(granularity)),
          [=, rows = w.rows](Workbench& b) { return cast(b, tokens, rows, ops::Major::MN, granularity); });
    }
    for (const Granularity granularity : {Granularity::Row, Granularity::Block128x128}) {
      add(fmt::format("{}, {}", w.name, name_of(granularity)),
          [=, rows = w.rows, cols = w.cols](Workbench& b) { return cast(b, rows, cols, ops::Major::K, granularity); });
      add(fmt::format("{} transposed, {}", w.name, name_of(granularity)),
          [=, rows = w.rows, cols = w.cols](Workbench& b) { return cast(b, rows, cols, ops::Major::MN, granularity); });
    }
  }
  return all;
}

}  // namespace agoq::bench
