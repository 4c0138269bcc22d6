// Medians of repeated runs.
#pragma once

#include <functional>
#include <vector>

#include "device/context.h"

namespace agoq::bench {

double median(std::vector<double> values);

// Runs once, with everything that the first run alone does: libraries load, GEMM algorithms are chosen.
void first_run(const Context& ctx, const std::function<void()>& run);

// Median seconds of run(i), i = 0, 1, ...: warmed up, then measured for about `seconds`, at least three times. Short
// runs are timed several at once.
double median_seconds(const Context& ctx, double seconds, const std::function<void(int64_t)>& run);

}  // namespace agoq::bench
