// One rank of a world of threads with gradients of its own, and what they hold, read by a scalar loop that shares
// nothing with src/codec.
#pragma once

#include <random>
#include <vector>

#include "codec/reference.h"
#include "comm/thread_transport.h"
#include "parallel/gradients.h"
#include "parallel/tiny_state.h"

namespace agoq::test {

// [rows, cols] of a stored tensor.
inline std::vector<float> decoded(const codec::Quantized& q) {
  std::vector<float> values;
  if (!q.scales) {
    const Tensor plain = q.plain();
    for (int64_t i = 0; i < plain.count(); ++i)
      values.push_back(q.codec == codec::Codec::Fp32 ? plain.as<float>()[i] : to_float(plain.as<Bf16>()[i]));
    return values;
  }
  const codec::reference::Format format = codec::reference::format_of(q.codec);
  double level[256];
  for (uint32_t code = 0; code < 256; ++code) level[code] = codec::reference::decode(format, code);
  for (int64_t r = 0; r < q.rows; ++r)
    for (int64_t block = 0; block < q.row.blocks(); ++block)
      for (int64_t i = 0; i < q.row.size(block); ++i) {
        const double scale = to_float(q.row_scales(r)[block]);
        values.push_back(static_cast<float>(level[q.row_codes(r)[q.row.begin(block) + i]] * scale));
      }
  return values;
}

// What the reference makes of them in a format, rounded to nearest or with these draws, and read back.
inline std::vector<float> through(codec::Codec codec, const codec::RowBlocks& row, const std::vector<float>& values,
                                  const codec::Rounding& rounding = codec::Rounding::nearest()) {
  std::vector<float> result;
  if (codec == codec::Codec::Fp32) return values;
  if (codec == codec::Codec::Bf16) {
    for (const float x : values) result.push_back(to_float(to_bf16(x)));
    return result;
  }
  const codec::reference::Format format = codec::reference::format_of(codec);
  for (size_t at = 0; at < values.size(); at += static_cast<size_t>(row.cols)) {
    const int64_t r = static_cast<int64_t>(at) / row.cols;
    const auto coded = codec::reference::encode_row(codec, row.cols, row.segment, &values[at], rounding, r);
    for (int64_t block = 0; block < row.blocks(); ++block)
      for (int64_t i = 0; i < row.size(block); ++i) {
        const uint8_t code = coded.codes[static_cast<size_t>(row.begin(block) + i)];
        const double scale = codec::reference::scale_value(coded.scales[static_cast<size_t>(block)]);
        result.push_back(static_cast<float>(codec::reference::decode(format, code) * scale));
      }
  }
  return result;
}

// Σ of equally long partial sums in fp32 and in their order.
inline std::vector<float> summed(const std::vector<std::vector<float>>& partial_sums) {
  std::vector<float> sum = partial_sums.front();
  for (size_t j = 1; j < partial_sums.size(); ++j)
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += partial_sums[j][i];
  return sum;
}

// Gaussian, with a size of its own for every rank, so that the order of a sum shows in it.
inline std::vector<float> invented(int rank, uint32_t tensor, int64_t count) {
  std::mt19937 generator(static_cast<uint32_t>(rank) * 1000 + tensor);
  std::normal_distribution<float> normal(0.1f, static_cast<float>(1 + rank * rank));
  std::vector<float> values(static_cast<size_t>(count));
  for (float& x : values) x = normal(generator);
  return values;
}

}  // namespace agoq::test
