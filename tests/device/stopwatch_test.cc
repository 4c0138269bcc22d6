#include "device/stopwatch.h"

#include <gtest/gtest.h>

#include <thread>

#include "device/transfer.h"

namespace agoq {
namespace {

TEST(Stopwatch, TellsTheTimeBetweenMarksAndBeginsAnew) {
  Arena arena(Device::Cpu, 0);
  const Context ctx(arena, Device::Cpu, DType::F32);
  Stopwatch watch(ctx);
  EXPECT_TRUE(watch.take().empty());
  const auto sleep = [](int ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); };
  watch.mark();
  sleep(20);
  watch.mark();
  sleep(5);
  watch.mark();
  const std::vector<double> first = watch.take();
  ASSERT_EQ(first.size(), 2u);
  EXPECT_GE(first[0], 0.020);
  EXPECT_GE(first[1], 0.005);
  watch.mark();
  EXPECT_TRUE(watch.take().empty()) << "a mark alone has no time";
}

TEST(Transfer, CopiesBetweenTensorsOfTheSameBytes) {
  Arena arena(Device::Cpu, 4096);
  const Context ctx(arena, Device::Cpu, DType::F32);
  const Tensor a = arena.allocate(Owner::Operands, DType::F32, {10}),
               b = arena.allocate(Owner::Operands, DType::F32, {10});
  for (int i = 0; i < 10; ++i) a.as<float>()[i] = static_cast<float>(i);
  copy(ctx, a, b);
  for (int i = 0; i < 10; ++i) EXPECT_EQ(b.as<float>()[i], static_cast<float>(i));
  EXPECT_THROW(copy(ctx, a, arena.allocate(Owner::Operands, DType::F32, {9})), Error);
}

}  // namespace
}  // namespace agoq
