// CPU kernel of ops/linear/linear.h: OpenBLAS on fp32 tiles.
#pragma once

#include "device/context.h"
#include "ops/linear/product.h"

namespace agoq::ops::cpu {

// fp32 copies of one tile of each matrix that is not fp32: at most 3 · 4 MiB. If all are, the only tile is the whole
// product.
struct ProductTiles {
  int64_t m = 0, n = 0, k = 0;
  Tensor a, b, c;
};
ProductTiles push_tiles(const Context& ctx, const Product& p);

void multiply(const Product& p, const ProductTiles& tiles);

}  // namespace agoq::ops::cpu
