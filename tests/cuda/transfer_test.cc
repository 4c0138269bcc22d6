#include "cuda/pair.h"

namespace agoq::ops::test {
namespace {

using Transfer = CudaTest;

TEST_F(Transfer, ComesBackAsItWent) {
  const Twin t = random({37, 129}, 1.0, DType::F32);
  expect_same_bits(t.cpu, t.gpu, "a copy");
}

TEST_F(Transfer, ArenaOfAGpuIsZeroed) {
  const Tensor t = arena->allocate(Owner::Operands, DType::F32, {1000});
  for (const double x : values(down(t))) ASSERT_EQ(x, 0.0);
}

TEST_F(Transfer, TooMuchMemoryIsAClearError) {
  try {
    Arena(*the_gpu(), size_t{1} << 50);
    FAIL() << "a pebibyte was given";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("agoq plan"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace agoq::ops::test
