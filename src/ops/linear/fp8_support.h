// Which GPUs multiply 8-bit floats, and with which scales.
#pragma once

#include <initializer_list>
#include <optional>
#include <string>

#include "device/memory.h"
#include "ops/linear/fp8.h"

namespace agoq::ops {

// Whether it has tensor cores for 8-bit floats. Ada (8.9) was the first.
constexpr bool multiplies_fp8(ComputeCapability gpu) {
  return gpu.major > 8 || (gpu.major == 8 && gpu.minor >= 9);
}
// Whether cuBLASLt multiplies operands there that are scaled so. It takes a scale per row or block on Hopper (9.0)
// alone: neither on Ada nor on Blackwell, as of CUDA 13.0.
constexpr bool multiplies_fp8(ComputeCapability gpu, Granularity granularity) {
  return multiplies_fp8(gpu) && (granularity == Granularity::Tensor || gpu.major == 9);
}

// Why a GPU does not multiply such operands, in one line with the setting that helps; empty if it does.
std::string why_no_fp8(ComputeCapability gpu, std::initializer_list<Granularity> operands);
// The same of all products that a recipe makes.
std::string why_no_fp8(ComputeCapability gpu, const Fp8Recipe& recipe);

// Error that names the GPU unless it multiplies them.
void require_fp8(const Gpu& gpu, std::initializer_list<Granularity> operands);
// The same of a run, before it reserves memory: nothing is asked of a CPU, or where no recipe is given.
void require_fp8(const DeviceMemory& memory, const std::optional<Fp8Recipe>& recipe);

}  // namespace agoq::ops
