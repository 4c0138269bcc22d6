// What the codec tests share: quantized tensors that own their memory, and numbers to feed them.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "codec/codec.h"

namespace agoq::codec {

inline constexpr Codec kAllCodecs[] = {Codec::Fp32, Codec::Bf16, Codec::Fp8,         Codec::Int8,
                                       Codec::Fp6,  Codec::Fp5,  Codec::Fp4,         Codec::Nf4,
                                       Codec::Int4, Codec::Dyn8, Codec::Dyn8Unsigned};
inline constexpr Codec kScaledCodecs[] = {Codec::Fp8, Codec::Int8, Codec::Fp6,  Codec::Fp5,         Codec::Fp4,
                                          Codec::Nf4, Codec::Int4, Codec::Dyn8, Codec::Dyn8Unsigned};

struct CodecName {
  template <class Param>
  std::string operator()(const Param& info) const {
    return std::string(name_of(info.param));
  }
};

class OwnedQuantized {
 public:
  OwnedQuantized(Codec codec, int64_t rows, RowBlocks row)
      : codes_(static_cast<size_t>(rows * row_bytes(codec, row)), 0xa5),
        scales_(static_cast<size_t>(rows * row.blocks()), Bf16{0xa5a5}) {
    view_ = Quantized{codec, Device::Cpu, rows, row, {}, {}};
    view_.codes = host_tensor(codes_.data(), {rows, row_bytes(codec, row)});
    if (has_scales(codec)) view_.scales = Tensor{scales_.data(), DType::BF16, Device::Cpu, {rows, row.blocks()}};
  }
  OwnedQuantized(const OwnedQuantized&) = delete;
  OwnedQuantized& operator=(const OwnedQuantized&) = delete;

  const Quantized& view() const { return view_; }
  operator const Quantized&() const { return view_; }
  const std::vector<uint8_t>& codes() const { return codes_; }
  std::vector<uint16_t> scales() const {
    std::vector<uint16_t> bits;
    for (Bf16 s : scales_) bits.push_back(s.bits);
    return bits;
  }

  void encode(const std::vector<float>& x, const Rounding& rounding = Rounding::nearest()) {
    for (int64_t r = 0; r < view_.rows; ++r) encode_row(view_, r, x.data() + r * view_.row.cols, rounding);
  }
  std::vector<float> decode() const {
    std::vector<float> x(static_cast<size_t>(view_.rows * view_.row.cols));
    for (int64_t r = 0; r < view_.rows; ++r) decode_row(view_, r, x.data() + r * view_.row.cols);
    return x;
  }

 private:
  std::vector<uint8_t> codes_;
  std::vector<Bf16> scales_;
  Quantized view_;
};

// Encode and decode one row of plain blocks.
inline std::vector<float> round_trip(Codec codec, const std::vector<float>& x,
                                     const Rounding& rounding = Rounding::nearest()) {
  OwnedQuantized q(codec, 1, RowBlocks(static_cast<int64_t>(x.size())));
  q.encode(x, rounding);
  return q.decode();
}

inline std::vector<float> gaussian(size_t n, uint32_t seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(n);
  for (float& v : x) v = normal(engine);
  return x;
}

inline std::vector<float> laplace(size_t n, uint32_t seed) {
  std::mt19937 engine(seed);
  std::exponential_distribution<float> exponential;
  std::vector<float> x(n);
  for (float& v : x) v = (engine() & 1 ? 1.0f : -1.0f) * exponential(engine);
  return x;
}

inline double relative_error(const std::vector<float>& approximate, const std::vector<float>& exact) {
  double error = 0, norm = 0;
  for (size_t i = 0; i < exact.size(); ++i) {
    const double d = static_cast<double>(approximate[i]) - exact[i];
    error += d * d;
    norm += static_cast<double>(exact[i]) * exact[i];
  }
  return std::sqrt(error / norm);
}

// Numbers the codec is meant for: the unsigned one takes no negative ones.
inline std::vector<float> suited(Codec codec, std::vector<float> x) {
  if (codec == Codec::Dyn8Unsigned)
    for (float& v : x) v = std::fabs(v);
  return x;
}

}  // namespace agoq::codec
