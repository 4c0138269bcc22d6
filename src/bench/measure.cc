#include "bench/measure.h"

#include <algorithm>
#include <cmath>

#include "device/stopwatch.h"
#include "ops/linear/gemm_algorithms.h"

namespace agoq::bench {
namespace {

constexpr double kSample = 1e-3;  // seconds; far more than a clock's resolution
constexpr int64_t kFewest = 3, kMost = 200;
constexpr double kWarmUp = 0.2;  // of the measured time

int64_t times(double seconds, double one) {
  return static_cast<int64_t>(std::ceil(seconds / std::max(one, 1e-9)));
}

}  // namespace

double median(std::vector<double> values) {
  require(!values.empty(), "a median needs values");
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

void first_run(const Context& ctx, const std::function<void()>& run) {
  if constexpr (kCudaBuild) {
    if (ctx.cuda()) {
      const ops::GemmTuning tuning(ctx.gpu());
      run();
      ctx.gpu().wait_for_stream(ctx.stream());
      return;
    }
  }
  run();
}

double median_seconds(const Context& ctx, double seconds, const std::function<void(int64_t)>& run) {
  first_run(ctx, [&] { run(0); });
  Stopwatch watch(ctx);
  watch.mark();
  run(1);
  watch.mark();
  const double one = watch.take().front();
  const int64_t at_once = std::clamp<int64_t>(times(kSample, one), 1, 1000);
  const int64_t samples = std::clamp(times(seconds, one * static_cast<double>(at_once)), kFewest, kMost);
  int64_t i = 2;
  for (const int64_t end = i + std::min(times(kWarmUp * seconds, one), at_once * kMost); i < end; ++i) run(i);
  for (int64_t sample = 0; sample < samples; ++sample) {
    watch.mark();
    for (int64_t k = 0; k < at_once; ++k) run(i++);
  }
  watch.mark();
  return median(watch.take()) / static_cast<double>(at_once);
}

}  // namespace agoq::bench
