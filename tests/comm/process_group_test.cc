#include "comm/process_group.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <random>

#include "base/dtype.h"
#include "comm/mesh.h"
#include "comm/ranks.h"

namespace agoq::comm {
namespace {

using testing::Each;
using testing::ElementsAre;

// Values of very different size, so that the order of a sum shows in its bits.
std::vector<float> values_of(int rank, size_t count) {
  std::mt19937 random(static_cast<unsigned>(rank) + 1);
  std::vector<float> values(count);
  for (float& value : values) {
    const int exponent = static_cast<int>(random() % 20) - 10;
    value = std::ldexp(static_cast<float>(random()) / 4e9f - 0.5f, exponent);
  }
  return values;
}

template <class T>
Tensor tensor_of(const Context& ctx, DType dtype, const std::vector<float>& values) {
  const Tensor tensor = ctx.empty(dtype, {static_cast<int64_t>(values.size())});
  for (size_t i = 0; i < values.size(); ++i) tensor.as<T>()[i] = from_float<T>(values[i]);
  return tensor;
}

// Bit for bit the sum in rank order: of what `part` holds of each rank's values, in fp32, rounded to T once.
template <class T>
void require_sum(const Tensor& sum, std::span<const int> ranks, size_t begin, size_t values) {
  for (size_t i = 0; i < static_cast<size_t>(sum.count()); ++i) {
    float total = 0;
    for (int rank : ranks) total += to_float(from_float<T>(values_of(rank, values)[begin + i]));
    require(to_float(sum.as<T>()[i]) == to_float(from_float<T>(total)), "element {} is {}, not {}", i,
            to_float(sum.as<T>()[i]), total);
  }
}

struct OnCpu {
  Arena arena{Device::Cpu, size_t{1} << 20};
  Context ctx{arena, Device::Cpu, DType::F32};
};

template <class T>
void collectives(Transport& transport, const std::vector<int>& ranks, uint32_t channel, DType dtype) {
  const OnCpu cpu;
  const ProcessGroup group(transport, ranks, channel);
  const auto size = static_cast<size_t>(group.size()), own = static_cast<size_t>(group.rank());
  constexpr size_t kCount = 37;

  const Tensor partial_sums = tensor_of<T>(cpu.ctx, dtype, values_of(transport.rank(), size * kCount));
  const Tensor part = cpu.ctx.empty(dtype, {kCount});
  group.reduce_scatter_sum(cpu.ctx, partial_sums, part);
  require_sum<T>(part, ranks, own * kCount, size * kCount);

  const Tensor all = cpu.ctx.empty(dtype, {static_cast<int64_t>(size * kCount)});
  group.all_gather(cpu.ctx, part, all);
  require_sum<T>(all, ranks, 0, size * kCount);

  group.all_reduce_sum(cpu.ctx, partial_sums);
  require_sum<T>(partial_sums, ranks, 0, size * kCount);

  const std::vector<int> everyone = group.values(transport.rank());
  require(everyone == ranks, "values came in another order: {}", fmt::join(everyone, ", "));
  // All ranks' parts but the own: of reduce_scatter, all_gather and all_reduce (made of all_gather), not of values.
  const size_t bytes = (size - 1) * (2 + size) * kCount * size_of(dtype);
  require(group.bytes_sent() == bytes, "{} bytes were sent, not {}", group.bytes_sent(), bytes);
}

TEST(ProcessGroup, CollectivesAreExactOnEveryAxisOfAMesh) {
  const Mesh mesh({{"pipeline", 2}, {"data", 2}, {"tensor", 2}});
  LocalWorld world(mesh.ranks());
  const auto texts = on_ranks(world, [&](Transport& transport) {
    const auto group = [&](std::initializer_list<std::string_view> axes) { return mesh.group(transport.rank(), axes); };
    collectives<float>(transport, group({"tensor"}), 0, DType::F32);
    collectives<float>(transport, group({"data"}), 1, DType::F32);
    collectives<float>(transport, group({"pipeline"}), 2, DType::F32);
    collectives<float>(transport, group({"tensor", "data"}), 3, DType::F32);
    collectives<Bf16>(transport, group({"data", "pipeline"}), 4, DType::BF16);
    collectives<Bf16>(transport, group({"tensor", "data", "pipeline"}), 5, DType::BF16);
  });
  EXPECT_THAT(texts, Each(""));
}

// Large ones by slices, of which some ranks may have none: the same bits, and the bytes of a rank do not grow with the
// group.
TEST(ProcessGroup, LargeSumsSendTwiceTheirBytesAtMost) {
  for (const int ranks : {2, 3, 7})
    for (const size_t count : {size_t{300'001}, size_t{1} << 20}) {
      LocalWorld world(ranks);
      const auto texts = on_ranks(world, [&](Transport& transport) {
        Arena arena(Device::Cpu, size_t{64} << 20);
        const Context ctx(arena, Device::Cpu, DType::F32);
        std::vector<int> all(static_cast<size_t>(ranks));
        std::iota(all.begin(), all.end(), 0);
        const ProcessGroup group(transport, all, 0);
        const Tensor x = tensor_of<float>(ctx, DType::F32, values_of(transport.rank(), count));
        group.all_reduce_sum(ctx, x);
        std::vector<float> want(count);
        for (const int rank : all) {
          const std::vector<float> values = values_of(rank, count);
          for (size_t i = 0; i < count; ++i) want[i] += values[i];
        }
        for (size_t i = 0; i < count; ++i)
          require(x.as<float>()[i] == want[i], "element {} is {}, not {}", i, x.as<float>()[i], want[i]);
        require(group.bytes_sent() <= 2 * x.bytes(), "{} bytes were sent of {}", group.bytes_sent(), x.bytes());
      });
      EXPECT_THAT(texts, Each(""));
    }
}

// More ranks than slices: the last have nothing to add up.
TEST(ProcessGroup, PlannedSumsCountWhatIsSent) {
  Arena arena(Device::Meta, 0);
  const Context ctx(arena, Device::Cpu, DType::F32);
  const ProcessGroup many = ProcessGroup::planned(65536, 0);
  const Tensor x = ctx.empty(DType::F32, {4096});
  many.all_reduce_sum(ctx, x);
  EXPECT_LE(many.bytes_sent(), 2 * x.bytes() + 64 * sizeof(float) * 65536);
}

TEST(ProcessGroup, SumsOfDoublesToo) {
  LocalWorld world(3);
  const auto texts = on_ranks(world, [](Transport& transport) {
    const OnCpu cpu;
    const ProcessGroup group(transport, {0, 1, 2}, 0);
    const Tensor x = cpu.ctx.empty(DType::F64, {1});
    x.as<double>()[0] = transport.rank() == 0 ? 1e16 : 1.0;
    group.all_reduce_sum(cpu.ctx, x);
    require(x.as<double>()[0] == (1e16 + 1.0) + 1.0, "{}", x.as<double>()[0]);
  });
  EXPECT_THAT(texts, Each(""));
}

TEST(ProcessGroup, RanksMayStandInAnyOrder) {
  LocalWorld world(3);
  const auto texts = on_ranks(world, [](Transport& transport) {
    const ProcessGroup group(transport, {2, 0, 1}, 0);
    require(group.values(transport.rank()) == std::vector<int>{2, 0, 1}, "another order");
    require(group.world_rank(group.rank()) == transport.rank(), "another rank");
  });
  EXPECT_THAT(texts, Each(""));
}

TEST(ProcessGroup, PassesTensorsAlongAPipeline) {
  LocalWorld world(4);
  const auto texts = on_ranks(world, [](Transport& transport) {
    const OnCpu cpu;
    const ProcessGroup group(transport, {0, 1, 2, 3}, 0);
    const Tensor x = cpu.ctx.empty(DType::F32, {1});
    for (int step = 0; step < 50; ++step) {
      x.as<float>()[0] = static_cast<float>(step);
      if (group.rank() > 0) group.receive(cpu.ctx, group.rank() - 1, x);
      x.as<float>()[0] = 10 * x.as<float>()[0] + static_cast<float>(group.rank());
      if (group.rank() < 3)
        group.send(cpu.ctx, group.rank() + 1, x);
      else
        require(x.as<float>()[0] == static_cast<float>(1000 * (10 * step) + 123), "step {}: {}", step,
                x.as<float>()[0]);
    }
  });
  EXPECT_THAT(texts, Each(""));
}

TEST(ProcessGroup, AloneMovesNothing) {
  const OnCpu cpu;
  const ProcessGroup group;
  const Tensor x = tensor_of<float>(cpu.ctx, DType::F32, {1, 2, 3});
  const Tensor y = cpu.ctx.empty(DType::F32, {3});
  group.all_gather(cpu.ctx, x, y);
  group.all_reduce_sum(cpu.ctx, y);
  group.reduce_scatter_sum(cpu.ctx, y, x);
  EXPECT_THAT(std::vector<float>(x.as<float>(), x.as<float>() + 3), ElementsAre(1, 2, 3));
  EXPECT_EQ(group.bytes_sent(), 0u);
  EXPECT_THAT(group.values(7), ElementsAre(7));
}

TEST(ProcessGroup, RefusesShapesAndRanksThatDoNotFit) {
  LocalWorld world(2);
  const OnCpu cpu;
  EXPECT_THROW(ProcessGroup(world.transport(0), {1}, 0), Error);
  const ProcessGroup group(world.transport(0), {0, 1}, 0);
  const Tensor three = cpu.ctx.empty(DType::F32, {3}), two = cpu.ctx.empty(DType::F32, {2});
  EXPECT_THROW(group.all_gather(cpu.ctx, three, two), Error);
  EXPECT_THROW(group.reduce_scatter_sum(cpu.ctx, three, two), Error);
  EXPECT_THROW(ProcessGroup::planned(2, 0).exchange(cpu.ctx, {}, {}), Error);
}

}  // namespace
}  // namespace agoq::comm
