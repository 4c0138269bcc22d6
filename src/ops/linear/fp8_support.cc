#include "ops/linear/fp8_support.h"

#include <algorithm>

namespace agoq::ops {
namespace {

void require_none(const Gpu& gpu, const std::string& why) {
  require(why.empty(), "the GPU {} {}", gpu.name(), why);
}

}  // namespace

std::string why_no_fp8(ComputeCapability gpu, std::initializer_list<Granularity> operands) {
  const std::string capability = fmt::format("(compute capability {}.{})", gpu.major, gpu.minor);
  if (!multiplies_fp8(gpu))
    return fmt::format(
        "{} has no tensor cores for 8-bit floats, which came with Ada (8.9); leave out --fp8-format to multiply in "
        "bf16",
        capability);
  const auto unknown = std::find_if(operands.begin(), operands.end(),
                                    [&](Granularity granularity) { return !multiplies_fp8(gpu, granularity); });
  if (unknown == operands.end()) return "";
  return fmt::format(
      "{} multiplies 8-bit floats with one scale for a tensor alone: cuBLASLt takes a scale per {} only on Hopper "
      "(9.0); use --fp8-recipe tensorwise or delayed",
      capability, name_of(*unknown));
}

std::string why_no_fp8(ComputeCapability gpu, const Fp8Recipe& r) {
  std::string why = why_no_fp8(gpu, {r.x.granularity, r.w.granularity, r.dy.granularity});
  if (!why.empty() || !r.dw_in_fp8()) return why;
  return why_no_fp8(gpu, {r.dw_dy.granularity, r.dw_x.granularity});
}

void require_fp8(const Gpu& gpu, std::initializer_list<Granularity> operands) {
  require_none(gpu, why_no_fp8(gpu.compute_capability(), operands));
}

void require_fp8(const DeviceMemory& memory, const std::optional<Fp8Recipe>& recipe) {
  const Gpu* gpu = memory.gpu();
  if (gpu && recipe) require_none(*gpu, why_no_fp8(gpu->compute_capability(), *recipe));
}

}  // namespace agoq::ops
