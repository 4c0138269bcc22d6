// The CUDA side of stopwatch.h.
#pragma once

#include "device/context.h"

struct CUevent_st;

namespace agoq::cuda {

CUevent_st* create_event();
void destroy(CUevent_st* event) noexcept;
void record(const Context& ctx, CUevent_st* event);
// Waits for the second one.
double seconds_between(const Context& ctx, CUevent_st* begin, CUevent_st* end);

}  // namespace agoq::cuda
