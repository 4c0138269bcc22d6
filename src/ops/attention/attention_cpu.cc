#include "ops/attention/attention_cpu.h"

#include <cfloat>
#include <cmath>
#include <limits>

#include "ops/cpu.h"
#include "ops/linear/tile_product.h"

// A query tile holds the rows of all query heads of one key/value head for a few tokens: row r = token · group +
// member, as they lie in qkv. Scores are held transposed, [keys, rows]: their maximum and sum over keys, and everything
// per row, is then elementwise vector work, and K and V enter the products as they are.
namespace agoq::ops::cpu {
namespace {

constexpr int64_t kRows = 64;  // query rows of a tile, at least one token
constexpr int64_t kKeys = 64;  // keys of a tile

struct Tiling {
  explicit Tiling(const Heads& heads)
      : group(heads.group()),
        dim(heads.dim),
        tokens(std::max<int64_t>(kRows / group, 1)),
        ld_rows(padded(tokens * group)),
        ld_dim(padded(dim)) {}
  int64_t group, dim;
  int64_t tokens;           // of a query tile
  int64_t ld_rows, ld_dim;  // rows and D, padded
};

// Hands out consecutive arrays of one block of memory, each on its own cache lines.
struct Slicer {
  float* memory = nullptr;
  int64_t used = 0;
  float* take(int64_t floats) {
    float* slice = memory ? memory + used : nullptr;
    used += (floats + 15) / 16 * 16;
    return slice;
  }
};

struct ForwardTile {
  ForwardTile(const Tiling& t, float* memory) {
    Slicer slicer{memory};
    qt = slicer.take(t.dim * t.ld_rows);
    k = slicer.take(kKeys * t.ld_dim);
    v = slicer.take(kKeys * t.ld_dim);
    s = slicer.take(kKeys * t.ld_rows);
    o = slicer.take(t.ld_rows * t.ld_dim);
    most = slicer.take(t.ld_rows);
    factor = slicer.take(t.ld_rows);
    sum = slicer.take(t.ld_rows);
    floats = slicer.used;
  }
  float* qt;                   // [D, rows], scaled
  float *k, *v;                // [keys, D]
  float* s;                    // [keys, rows]: scores, then weights
  float* o;                    // [rows, D]
  float *most, *factor, *sum;  // [rows]: running maximum, its change, running sum
  int64_t floats;
};

struct BackwardTile {
  BackwardTile(const Tiling& t, float* memory) {
    Slicer slicer{memory};
    for (float** rows : {&q, &d_o, &dq}) *rows = slicer.take(t.ld_rows * t.ld_dim);
    for (float** columns : {&qt, &d_ot}) *columns = slicer.take(t.dim * t.ld_rows);
    for (float** keys : {&k, &v}) *keys = slicer.take(kKeys * t.ld_dim);
    for (float** scores : {&p, &ds}) *scores = slicer.take(kKeys * t.ld_rows);
    for (float** row : {&lse, &delta}) *row = slicer.take(t.ld_rows);
    floats = slicer.used;
  }
  float *q = nullptr, *d_o = nullptr, *dq = nullptr;  // [rows, D], q scaled
  float *qt = nullptr, *d_ot = nullptr;               // [D, rows]
  float *k = nullptr, *v = nullptr;                   // [keys, D]
  float *p = nullptr, *ds = nullptr;                  // [keys, rows]
  float *lse = nullptr, *delta = nullptr;             // [rows]; delta = Σ do ∘ o
  int64_t floats = 0;
};

// Which keys each token sees.
struct Mask {
  const int32_t* document_start;
  int64_t window;
  int64_t start(int64_t t) const {
    const int64_t first = document_start[t];
    return window > 0 ? std::max(first, t - window + 1) : first;
  }
  int64_t first_key(int64_t begin, int64_t end) const {
    int64_t first = begin;
    for (int64_t t = begin; t < end; ++t) first = std::min(first, start(t));
    return first;
  }
  // Scores [keys, rows] of pairs that do not see each other become -Inf.
  void apply(const Tiling& tiling, int64_t t0, int64_t t1, int64_t k0, int64_t k1, float* s) const {
    constexpr float kHidden = -std::numeric_limits<float>::infinity();
    for (int64_t j = std::max(k0, t0 + 1); j < k1; ++j)
      std::fill_n(s + (j - k0) * tiling.ld_rows, (j - t0) * tiling.group, kHidden);
    for (int64_t t = t0; t < t1; ++t)
      for (int64_t j = k0; j < std::min(start(t), k1); ++j)
        std::fill_n(s + (j - k0) * tiling.ld_rows + (t - t0) * tiling.group, tiling.group, kHidden);
  }
};

// Head columns [column, column + D) of rows [begin, end) -> to [end - begin, ld_dim], zeros behind D.
template <class T>
void load_keys(const Tiling& t, const Tensor& from, int64_t column, int64_t begin, int64_t end, float* to) {
  for (int64_t r = begin; r < end; ++r, to += t.ld_dim) {
    const T* row = static_cast<const T*>(from.data) + r * from.cols() + column;
    for (int64_t d = 0; d < t.dim; ++d) to[d] = to_float(row[d]);
    for (int64_t d = t.dim; d < t.ld_dim; ++d) to[d] = 0;
  }
}

// The same for the group's heads side by side from `column` on: row = token · group + member, times `scale`.
template <class T>
void load_queries(const Tiling& t, const Tensor& from, int64_t column, int64_t begin, int64_t end, float scale,
                  float* to) {
  for (int64_t r = begin; r < end; ++r) {
    const T* row = static_cast<const T*>(from.data) + r * from.cols() + column;
    for (int64_t g = 0; g < t.group; ++g, row += t.dim, to += t.ld_dim) {
      for (int64_t d = 0; d < t.dim; ++d) to[d] = to_float(row[d]) * scale;
      for (int64_t d = t.dim; d < t.ld_dim; ++d) to[d] = 0;
    }
  }
}

// Back: rows times their factor -> the group's heads of tokens [begin, end).
template <class T, class Factor>
void store_queries(const Tiling& t, const float* from, int64_t column, int64_t begin, int64_t end, Factor&& factor,
                   const Tensor& to) {
  int64_t row = 0;
  for (int64_t token = begin; token < end; ++token) {
    T* out = static_cast<T*>(to.data) + token * to.cols() + column;
    for (int64_t g = 0; g < t.group; ++g, ++row, out += t.dim, from += t.ld_dim) {
      const float f = factor(row);
      for (int64_t d = 0; d < t.dim; ++d) out[d] = from_float<T>(from[d] * f);
    }
  }
}

// rows [n, ld_dim] -> columns [D, ld_rows], zeros behind n.
void transpose(const Tiling& t, const float* rows, int64_t n, float* columns) {
  for (int64_t d = 0; d < t.dim; ++d) {
    float* column = columns + d * t.ld_rows;
    for (int64_t r = 0; r < n; ++r) column[r] = rows[r * t.ld_dim + d];
    for (int64_t r = n; r < t.ld_rows; ++r) column[r] = 0;
  }
}

// One step of the running softmax: scores s [keys, rows] become weights relative to the new maximum; `factor` is what
// the sums made so far shrink by.
void softmax_step(const Tiling& t, int64_t keys, const ForwardTile& tile) {
  const int64_t n = t.ld_rows;
  for (int64_t r = 0; r < n; ++r) tile.factor[r] = tile.most[r];
  for (int64_t j = 0; j < keys; ++j)
    for (int64_t r = 0; r < n; ++r) tile.most[r] = std::max(tile.most[r], tile.s[j * n + r]);
  for (int64_t r = 0; r < n; ++r) {
    tile.factor[r] = fast_exp(tile.factor[r] - tile.most[r]);
    tile.sum[r] *= tile.factor[r];
  }
  for (int64_t j = 0; j < keys; ++j)
    for (int64_t r = 0; r < n; ++r) {
      const float p = fast_exp(tile.s[j * n + r] - tile.most[r]);
      tile.s[j * n + r] = p;
      tile.sum[r] += p;
    }
}

template <class T>
void forward_tile(const Tensor& qkv, const AttentionSpec& spec, const Mask& mask, const Tiling& t, int64_t head,
                  int64_t t0, int64_t t1, const Tensor& o, float* lse, const ForwardTile& tile) {
  const Heads& heads = spec.heads;
  const int64_t rows = (t1 - t0) * t.group, q_column = head * t.group * t.dim;
  load_queries<T>(t, qkv, q_column, t0, t1, spec.scale(), tile.o);
  transpose(t, tile.o, rows, tile.qt);
  std::fill_n(tile.o, rows * t.ld_dim, 0.0f);
  std::fill_n(tile.most, t.ld_rows, -FLT_MAX);
  std::fill_n(tile.sum, t.ld_rows, 0.0f);
  for (int64_t k0 = mask.first_key(t0, t1); k0 < t1; k0 += kKeys) {
    const int64_t k1 = std::min(k0 + kKeys, t1), keys = k1 - k0;
    load_keys<T>(t, qkv, heads.k_begin() + head * t.dim, k0, k1, tile.k);
    load_keys<T>(t, qkv, heads.v_begin() + head * t.dim, k0, k1, tile.v);
    tile_product<false>(keys, t.ld_rows, t.dim, {tile.k, t.ld_dim, 1}, tile.qt, t.ld_rows, tile.s, t.ld_rows);
    mask.apply(t, t0, t1, k0, k1, tile.s);
    softmax_step(t, keys, tile);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t d = 0; d < t.ld_dim; ++d) tile.o[r * t.ld_dim + d] *= tile.factor[r];
    tile_product<true>(rows, t.ld_dim, keys, {tile.s, 1, t.ld_rows}, tile.v, t.ld_dim, tile.o, t.ld_dim);
  }
  store_queries<T>(
      t, tile.o, q_column, t0, t1, [&](int64_t r) { return 1.0f / tile.sum[r]; }, o);
  if (!lse) return;
  for (int64_t r = 0; r < rows; ++r)
    lse[(head * t.group + r % t.group) * qkv.shape[0] + t0 + r / t.group] = tile.most[r] + std::log(tile.sum[r]);
}

// Tokens [begin, end) that see no key before `begin`, and are seen by no token from `end` on.
struct Segment {
  int64_t begin, end;
};

// Writes the borders of the segments into cuts [T + 1]: begin, ..., T, at its end; returns the first of them.
const int32_t* find_segments(const Mask& mask, int64_t tokens, int32_t* cuts, int64_t& segments) {
  int32_t* first = cuts + tokens;
  *first = static_cast<int32_t>(tokens);
  int64_t earliest = tokens;  // key that a token from t on sees
  for (int64_t t = tokens - 1; t >= 0; --t) {
    earliest = std::min(earliest, mask.start(t));
    if (earliest >= t) *--first = static_cast<int32_t>(t);
  }
  segments = cuts + tokens - first;
  return first;
}

struct BackwardInputs {
  const Tensor &d_o, &qkv, &o, &lse, &dqkv;
};

// All gradients of one key/value head in one segment. dk, dv [segment, ld_dim] are summed over query tiles in order.
template <class T>
void backward_segment(const BackwardInputs& in, const AttentionSpec& spec, const Mask& mask, const Tiling& t,
                      int64_t head, Segment segment, float* dk, float* dv, const BackwardTile& tile) {
  const Heads& heads = spec.heads;
  const int64_t ld = t.ld_dim, ldr = t.ld_rows, q_column = head * t.group * t.dim;
  const int64_t k_column = heads.k_begin() + head * t.dim, v_column = heads.v_begin() + head * t.dim;
  const float scale = spec.scale(), *lse = in.lse.as<float>() + head * t.group * in.qkv.shape[0];
  std::fill_n(dk, (segment.end - segment.begin) * ld, 0.0f);
  std::fill_n(dv, (segment.end - segment.begin) * ld, 0.0f);
  for (int64_t t0 = segment.begin; t0 < segment.end; t0 += t.tokens) {
    const int64_t t1 = std::min(t0 + t.tokens, segment.end), rows = (t1 - t0) * t.group;
    load_queries<T>(t, in.o, q_column, t0, t1, 1, tile.dq);
    load_queries<T>(t, in.d_o, q_column, t0, t1, 1, tile.d_o);
    load_queries<T>(t, in.qkv, q_column, t0, t1, scale, tile.q);
    for (int64_t r = 0; r < rows; ++r) {
      const float *o_row = tile.dq + r * ld, *d_row = tile.d_o + r * ld;
      tile.delta[r] = sum(t.dim, [&](int64_t d) { return o_row[d] * d_row[d]; });
      tile.lse[r] = lse[r % t.group * in.qkv.shape[0] + t0 + r / t.group];
    }
    for (int64_t r = rows; r < ldr; ++r) tile.delta[r] = tile.lse[r] = 0;
    transpose(t, tile.q, rows, tile.qt);
    transpose(t, tile.d_o, rows, tile.d_ot);
    std::fill_n(tile.dq, rows * ld, 0.0f);
    for (int64_t k0 = mask.first_key(t0, t1); k0 < t1; k0 += kKeys) {
      const int64_t k1 = std::min(k0 + kKeys, t1), keys = k1 - k0, at = (k0 - segment.begin) * ld;
      load_keys<T>(t, in.qkv, k_column, k0, k1, tile.k);
      load_keys<T>(t, in.qkv, v_column, k0, k1, tile.v);
      tile_product<false>(keys, ldr, t.dim, {tile.k, ld, 1}, tile.qt, ldr, tile.p, ldr);
      tile_product<false>(keys, ldr, t.dim, {tile.v, ld, 1}, tile.d_ot, ldr, tile.ds, ldr);
      mask.apply(t, t0, t1, k0, k1, tile.p);
      for (int64_t j = 0; j < keys; ++j)
        for (int64_t r = 0; r < ldr; ++r) {
          const float p = fast_exp(tile.p[j * ldr + r] - tile.lse[r]);
          tile.p[j * ldr + r] = p;
          tile.ds[j * ldr + r] = p * (tile.ds[j * ldr + r] - tile.delta[r]);
        }
      tile_product<true>(keys, ld, rows, {tile.p, ldr, 1}, tile.d_o, ld, dv + at, ld);
      tile_product<true>(keys, ld, rows, {tile.ds, ldr, 1}, tile.q, ld, dk + at, ld);
      tile_product<true>(rows, ld, keys, {tile.ds, 1, ldr}, tile.k, ld, tile.dq, ld);
    }
    store_queries<T>(
        t, tile.dq, q_column, t0, t1, [&](int64_t) { return scale; }, in.dqkv);
  }
  for (int64_t r = segment.begin; r < segment.end; ++r) {
    T* row = static_cast<T*>(in.dqkv.data) + r * in.dqkv.cols();
    store_row(dk + (r - segment.begin) * ld, t.dim, row + k_column);
    store_row(dv + (r - segment.begin) * ld, t.dim, row + v_column);
  }
}

}  // namespace

