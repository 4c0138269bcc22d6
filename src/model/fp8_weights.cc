#include "model/fp8_weights.h"

namespace agoq::model {
namespace {

using ops::Granularity;

ops::Operand allocate(Arena& arena, int64_t rows, int64_t k, ops::OperandFormat format) {
  const int64_t padded = ops::padded_k(k, format.granularity);
  return {arena.allocate(Owner::Fp8Weights, format.dtype, {rows, padded}),
          arena.allocate(Owner::Fp8Weights, DType::F32, ops::scale_shape(rows, padded, format.granularity)),
          format.granularity};
}

// Scales of the transpose can be left by the cast for forward unless they belong to blocks.
bool leaves_scales(ops::OperandFormat format) {
  return format.granularity == Granularity::Row || format.granularity == Granularity::Tensor;
}

}  // namespace

Fp8Weights::Fp8Weights(Arena& arena, const LayerSpec& spec, const std::vector<ParamId>& ids, size_t slots,
                       Fp8Holding holding) {
  matrices_.resize(slots);
  for (const ParamId& id : ids) {
    const ParamRow& row = spec[id.param];
    if (!in_layer(id.param) || row.one_dimensional() || id.layer < holding.begin || id.layer >= holding.end) continue;
    Matrix& m = matrices_[id.index()];
    if (holding.cached) {
      m.codes = allocate(arena, row.rows, row.cols, holding.format);
      m.transposed = allocate(arena, row.cols, row.rows, holding.format);
    } else if (leaves_scales(holding.format)) {
      m.transposed_scale = arena.allocate(Owner::Fp8Weights, DType::F32,
                                          ops::scale_shape(row.cols, row.rows, holding.format.granularity));
    }
  }
}

ops::LinearWeight Fp8Weights::of(const Context& ctx, const ParamId& id, const Tensor& numbers) const {
  if (matrices_.empty() || !ctx.fp8) return numbers;
  const Matrix& m = matrices_[id.index()];
  if (!m.codes.data) return {numbers, m.transposed_scale};
  if (!m.current)
    ops::weight_to_fp8(ctx, numbers, ops::counted(ctx, m.codes, ops::Fp8Role::W),
                       ops::counted(ctx, m.transposed, ops::Fp8Role::W));
  m.current = true;
  return {numbers, m.codes, m.transposed};
}

void Fp8Weights::outdate() {
  for (Matrix& m : matrices_) m.current = false;
}

}  // namespace agoq::model
