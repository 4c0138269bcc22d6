#include "ops/linear/linear_cpu.h"

#include <cblas.h>

#include <algorithm>

#include "ops/cpu.h"

namespace agoq::ops::cpu {
namespace {

// Each number widened is used 2048 times, so widening costs little beside the product.
constexpr int64_t kTile = 1024;

// Rows and columns [row, row + rows) x [col, col + cols) of a matrix.
struct MatrixTile {
  int64_t row, col, rows, cols;
};

// fp32 numbers of a window and the distance of its rows: the matrix itself, or a copy in a tile.
struct Panel {
  float* data;
  int64_t stride;
};

Panel open(const Tensor& matrix, const Tensor& tile, const MatrixTile& w) {
  if (matrix.dtype == DType::F32) return {matrix.as<float>() + w.row * matrix.cols() + w.col, matrix.cols()};
  return {tile.as<float>(), w.cols};
}

// The scale of data[i, j], whichever of the two runs along k.
float scale_of(const Operand& x, int64_t i, int64_t j) {
  const bool k_major = x.major == Major::K;
  return x.scale.as<float>()[scale_index(x, k_major ? i : j, k_major ? j : i)];
}

template <class Code>
void decode(const Operand& x, const MatrixTile& w, const Panel& panel) {
  const Code* codes = x.data.as<Code>() + w.row * x.data.cols() + w.col;
  parallel_for(w.rows, [&](int64_t i, int) {
    for (int64_t j = 0; j < w.cols; ++j)
      panel.data[i * panel.stride + j] = to_float(codes[i * x.data.cols() + j]) * scale_of(x, w.row + i, w.col + j);
  });
}

void widen(const Tensor& matrix, const MatrixTile& w, const Panel& panel) {
  const Bf16* first = matrix.as<Bf16>() + w.row * matrix.cols() + w.col;
  parallel_for(w.rows,
               [&](int64_t i, int) { load_row(first + i * matrix.cols(), w.cols, panel.data + i * panel.stride); });
}

// A window of data as numbers.
Panel read(const Operand& x, const Tensor& tile, const MatrixTile& w) {
  const Panel panel = open(x.data, tile, w);
  if (x.dtype() == DType::BF16) widen(x.data, w, panel);
  if (x.dtype() == DType::E4M3) decode<E4M3>(x, w, panel);
  if (x.dtype() == DType::E5M2) decode<E5M2>(x, w, panel);
  return panel;
}

template <class T>
void add_row(const T* x, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) y[i] += to_float(x[i]);
}

void add(const Tensor& term, int64_t first, int64_t n, float* y) {
  by_type(term.dtype, [&]<class T> { add_row(term.as<T>() + first, n, y); });
}

// The tile of c before any product: beta·c + residual + bias.
void preload(const Product& p, const MatrixTile& w, const Panel& c) {
  parallel_for(w.rows, [&](int64_t i, int) {
    const int64_t first = (w.row + i) * p.n() + w.col;
    float* y = c.data + i * c.stride;
    if (p.beta == 0) {
      std::fill_n(y, w.cols, 0.0f);
    } else {
      by_type(p.c.dtype, [&]<class T> {
        const T* before = p.c.as<T>() + first;
        for (int64_t j = 0; j < w.cols; ++j) y[j] = p.beta * to_float(before[j]);
      });
    }
    if (p.residual) add(p.residual, first, w.cols, y);
    if (p.bias) add(p.bias, w.col, w.cols, y);
  });
}

void write(const Tensor& matrix, const MatrixTile& w, const Panel& panel) {
  if (matrix.dtype == DType::F32) return;
  Bf16* first = matrix.as<Bf16>() + w.row * matrix.cols() + w.col;
  parallel_for(w.rows,
               [&](int64_t i, int) { store_row(panel.data + i * panel.stride, w.cols, first + i * matrix.cols()); });
}

void multiply_tile(const Product& p, const ProductTiles& tiles, const MatrixTile& w) {
  const Panel c = open(p.c, tiles.c, w);
  const bool preloaded = p.residual || p.bias || (p.beta != 0 && p.c.dtype != DType::F32);
  if (preloaded) preload(p, w, c);
  float beta = preloaded ? 1.0f : p.beta;
  const bool a_k_major = p.a.major == Major::K, b_k_major = p.b.major == Major::K;
  for (int64_t k = 0; k < p.k(); k += tiles.k) {
    const int64_t kn = std::min(tiles.k, p.k() - k);
    const MatrixTile wa = a_k_major ? MatrixTile{w.row, k, w.rows, kn} : MatrixTile{k, w.row, kn, w.rows};
    const MatrixTile wb = b_k_major ? MatrixTile{w.col, k, w.cols, kn} : MatrixTile{k, w.col, kn, w.cols};
    const Panel a = read(p.a, tiles.a, wa), b = read(p.b, tiles.b, wb);
    cblas_sgemm(CblasRowMajor, a_k_major ? CblasNoTrans : CblasTrans, b_k_major ? CblasTrans : CblasNoTrans,
                static_cast<blasint>(w.rows), static_cast<blasint>(w.cols), static_cast<blasint>(kn), 1.0f, a.data,
                static_cast<blasint>(a.stride), b.data, static_cast<blasint>(b.stride), beta, c.data,
                static_cast<blasint>(c.stride));
    beta = 1.0f;
  }
  write(p.c, w, c);
}

}  // namespace

ProductTiles push_tiles(const Context& ctx, const Product& p) {
  ProductTiles tiles{p.m(), p.n(), p.k(), {}, {}, {}};
  const auto numbers = [](const Tensor& t) { return t.dtype == DType::F32; };
  if (numbers(p.a.data) && numbers(p.b.data) && numbers(p.c)) return tiles;
  tiles.m = std::min(kTile, tiles.m);
  tiles.n = std::min(kTile, tiles.n);
  tiles.k = std::min(kTile, tiles.k);
  if (!numbers(p.a.data)) tiles.a = scratch(ctx, DType::F32, {tiles.m, tiles.k});
  if (!numbers(p.b.data)) tiles.b = scratch(ctx, DType::F32, {tiles.k, tiles.n});
  if (!numbers(p.c)) tiles.c = scratch(ctx, DType::F32, {tiles.m, tiles.n});
  return tiles;
}

void multiply(const Product& p, const ProductTiles& tiles) {
  for (int64_t row = 0; row < p.m(); row += tiles.m)
    for (int64_t col = 0; col < p.n(); col += tiles.n)
      multiply_tile(p, tiles, {row, col, std::min(tiles.m, p.m() - row), std::min(tiles.n, p.n() - col)});
}

}  // namespace agoq::ops::cpu
