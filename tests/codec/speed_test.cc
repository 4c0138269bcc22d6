// How fast one core encodes and decodes. Not a check, so not run by default:
//   OMP_NUM_THREADS=1 codec_tests --gtest_also_run_disabled_tests --gtest_filter='*Speed*'
#include <chrono>
#include <cstdio>
#include <limits>

#include "codec/codec_fixture.h"

namespace agoq::codec {
namespace {

// GB/s of fp32 numbers, best of 15.
template <class Work>
double rate(size_t numbers, Work&& work) {
  double best = std::numeric_limits<double>::max();
  for (int i = 0; i < 15; ++i) {
    const auto start = std::chrono::steady_clock::now();
    work();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return static_cast<double>(numbers) * sizeof(float) / best * 1e-9;
}

TEST(CodecSpeed, DISABLED_OneCore) {
  Arena arena(Device::Cpu, 16 << 20);
  const Context ctx(arena, Device::Cpu, DType::F32);
  const int64_t rows = 64, cols = 4096;
  std::vector<float> x = gaussian(static_cast<size_t>(rows * cols), 1), back(x.size());
  const Tensor in = host_tensor(x.data(), {rows, cols}), out = host_tensor(back.data(), {rows, cols});
  std::printf("GB/s of fp32 numbers   nearest   stochastic   decode\n");
  for (Codec codec : kAllCodecs) {
    OwnedQuantized q(codec, rows, RowBlocks(cols));
    const double nearest = rate(x.size(), [&] { encode(ctx, in, q); });
    const double stochastic = rate(x.size(), [&] { encode(ctx, in, q, Rounding::random({})); });
    std::printf("  %-18s %9.1f %12.1f %8.1f\n", std::string(name_of(codec)).c_str(), nearest, stochastic,
                rate(x.size(), [&] { decode(ctx, q, out); }));
  }
}

}  // namespace
}  // namespace agoq::codec
