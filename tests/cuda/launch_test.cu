#include "cuda/pair.h"
#include "device/cuda.h"

namespace agoq::ops::test {
namespace {

struct Turn {
  int32_t *from, *to;
  int n;
};

// Its first CTAs read what the last ones of the kernel before have written.
__global__ void add_one_backwards(const __grid_constant__ agoq::cuda::PdlArgs<Turn> given) {
  const Turn& t = given.wait();
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < t.n) t.to[i] = t.from[t.n - 1 - i] + 1;
}

using CudaLaunch = CudaTest;

TEST_F(CudaLaunch, AKernelSeesAllThatTheOneBeforeWrote) {
  constexpr int kNumbers = 1 << 20, kTurns = 200, kThreads = 256;
  const Tensor even = zeros({kNumbers}, DType::I32).gpu, odd = zeros({kNumbers}, DType::I32).gpu;
  Turn turn{even.as<int32_t>(), odd.as<int32_t>(), kNumbers};
  for (int i = 0; i < kTurns; ++i) {
    agoq::cuda::launch(g(), add_one_backwards, kNumbers / kThreads, kThreads, turn);
    turn = {turn.to, turn.from, kNumbers};
  }
  const Tensor turns = down(even);
  for (int64_t i = 0; i < kNumbers; ++i) ASSERT_EQ(turns.as<int32_t>()[i], kTurns) << i;
}

}  // namespace
}  // namespace agoq::ops::test
