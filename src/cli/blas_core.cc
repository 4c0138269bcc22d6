#include "cli/blas_core.h"

#include <cblas.h>

#include <algorithm>
#include <array>
#include <optional>
#include <span>

namespace agoq::cli {
namespace {

// OpenBLAS's names for x86-64, by the instructions that their matrix products use.
constexpr auto kSseCores = std::to_array<std::string_view>(
    {"Katmai", "Coppermine", "Northwood", "Prescott", "Banias", "Atom", "Core2", "Penryn", "Dunnington", "Nehalem",
     "Athlon", "Opteron", "Opteron_SSE3", "Barcelona", "Bobcat", "Nano"});
constexpr auto kAvxCores = std::to_array<std::string_view>({"Sandybridge", "Bulldozer", "Piledriver", "Steamroller"});
constexpr auto kAvx2Cores = std::to_array<std::string_view>({"Haswell", "Excavator", "Zen"});

std::optional<VectorWidth> vectors_of(std::string_view core) {
  const auto among = [core](std::span<const std::string_view> names) {
    return std::find(names.begin(), names.end(), core) != names.end();
  };
  if (among(kSseCores)) return VectorWidth::Sse;
  if (among(kAvxCores)) return VectorWidth::Avx;
  if (among(kAvx2Cores)) return VectorWidth::Avx2;
  return std::nullopt;
}

std::string_view core_for(VectorWidth cpu) {
  switch (cpu) {
    case VectorWidth::Avx512:
      return "SkylakeX";
    case VectorWidth::Avx2:
      return "Haswell";
    case VectorWidth::Avx:
      return "Sandybridge";
    case VectorWidth::Sse:
      break;
  }
  return "";
}

}  // namespace

VectorWidth cpu_vectors() {
#if defined(__x86_64__)
  // What OpenBLAS's own check of a forced SkylakeX and its kernels ask for.
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return VectorWidth::Avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return VectorWidth::Avx2;
  if (__builtin_cpu_supports("avx")) return VectorWidth::Avx;
#endif
  return VectorWidth::Sse;
}

std::string_view faster_blas_core(VectorWidth cpu, std::string_view core) {
  const std::optional<VectorWidth> used = vectors_of(core);
  return used && *used < cpu ? core_for(cpu) : "";
}

std::string_view faster_blas_core() {
  return faster_blas_core(cpu_vectors(), openblas_get_corename());
}

}  // namespace agoq::cli
