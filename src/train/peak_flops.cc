#include "train/peak_flops.h"

#include <algorithm>
#include <chrono>

#include "ops/linear.h"

namespace agoq::train {

double measure_peak_flops() {
  constexpr int64_t kSize = 1024;
  constexpr int kRuns = 5;
  Arena arena(Device::Cpu, size_t{4} * kSize * kSize * sizeof(float));
  const Context ctx(arena, Device::Cpu, DType::F32);
  const auto matrix = [&] { return arena.allocate("peak", DType::F32, {kSize, kSize}); };
  const Tensor a = matrix(), b = matrix(), c = matrix();
  std::fill_n(a.as<float>(), kSize * kSize, 0.5f);
  std::fill_n(b.as<float>(), kSize * kSize, 0.25f);
  double best = 1e30;
  for (int run = 0; run < kRuns; ++run) {
    const auto start = std::chrono::steady_clock::now();
    ops::gemm(ctx, a, ops::Transpose::No, b, ops::Transpose::Yes, c);
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return 2.0 * kSize * kSize * kSize / best;
}

}  // namespace agoq::train
