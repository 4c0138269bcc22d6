#include "ops/linear/fp8_counts.h"

#include <utility>

#include "device/transfer.h"

namespace agoq::ops {

std::string_view name_of(Fp8Role role) {
  constexpr std::array<std::string_view, kFp8Roles> kNames = {"x", "w", "dy", "dw_dy", "dw_x"};
  return kNames[static_cast<size_t>(role)];
}

Operand Fp8Counter::counted(const Operand& x, Fp8Role role) {
  const auto i = static_cast<size_t>(role);
  encoded_[i] += x.data.count();
  Operand out = x;
  out.counts = lost_.row_range(static_cast<int64_t>(i), static_cast<int64_t>(i) + 1).view({2});
  return out;
}

Fp8Counts Fp8Counter::take(const Context& ctx) {
  std::array<std::array<int64_t, 2>, kFp8Roles> lost{};
  download(ctx, lost_, &lost);
  zero(ctx, lost_);
  Fp8Counts counts;
  for (size_t i = 0; i < kFp8Roles; ++i) counts[i] = {std::exchange(encoded_[i], 0), lost[i][0], lost[i][1]};
  return counts;
}

Operand counted(const Context& ctx, const Operand& x, Fp8Role role) {
  return ctx.fp8_counter && is_fp8(x.dtype()) && x.data ? ctx.fp8_counter->counted(x, role) : x;
}

}  // namespace agoq::ops
