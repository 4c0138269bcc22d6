// The denominator of MFU on a CPU: what its matrix product reaches by itself.
#pragma once

namespace agoq::train {

// FLOP/s of the best of a few square fp32 products on all threads, measured now (tens of milliseconds).
double measure_peak_flops();

}  // namespace agoq::train
