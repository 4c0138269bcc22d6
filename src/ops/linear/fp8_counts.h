// How many numbers became 8-bit floats, and of how many the codes say little, by what products take them as.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "device/context.h"
#include "ops/linear/operand.h"

namespace agoq::ops {

// The operands that an Fp8Recipe names.
enum class Fp8Role : uint8_t { X, W, Dy, DwDy, DwX };
inline constexpr size_t kFp8Roles = 5;
std::string_view name_of(Fp8Role role);  // "x", "w", "dy", "dw_dy", "dw_x"

// Under a scale of 0 or NaN codes mean zeros or NaNs: such numbers are encoded, and neither of the others. So is the
// padding.
struct Fp8Count {
  int64_t encoded = 0;
  int64_t saturated = 0;  // x / scale is beyond the format's largest number
  int64_t flushed = 0;    // x is not zero, but its code is; of codes that are turned, one that was not zero before

  Fp8Count& operator+=(const Fp8Count& other) {
    encoded += other.encoded, saturated += other.saturated, flushed += other.flushed;
    return *this;
  }
  bool operator==(const Fp8Count&) const = default;
};
using Fp8Counts = std::array<Fp8Count, kFp8Roles>;

// Counts while a context has it. What a tensor group makes on each of its ranks is counted on each.
class Fp8Counter {
 public:
  explicit Fp8Counter(Arena& arena) : lost_(arena.allocate(Owner::Batch, DType::I64, {kFp8Roles, 2})) {}
  // `x`, whose codes will be written once; the kernel that writes them counts.
  Operand counted(const Operand& x, Fp8Role role);
  // Since the last call, or since the context has it; waits for what is being counted.
  Fp8Counts take(const Context& ctx);

 private:
  Tensor lost_;  // [roles, 2]: saturated, flushed
  std::array<int64_t, kFp8Roles> encoded_{};
};

// An operand that is about to be written, counted if the context asks for it. One without contents stays so.
Operand counted(const Context& ctx, const Operand& x, Fp8Role role);

}  // namespace agoq::ops