int64_t attention_floats(const Heads& heads) {
  return ForwardTile(Tiling(heads), nullptr).floats;
}
int64_t attention_backward_floats(const Heads& heads) {
  return BackwardTile(Tiling(heads), nullptr).floats;
}
int64_t attention_padded_dim(const Heads& heads) {
  return padded(heads.dim);
}

void attention(const Context& ctx, const Tensor& qkv, const AttentionSpec& spec, const Tensor& o, const Tensor& lse,
               const Tensor& scratch) {
  const Tiling tiling(spec.heads);
  const Mask mask{ctx.document_start.as<int32_t>(), spec.window};
  const int64_t tokens = qkv.shape[0], tiles = (tokens + tiling.tokens - 1) / tiling.tokens;
  float* lse_data = lse ? lse.as<float>() : nullptr;
  by_type(qkv.dtype, [&]<class T>() {
#pragma omp parallel
    {
      const ForwardTile tile(tiling, thread_row(scratch, omp_get_thread_num()));
#pragma omp for schedule(dynamic)
      for (int64_t i = 0; i < tiles * spec.heads.kv; ++i) {
        const int64_t t0 = i % tiles * tiling.tokens, t1 = std::min(t0 + tiling.tokens, tokens);
        forward_tile<T>(qkv, spec, mask, tiling, i / tiles, t0, t1, o, lse_data, tile);
      }
    }
  });
}

