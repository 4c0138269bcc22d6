// The denominator of MFU.
#pragma once

#include <string_view>

namespace agoq::train {

// FLOP/s of the best of a few square fp32 products on all threads, measured now (tens of milliseconds).
double measure_peak_flops();

// Dense bf16 FLOP/s that the maker states for a GPU of this name ("NVIDIA H200"); 0 for one not listed.
double datasheet_peak_flops(std::string_view gpu);

}  // namespace agoq::train
