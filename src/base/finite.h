// Looks for numbers that are none.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <span>

namespace agoq {

// The index of the first NaN or infinity, or the number of values if all are finite.
inline size_t first_not_finite(std::span<const float> values) {
  bool finite = true;  // without a jump for each number: compilers make vector code of it
  for (const float x : values) finite &= std::abs(x) <= std::numeric_limits<float>::max();
  if (finite) return values.size();
  const auto bad = std::find_if_not(values.begin(), values.end(), [](float x) { return std::isfinite(x); });
  return static_cast<size_t>(bad - values.begin());
}

}  // namespace agoq
