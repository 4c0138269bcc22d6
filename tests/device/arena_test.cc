#include "device/arena.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <functional>
#include <memory>
#include <set>
#include <type_traits>

#include "device/context.h"
#include "device/memory.h"
#include "device/transfer.h"

namespace agoq {
namespace {

using testing::HasSubstr;

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

// Aligned as an arena wants it, with one more of these bytes on either side.
struct HostBlock {
  alignas(Arena::kAlignment) std::array<uint8_t, 256> before;
  std::array<uint8_t, 4096> memory;
  std::array<uint8_t, 256> behind;
  HostBlock() { std::memset(this, 0xA5, sizeof(*this)); }
  ForeignMemory all() { return {memory.data(), memory.size()}; }
};

TEST(Arena, OnMemoryOfTheCallerUsesThatAndLeavesItThere) {
  const auto block = std::make_unique<HostBlock>();
  {
    Arena arena(Device::Cpu, block->all());
    EXPECT_TRUE(arena.foreign());
    EXPECT_EQ(arena.capacity(), 4096u);
    use(arena);
    const Tensor bottom = arena.allocate(Owner::Operands, DType::U8, {4});
    EXPECT_EQ(bottom.raw(), block->memory.data() + arena.owned_bytes() - 256);
    EXPECT_EQ(bottom.raw()[0], 0xA5) << "its bytes stay as they are";
    zero(Context(arena, Device::Cpu, DType::F32), arena.memory());
    EXPECT_EQ(bottom.raw()[0], 0);
    Scope scope(arena);
    const Tensor top = arena.push(DType::U8, {1});
    EXPECT_EQ(top.raw(), block->memory.data() + 4096 - 256);
    std::memset(top.raw(), 7, 256);
  }
  EXPECT_EQ(block->memory.back(), 7) << "the memory is still there, with what was written";
  for (const uint8_t byte : block->before) EXPECT_EQ(byte, 0xA5);
  for (const uint8_t byte : block->behind) EXPECT_EQ(byte, 0xA5);
}

TEST(Arena, OnMemoryOfTheCallerEqualsOneOfItsOwn) {
  const auto block = std::make_unique<HostBlock>();
  Arena own(Device::Cpu, 4096), foreign(Device::Cpu, block->all());
  use(own), use(foreign);
  EXPECT_EQ(foreign.total_bytes(), own.total_bytes());
  EXPECT_FALSE(own.foreign());
}

TEST(Arena, RefusesMemoryOfTheCallerThatDoesNotFit) {
  const auto block = std::make_unique<HostBlock>();
  const auto error_of = [](const std::function<void()>& make) -> std::string {
    try {
      make();
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  uint8_t* data = block->memory.data();
  EXPECT_THAT(error_of([&] { Arena(Device::Cpu, ForeignMemory{data + 64, 1024}); }), HasSubstr("multiple of 256"));
  EXPECT_THAT(error_of([&] { Arena(Device::Cpu, ForeignMemory{nullptr, 1024}); }), HasSubstr("no address"));
  EXPECT_THAT(error_of([&] { Arena(Device::Meta, block->all()); }), HasSubstr("memory of the caller"));
  EXPECT_THAT(error_of([&] { Arena(Device::Cuda, block->all()); }), HasSubstr("Arena(gpu, memory)"));
  Arena meta(Device::Meta, 0);
  use(meta);
  Arena small(Device::Cpu, ForeignMemory{data, meta.total_bytes() - 1});
  EXPECT_THAT(error_of([&] { use(small); }), HasSubstr("is full"));
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
