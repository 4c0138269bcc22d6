// Settings that OpenBLAS and OpenMP read from the environment when they are loaded, before main() runs.
#pragma once

namespace agoq::cli {

// Chooses them where the user has not, and starts the program again with them, once. Returns where nothing is to be
// done.
//   OPENBLAS_CORETYPE=SkylakeX  where OpenBLAS does not know a CPU that has AVX-512: its products are twice as fast
//   GOMP_SPINCOUNT              threads that wait soon sleep: a busy machine loses nothing, an idle one microseconds
void settle_environment(char** argv);

}  // namespace agoq::cli
