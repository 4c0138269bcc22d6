#include "comm/sum.h"

#include "cuda/pair.h"

namespace agoq::ops::test {
namespace {

class SumCuda : public CudaTest {
 protected:
  // Numbers whose sum depends on its order.
  Twin numbers(int64_t n, DType dtype) {
    if (dtype != DType::F64) return random({n}, 1, dtype);
    const Tensor t = cpu->zeros({n}, dtype);
    std::normal_distribution<double> normal;
    for (int64_t i = 0; i < n; ++i) t.as<double>()[i] = normal(cpu->generator);
    return twin(t);
  }
};

// `rows` of n numbers each, behind `skipped` that do not belong to them: at an address that is aligned or not.
Tensor rows_behind(const Tensor& numbers, int64_t skipped, int64_t rows) {
  const int64_t n = numbers.count() - skipped;
  return numbers.view({numbers.count(), 1}).row_range(skipped, numbers.count()).view({rows, n / rows});
}

// Lengths around those that a thread takes at once, and rows of which not all begin at multiples of 16 bytes; more
// parts than the parameters of a kernel have room for; the own part at either end, and between the others.
TEST_F(SumCuda, SameBitsAsOnTheCpu) {
  for (const DType dtype : {DType::F32, DType::BF16, DType::F64})
    for (const int64_t others : {1, 2, 7, 8, 1023, 2999})
      for (const int64_t n : {1, 3, 8, 1000, 4096, 100003})
        for (const int64_t skipped : {0, 1}) {
          if (others * n > 3'200'000) continue;
          start(DType::BF16, size_t{96} << 20);
          const Twin rows = numbers(others * n + skipped, dtype), own = numbers(n + skipped, dtype);
          const Tensor cpu_rows = rows_behind(rows.cpu, skipped, others), cpu_own = rows_behind(own.cpu, skipped, 1);
          const Tensor gpu_rows = rows_behind(rows.gpu, skipped, others), gpu_own = rows_behind(own.gpu, skipped, 1);
          const Twin out = zeros({n}, dtype);
          for (const int64_t before : {int64_t{0}, others, others / 2}) {
            comm::sum(c(), {cpu_rows, cpu_own, before}, out.cpu);
            comm::sum(g(), {gpu_rows, gpu_own, before}, out.gpu);
            expect_same_bits(out.cpu, out.gpu, "sum");
          }
          comm::sum(g(), {gpu_rows, gpu_own, others / 2}, gpu_own);
          expect_same_bits(out.cpu, gpu_own, "sum in place of the own part");
          comm::sum(c(), {cpu_rows, {}, others}, out.cpu);
          comm::sum(g(), {gpu_rows, {}, others}, gpu_rows.row_range(others - 1, others));
          expect_same_bits(out.cpu, gpu_rows.row_range(others - 1, others), "sum of rows in place of the last");
        }
}

}  // namespace
}  // namespace agoq::ops::test
