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

// Numbers of parts and lengths around those that a thread takes at once; parts that begin at no multiple of 16 bytes.
// All but the first numbers: at an address that is aligned or not.
Tensor behind(const Tensor& numbers, int64_t skipped) {
  const int64_t n = numbers.count();
  return numbers.view({n, 1}).row_range(skipped, n).view({n - skipped});
}

TEST_F(SumCuda, SameBitsAsOnTheCpu) {
  for (const DType dtype : {DType::F32, DType::BF16, DType::F64})
    for (const int count : {1, 2, 5, 8, 9})
      for (const int64_t n : {1, 3, 7, 8, 1000, 4096, 100003})
        for (const int64_t skipped : {0, 1}) {
          std::vector<Tensor> on_cpu, on_gpu;
          for (int i = 0; i < count; ++i) {
            const Twin part = numbers(n + skipped, dtype);
            on_cpu.push_back(behind(part.cpu, skipped));
            on_gpu.push_back(behind(part.gpu, skipped));
          }
          const Twin out = zeros({n}, dtype);
          comm::sum(c(), on_cpu, out.cpu);
          comm::sum(g(), on_gpu, out.gpu);
          expect_same_bits(out.cpu, out.gpu, "sum");
          comm::sum(g(), on_gpu, on_gpu.back());
          expect_same_bits(out.cpu, on_gpu.back(), "sum in place of a part");
        }
}

}  // namespace
}  // namespace agoq::ops::test
