// CPU kernel of ops/linear.h: OpenBLAS on fp32 tiles.
#pragma once

#include "device/context.h"
#include "ops/linear.h"

namespace agoq::ops::cpu {

// c = op(a)·op(b) + beta·c + residual + bias; op(a) [m, k], op(b) [k, n], c and residual [m, n], bias [n].
struct Product {
  Tensor a, b, c;
  bool transpose_a = false, transpose_b = false;
  float beta = 0;
  Tensor residual, bias;
  int64_t m = 0, n = 0, k = 0;
};

// fp32 copies of one tile of each bf16 operand: at most 3 · 4 MiB. Without bf16 operands the only tile is the whole
// product.
struct ProductTiles {
  int64_t m = 0, n = 0, k = 0;
  Tensor a, b, c;
};
ProductTiles push_tiles(const Context& ctx, const Product& p);

void multiply(const Product& p, const ProductTiles& tiles);

}  // namespace agoq::ops::cpu
