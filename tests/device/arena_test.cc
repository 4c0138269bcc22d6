#include "device/arena.h"

#include <gtest/gtest.h>

#include <set>
#include <type_traits>

#include "device/context.h"
#include "device/memory.h"

namespace agoq {
namespace {

void use(Arena& arena) {
  arena.allocate(Owner::Weights, DType::F32, {3, 5});
  arena.allocate(Owner::Moments, DType::U8, {1000});
  arena.allocate(Owner::Weights, DType::BF16, {7});
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
  EXPECT_EQ(cpu.by_owner()[0].owner, Owner::Weights);
  EXPECT_EQ(cpu.by_owner()[0].bytes, 512u);
  EXPECT_EQ(cpu.by_owner()[2].owner, Owner::Workspace);
  EXPECT_EQ(cpu.by_owner()[2].bytes, 1536u);
  EXPECT_EQ(cpu.stack_bytes(), 0u);
}

TEST(Owner, IsDeclaredAndNoText) {
  static_assert(!std::is_constructible_v<Owner, const char*> && !std::is_constructible_v<Owner, std::string>);
  std::set<std::string> texts;
  for (size_t kind = 0; kind < Owner::kKinds; ++kind) {
    if (kind == Owner::Saved) continue;
    const std::string text = Owner(static_cast<Owner::Kind>(kind)).text();
    EXPECT_FALSE(text.empty());
    EXPECT_TRUE(texts.insert(text).second) << text;
  }
  // Memory.json and the JSON of plans are read by these.
  EXPECT_EQ(Owner(Owner::MainGradients).text(), "main gradients");
  EXPECT_EQ(Owner::saved("x1").text(), "saved x1");
  EXPECT_NE(Owner::saved("x1"), Owner::saved("x2"));
  EXPECT_THROW(Owner{Owner::Saved}, std::logic_error);
}

TEST(Arena, OneByteTooSmallIsAnError) {
  Arena meta(Device::Meta, 0);
  use(meta);
  Arena cpu(Device::Cpu, meta.total_bytes() - 1);
  EXPECT_THROW(use(cpu), Error);
}

TEST(Arena, OwnedTensorsAreZeroAndApart) {
  Arena arena(Device::Cpu, 4096);
  const Tensor a = arena.allocate(Owner::Operands, DType::F32, {10}),
               b = arena.allocate(Owner::Operands, DType::F32, {10});
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
