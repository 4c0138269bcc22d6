#include "device/arena.h"

#include <gtest/gtest.h>

#include "device/context.h"
#include "device/memory.h"

namespace agoq {
namespace {

void use(Arena& arena) {
  arena.allocate("weights", DType::F32, {3, 5});
  arena.allocate("moments", DType::U8, {1000});
  arena.allocate("weights", DType::BF16, {7});
  Scope outer(arena);
  arena.push(DType::F32, {100});
  {
    Scope inner(arena);
    arena.push(DType::F32, {200});
  }
  arena.push(DType::U8, {1});
}

TEST(Arena, MetaCountsWhatTheCpuHolds) {
  Arena meta(Device::Meta, 0);
  use(meta);
  Arena cpu(Device::Cpu, meta.total_bytes());
  use(cpu);
  EXPECT_EQ(cpu.total_bytes(), meta.total_bytes());
  EXPECT_EQ(cpu.total_bytes(), 256u + 1024u + 256u + 512u + 1024u);
  ASSERT_EQ(cpu.by_owner().size(), 3u);
  EXPECT_EQ(cpu.by_owner()[0].owner, "weights");
  EXPECT_EQ(cpu.by_owner()[0].bytes, 512u);
  EXPECT_EQ(cpu.by_owner()[2].owner, "workspace");
  EXPECT_EQ(cpu.by_owner()[2].bytes, 1536u);
  EXPECT_EQ(cpu.stack_bytes(), 0u);
}

TEST(Arena, OneByteTooSmallIsAnError) {
  Arena meta(Device::Meta, 0);
  use(meta);
  Arena cpu(Device::Cpu, meta.total_bytes() - 1);
  EXPECT_THROW(use(cpu), Error);
}

TEST(Arena, OwnedTensorsAreZeroAndApart) {
  Arena arena(Device::Cpu, 4096);
  const Tensor a = arena.allocate("a", DType::F32, {10}), b = arena.allocate("b", DType::F32, {10});
  for (int i = 0; i < 10; ++i) {
    EXPECT_EQ(a.as<float>()[i], 0);
    a.as<float>()[i] = 1;
  }
  for (int i = 0; i < 10; ++i) EXPECT_EQ(b.as<float>()[i], 0);
  EXPECT_EQ((b.raw() - a.raw()) % 256, 0);
}

TEST(Arena, MemoryOfAGpuNeedsTheGpu) {
  EXPECT_THROW(Arena(Device::Cuda, 1), Error);
}

TEST(DeviceMemory, WithoutAGpuTheErrorTellsTheRemedy) {
  if constexpr (kCudaBuild)
    if (why_no_gpu().empty()) GTEST_SKIP() << "there is a GPU";
  try {
    DeviceMemory memory(Device::Cuda);
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("--device cpu"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace agoq
