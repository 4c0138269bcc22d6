#include "ops/attention/rope.h"

#include "cuda/pair.h"

namespace agoq::ops::test {
namespace {

class CudaRope : public CudaTest {
 protected:
  // Both directions of both types, bit for bit.
  void compare(const Heads& heads, const std::vector<int32_t>& positions) {
    for (const DType compute : {DType::BF16, DType::F32}) {
      start(compute);
      documents(positions, positions);
      const RopeSpec spec{heads.dim, 500000, Llama3Scaling{}, 1};
      const Tensor host_table = cpu->zeros({1024, heads.dim}, DType::F32);
      fill_rope_table(spec, host_table);
      const Twin table = twin(host_table);
      const Twin qkv = random({static_cast<int64_t>(positions.size()), heads.cols()});
      rope(c(), qkv.cpu, heads, table.cpu);
      rope(g(), qkv.gpu, heads, table.gpu);
      expect_same_bits(qkv.cpu, qkv.gpu, "rope");
      rope_backward(c(), qkv.cpu, heads, table.cpu);
      rope_backward(g(), qkv.gpu, heads, table.gpu);
      expect_same_bits(qkv.cpu, qkv.gpu, "rope_backward");
    }
  }
};

TEST_F(CudaRope, EveryShapeHasTheBitsOfTheCpu) {
  const std::vector<int32_t> packed = {0, 1, 2, 3, 500, 0, 1, 77, 1023};
  for (const Heads& heads : {Heads{1, 1, 2}, Heads{1, 1, 6}, Heads{3, 1, 8}, Heads{3, 1, 16}, Heads{6, 2, 80},
                             Heads{7, 7, 96}, Heads{9, 3, 64}, Heads{2, 1, 256}, Heads{1, 1, 1030}})
    compare(heads, packed);
}

TEST_F(CudaRope, ALayersShape) {
  std::vector<int32_t> positions(300);
  for (size_t t = 0; t < positions.size(); ++t) positions[t] = static_cast<int32_t>(t % 200);
  compare({32, 8, 128}, positions);
}

}  // namespace
}  // namespace agoq::ops::test
