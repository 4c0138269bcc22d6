// Division of integers that are not negative.
#pragma once

#include <cstdint>

namespace agoq {

constexpr int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}
// To the least multiple at or above a.
constexpr int64_t round_up(int64_t a, int64_t multiple) {
  return ceil_div(a, multiple) * multiple;
}

}  // namespace agoq
