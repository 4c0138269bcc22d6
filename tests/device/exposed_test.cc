#include "device/exposed.h"

#include <gtest/gtest.h>

#include <thread>

namespace agoq {
namespace {

double of(const ExposedSeconds& seconds, Exposed kind) {
  return seconds[static_cast<size_t>(kind)];
}

TEST(ExposedTimes, AddUpByKindAndBeginAnew) {
  Arena arena(Device::Cpu, 0);
  Context ctx(arena, Device::Cpu, DType::F32);
  const auto wait = [&](Exposed kind, int ms) {
    expose(ctx, kind, [&] { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); });
  };
  wait(Exposed::Tensor, 1);  // nobody asks
  ExposedTimes times(ctx);
  ctx.exposed = &times;
  wait(Exposed::Tensor, 3);
  std::this_thread::sleep_for(std::chrono::milliseconds(20));  // computing
  wait(Exposed::Weights, 10);
  wait(Exposed::Tensor, 3);
  const ExposedSeconds seconds = times.take();
  EXPECT_GE(of(seconds, Exposed::Tensor), 0.006);
  EXPECT_GE(of(seconds, Exposed::Weights), 0.010);
  EXPECT_EQ(of(seconds, Exposed::Pipeline), 0);
  EXPECT_EQ(of(seconds, Exposed::Gradients), 0);
  wait(Exposed::Pipeline, 1);
  const ExposedSeconds next = times.take();
  EXPECT_EQ(of(next, Exposed::Tensor), 0);
  EXPECT_GE(of(next, Exposed::Pipeline), 0.001);
}

}  // namespace
}  // namespace agoq
