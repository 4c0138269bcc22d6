#include "ops/head/weighted_sum.h"

#include "cuda/pair.h"

namespace agoq::ops::test {
namespace {

using WeightedSum = CudaTest;

TEST_F(WeightedSum, EqualsTheCpu) {
  for (const int64_t n : {1, 1000, 70001}) {
    const Twin values = random({n}, 1.0, DType::F32), weights = random({n}, 1.0, DType::F32),
               total = zeros({1}, DType::F64);
    for (int time = 0; time < 2; ++time) {
      add_weighted_sum(c(), values.cpu, weights.cpu, total.cpu);
      add_weighted_sum(g(), values.gpu, weights.gpu, total.gpu);
    }
    EXPECT_NEAR(*down(total.gpu).as<double>(), *total.cpu.as<double>(), 1e-9 * static_cast<double>(n));
  }
}

}  // namespace
}  // namespace agoq::ops::test
