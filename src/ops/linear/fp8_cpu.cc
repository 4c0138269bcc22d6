#include "ops/linear/fp8_cpu.h"

#include <algorithm>
#include <bit>

#include "codec/formats.h"
#include "ops/cpu.h"

namespace agoq::ops::cpu {
namespace {

// x[row, i] of the operand, whichever way it lies in memory.
template <class T>
struct Source {
  const T* data;
  int64_t rows, k, row_stride, k_stride;
  float operator()(int64_t row, int64_t i) const { return to_float(data[row * row_stride + i * k_stride]); }
};

template <class T>
Source<T> source_of(const Tensor& x, Major major) {
  const int64_t cols = x.cols();
  if (major == Major::K) return {x.as<T>(), x.shape[0], cols, cols, 1};
  return {x.as<T>(), cols, x.shape[0], 1, cols};
}

// Rows and numbers along k that share a scale.
struct ScaleGroup {
  int64_t rows, k;
};
ScaleGroup group_of(const Operand& x) {
  switch (x.granularity) {
    case Granularity::Row:
      return {1, x.k()};
    case Granularity::Block1x128:
      return {1, kScaleBlock};
    case Granularity::Block128x128:
      return {kScaleBlock, kScaleBlock};
    default:
      return {x.rows(), x.k()};
  }
}

// Of magnitudes as integers, so that a NaN is the largest of all.
float larger(float a, float b) {
  return std::bit_cast<float>(std::max(std::bit_cast<uint32_t>(a), std::bit_cast<uint32_t>(b)));
}
float magnitude(float x) {
  return std::bit_cast<float>(std::bit_cast<uint32_t>(x) & codec::kAbsMask);
}

template <class T>
void find_row_amax(const Source<T>& x, int64_t group_k, const Tensor& row_amax) {
  parallel_for(x.rows, [&](int64_t row, int) {
    float* amax = row_amax.as<float>() + row * row_amax.cols();
    std::fill_n(amax, row_amax.cols(), 0.0f);
    for (int64_t i = 0; i < x.k; ++i) amax[i / group_k] = larger(amax[i / group_k], magnitude(x(row, i)));
  });
}

template <class Format>
void make_scales(const Operand& out, const ScaleGroup& group, const Tensor& row_amax) {
  float* scales = out.scale.as<float>();
  std::fill_n(scales, out.scale.count(), 0.0f);  // padding has one too
  for (int64_t first = 0; first < out.rows(); first += group.rows)
    for (int64_t block = 0; block < row_amax.cols(); ++block) {
      float amax = 0;
      for (int64_t row = first; row < std::min(first + group.rows, out.rows()); ++row)
        amax = larger(amax, row_amax.as<float>()[row * row_amax.cols() + block]);
      scales[scale_index(out, first, block * group.k)] = to_float(codec::scale_of<Format>(amax));
    }
}

template <class Format, class T>
void make_codes(const Source<T>& x, const Operand& out, int64_t group_k) {
  parallel_for(x.rows, [&](int64_t row, int) {
    uint8_t* codes = out.data.raw() + row * out.k();
    std::fill_n(codes, out.k(), uint8_t{0});
    for (int64_t first = 0; first < x.k; first += group_k) {
      const float scale = out.scale.as<float>()[scale_index(out, row, first)];
      if (!(scale > 0)) continue;  // zeros, or a number that is not finite
      const float inv = 1.0f / scale;
      for (int64_t i = first; i < std::min(first + group_k, x.k); ++i)
        codes[i] = static_cast<uint8_t>(Format::encode(x(row, i) * inv));
    }
  });
}

template <class Format>
void encode(const Tensor& x, Major x_major, const Operand& out, const Tensor& row_amax) {
  const ScaleGroup group = group_of(out);
  by_type(x.dtype, [&]<class T>() {
    const Source<T> source = source_of<T>(x, x_major);
    find_row_amax(source, group.k, row_amax);
    make_scales<Format>(out, group, row_amax);
    make_codes<Format>(source, out, group.k);
  });
  if (out.max_scale) largest_scale(out.scale, out.max_scale);
}

// fn.operator()<Format>() with what the codes of `dtype` mean.
template <class Fn>
void by_format(DType dtype, Fn&& fn) {
  dtype == DType::E4M3 ? fn.template operator()<codec::OperandE4M3>() : fn.template operator()<codec::OperandE5M2>();
}

}  // namespace

Shape row_amax_shape(const Operand& out) {
  return {out.rows(), out.k() > 0 ? out.k() / group_of(out).k : 0};
}

void to_fp8(const Tensor& x, Major x_major, const Operand& out, const Tensor& row_amax) {
  by_format(out.dtype(), [&]<class Format>() { encode<Format>(x, x_major, out, row_amax); });
}

void to_fp8_transposed(const Tensor& x, const Tensor& known_scale, const Operand& out) {
  std::fill_n(out.scale.as<float>(), out.scale.count(), *known_scale.as<float>());
  by_format(out.dtype(), [&]<class Format>() {
    by_type(x.dtype, [&]<class T>() { make_codes<Format>(source_of<T>(x, Major::MN), out, out.k()); });
  });
}

void transpose_codes(const Operand& x, const Operand& out) {
  const float max_scale = *x.max_scale.as<float>(), inv = max_scale > 0 ? 1.0f / max_scale : 0.0f;
  *out.scale.as<float>() = max_scale;
  by_format(x.dtype(), [&]<class Format>() {
    parallel_for(out.rows(), [&](int64_t row, int) {
      uint8_t* codes = out.data.raw() + row * out.k();
      std::fill_n(codes, out.k(), uint8_t{0});
      if (!(inv > 0)) return;  // zeros, or a number that is not finite
      for (int64_t i = 0; i < x.rows(); ++i)
        codes[i] = static_cast<uint8_t>(
            Format::encode(Format::decode(x.data.raw()[i * x.k() + row]) * (x.scale.as<float>()[i] * inv)));
    });
  });
}

void to_numbers(const Operand& x, const Tensor& numbers) {
  by_format(x.dtype(), [&]<class Format>() {
    by_type(numbers.dtype, [&]<class T>() {
      parallel_for(numbers.shape[0], [&](int64_t row, int) {
        for (int64_t i = 0; i < numbers.cols(); ++i)
          numbers.as<T>()[row * numbers.cols() + i] = from_float<T>(Format::decode(x.data.raw()[row * x.k() + i]) *
                                                                    x.scale.as<float>()[scale_index(x, row, i)]);
      });
    });
  });
}

void largest_scale(const Tensor& scales, const Tensor& to) {
  float most = 0;
  for (int64_t i = 0; i < scales.count(); ++i) most = larger(most, scales.as<float>()[i]);
  *to.as<float>() = most;
}

}  // namespace agoq::ops::cpu
