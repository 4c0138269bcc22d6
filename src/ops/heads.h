// Heads of grouped-query attention and where q, k, v lie in one row of qkv.
#pragma once

#include <cstdint>

namespace agoq::ops {

struct Heads {
  int64_t query = 0;  // Hq
  int64_t kv = 0;     // Hkv, divides Hq
  int64_t dim = 0;    // D
  int64_t q_cols() const { return query * dim; }
  int64_t kv_cols() const { return kv * dim; }
  int64_t cols() const { return (query + 2 * kv) * dim; }  // q | k | v
  int64_t k_begin() const { return query * dim; }
  int64_t v_begin() const { return (query + kv) * dim; }
  int64_t group() const { return query / kv; }  // query heads per key/value head
};

}  // namespace agoq::ops
