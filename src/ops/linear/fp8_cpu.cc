#include "ops/linear/fp8_cpu.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <limits>

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

// Numbers that their codes do not hold, on the way to the operand's counts.
struct LostOfRow {
  int64_t saturated = 0, flushed = 0;

  template <class Format>
  void add(float x, float inv, uint8_t code) {
    saturated += std::abs(x * inv) > Format::max();
    flushed += x != 0 && (code & 0x7f) == 0;
  }
  void give(const Operand& out) const {
    if (!out.counts) return;
    const auto sum = [&](int64_t i) { return std::atomic_ref(out.counts.as<int64_t>()[i]); };
    sum(0).fetch_add(saturated, std::memory_order_relaxed);
    sum(1).fetch_add(flushed, std::memory_order_relaxed);
  }
};

template <class Format, class T>
void make_codes(const Source<T>& x, const Operand& out, int64_t group_k) {
  parallel_for(x.rows, [&](int64_t row, int) {
    uint8_t* codes = out.data.raw() + row * out.k();
    std::fill_n(codes, out.k(), uint8_t{0});
    LostOfRow lost;
    for (int64_t first = 0; first < x.k; first += group_k) {
      const float scale = out.scale.as<float>()[scale_index(out, row, first)];
      if (!(scale > 0)) continue;  // zeros, or a number that is not finite
      const float inv = 1.0f / scale;
      for (int64_t i = first; i < std::min(first + group_k, x.k); ++i)
        codes[i] = static_cast<uint8_t>(Format::encode(x(row, i) * inv));
      if (!out.counts) continue;
      for (int64_t i = first; i < std::min(first + group_k, x.k); ++i) lost.add<Format>(x(row, i), inv, codes[i]);
    }
    lost.give(out);
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

// Products show a number that is not finite.
void raise(const ScaleSite& site, float amax) {
  float& most = *site.amax.as<float>();
  most = larger(most, amax);
  if (!(amax <= std::numeric_limits<float>::max())) *site.scale.as<float>() = std::numeric_limits<float>::quiet_NaN();
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

void to_fp8(const Tensor& x, Major x_major, const ScaleSite& site, const Operand& out, const Tensor& row_amax) {
  by_type(x.dtype, [&]<class T>() {
    const Source<T> source = source_of<T>(x, x_major);
    by_format(out.dtype(), [&]<class Format>() { make_codes<Format>(source, out, out.k()); });
    find_row_amax(source, out.k(), row_amax);
  });
  float amax = 0;
  for (int64_t row = 0; row < out.rows(); ++row) amax = larger(amax, row_amax.as<float>()[row]);
  raise(site, amax);
}

void note_amax(const Tensor& x, const Tensor& amax) {
  float most = *amax.as<float>();
  by_type(x.dtype, [&]<class T>() {
    for (int64_t i = 0; i < x.count(); ++i) most = larger(most, magnitude(to_float(x.as<T>()[i])));
  });
  *amax.as<float>() = most;
}

void to_fp8_transposed_with(const Tensor& x, const Operand& out) {
  by_format(out.dtype(), [&]<class Format>() {
    by_type(x.dtype, [&]<class T>() { make_codes<Format>(source_of<T>(x, Major::MN), out, out.k()); });
  });
}

void find_transposed_scale(const Tensor& w, DType dtype, const Tensor& scale) {
  constexpr int64_t kColumns = 64;  // that a thread goes down together: a line of memory or more
  const int64_t cols = w.cols();
  by_type(w.dtype, [&]<class T>() {
    parallel_for((cols + kColumns - 1) / kColumns, [&](int64_t strip, int) {
      const int64_t begin = strip * kColumns, end = std::min(begin + kColumns, cols);
      float* amax = scale.as<float>();
      std::fill(amax + begin, amax + end, 0.0f);
      for (int64_t row = 0; row < w.shape[0]; ++row)
        for (int64_t c = begin; c < end; ++c) amax[c] = larger(amax[c], magnitude(to_float(w.as<T>()[row * cols + c])));
    });
  });
  by_format(dtype, [&]<class Format>() {
    for (int64_t c = 0; c < cols; ++c) scale.as<float>()[c] = to_float(codec::scale_of<Format>(scale.as<float>()[c]));
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
      LostOfRow lost;
      for (int64_t i = 0; i < x.rows(); ++i) {
        const float number = Format::decode(x.data.raw()[i * x.k() + row]), by = x.scale.as<float>()[i] * inv;
        codes[i] = static_cast<uint8_t>(Format::encode(number * by));
        lost.add<Format>(number, by, codes[i]);
      }
      lost.give(out);
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
