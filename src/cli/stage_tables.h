// The stages of a pipeline side by side: what each holds, and what it sends.
#pragma once

#include <span>
#include <string>

#include "plan/stage_plan.h"

namespace agoq::cli {

// stage | layers | parameters | weights | gradients | moments | saved | other | total, of one rank each.
std::string stage_memory_table(std::span<const plan::RankPlan> stages);
// stage | in flight | sends a step by axis | widths, likewise.
std::string stage_traffic_table(std::span<const plan::RankPlan> stages);

}  // namespace agoq::cli