// Segments times key/value heads are independent, whatever thread takes them: the sums have one order.
void attention_backward(const Context& ctx, const Tensor& d_o, const Tensor& qkv, const Tensor& o, const Tensor& lse,
                        const AttentionSpec& spec, const Tensor& dqkv, const AttentionBackwardScratch& scratch) {
  const Tiling tiling(spec.heads);
  const Mask mask{ctx.document_start.as<int32_t>(), spec.window};
  const int64_t tokens = qkv.shape[0];
  int64_t segments = 0;
  const int32_t* cuts = find_segments(mask, tokens, scratch.cuts.as<int32_t>(), segments);
  const BackwardInputs in{d_o, qkv, o, lse, dqkv};
  by_type(qkv.dtype, [&]<class T>() {
#pragma omp parallel
    {
      const BackwardTile tile(tiling, thread_row(scratch.threads, omp_get_thread_num()));
#pragma omp for schedule(dynamic)
      for (int64_t i = 0; i < segments * spec.heads.kv; ++i) {
        const int64_t head = i % spec.heads.kv;
        const Segment segment{cuts[i / spec.heads.kv], cuts[i / spec.heads.kv + 1]};
        const int64_t sums = (head * tokens + segment.begin) * tiling.ld_dim;
        backward_segment<T>(in, spec, mask, tiling, head, segment, scratch.dk.as<float>() + sums,
                            scratch.dv.as<float>() + sums, tile);
      }
    }
  });
}

}  // namespace agoq::ops::cpu
