// Which of OpenBLAS's kernels ("cores") suit a CPU. OpenBLAS picks them when it is loaded; a CPU that is younger than
// the library can get kernels for the oldest ones, a third as fast.
#pragma once

#include <string_view>

namespace agoq::cli {

// The widest vector instructions that a CPU has and its system lets programs use.
enum class VectorWidth { Sse, Avx, Avx2, Avx512 };
VectorWidth cpu_vectors();

// The core to ask for in place of `core` on a CPU with these vectors; empty if `core` uses them all already, or is none
// that we know.
std::string_view faster_blas_core(VectorWidth cpu, std::string_view core);

// Of this machine, for the core that OpenBLAS has chosen.
std::string_view faster_blas_core();

}  // namespace agoq::cli
