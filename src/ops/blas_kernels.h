// Which kernels OpenBLAS uses.
#pragma once

namespace agoq::ops {

// OpenBLAS chooses its kernels by the CPU's name while it is loaded. Releases older than a CPU take it for one without
// AVX-512, and lose half of the speed of matrix products: 0.3.21 does so to AMD's Zen 5. Where that happened this starts the
// program again with OPENBLAS_CORETYPE set, unless the user has set it. To be called first thing in main.
void use_widest_blas_kernels(char** argv);

}  // namespace agoq::ops
