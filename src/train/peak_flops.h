// The denominator of MFU, of GPUs: a CPU's is stated nowhere, and what a product reaches there depends on what else it
// does.
#pragma once

#include <string_view>

namespace agoq::train {

// Dense bf16 FLOP/s that the maker states for a GPU of this name ("NVIDIA H200"); 0 for one not listed.
double datasheet_peak_flops(std::string_view gpu);

}  // namespace agoq::train
