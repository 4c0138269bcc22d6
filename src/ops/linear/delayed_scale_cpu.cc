#include "ops/linear/delayed_scale_cpu.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "codec/formats.h"

namespace agoq::ops::cpu {
namespace {

constexpr float kLargest = std::numeric_limits<float>::max();

// Of all ranks, as integers: a NaN is the largest of all.
float largest_of_ranks(const Tensor& amaxes, int64_t site) {
  uint32_t most = 0;
  for (int64_t rank = 0; rank < amaxes.shape[0]; ++rank)
    most = std::max(most, std::bit_cast<uint32_t>(amaxes.as<float>()[rank * amaxes.cols() + site]));
  return std::bit_cast<float>(most);
}

float scale_of(DType format, float amax) {
  return to_float(format == DType::E5M2 ? codec::scale_of<codec::OperandE5M2>(amax)
                                        : codec::scale_of<codec::OperandE4M3>(amax));
}

}  // namespace

void make_scales(const Tensor& amaxes, bool remember, const DelayedScaling& how,
                 const std::array<DType, kScaleRoles>& formats, const ScaleHistory& history) {
  const auto margin = static_cast<float>(int64_t{1} << how.margin);
  for (int64_t site = 0; site < history.scales.shape[0]; ++site) {
    float* newest = history.amaxes.as<float>() + site * how.history;
    const float amax = largest_of_ranks(amaxes, site);
    if (remember && amax > 0 && amax <= kLargest) {
      std::copy_backward(newest, newest + how.history - 1, newest + how.history);
      *newest = amax;
    }
    const float counts = how.most_recent ? *newest : *std::max_element(newest, newest + how.history);
    history.scales.as<float>()[site * history.scales.cols()] =
        scale_of(formats[static_cast<size_t>(site % kScaleRoles)], std::min(counts * margin, kLargest));
  }
}

}  // namespace agoq::ops::cpu
