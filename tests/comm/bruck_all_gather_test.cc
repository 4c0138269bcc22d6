#include "comm/bruck_all_gather.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <numeric>

#include "comm/all_gather_strings.h"
#include "comm/counting_transport.h"
#include "comm/process_group.h"
#include "comm/ranks.h"
#include "sanitized.h"

namespace agoq::comm {
namespace {

using testing::Each;
using testing::StartsWith;

// ⌈log2 ranks⌉.
int rounds(int ranks) {
  return std::bit_width(static_cast<unsigned>(ranks - 1));
}

std::vector<int> all_ranks(int ranks) {
  std::vector<int> all(static_cast<size_t>(ranks));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

void require_messages(const CountingTransport& transport, int messages) {
  require(transport.sent() == messages && transport.received() == messages, "{} messages out and {} in, not {}",
          transport.sent(), transport.received(), messages);
}

const std::vector<int> kSizes = {1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 33};

TEST(BruckAllGather, ValuesOfAllInRankOrderInLogarithmicallyManyMessages) {
  for (const int ranks : kSizes) {
    LocalWorld world(ranks);
    const auto texts = on_ranks(world, [&](Transport& local) {
      CountingTransport transport(local);
      std::vector<int> backwards = all_ranks(ranks);
      std::reverse(backwards.begin(), backwards.end());
      const ProcessGroup group(transport, backwards, 7);
      struct Value {
        int rank;
        std::array<char, 9> text;
      };
      const std::vector<Value> all = group.values(Value{transport.rank(), {'a', 'b'}});
      for (size_t i = 0; i < all.size(); ++i)
        require(all[i].rank == backwards[i] && all[i].text[1] == 'b', "value {} is of rank {}", i, all[i].rank);
      require_messages(transport, rounds(ranks));
      const uint64_t bytes = sizeof(Value) * static_cast<size_t>(ranks - 1);
      require(transport.bytes_sent(7) == bytes, "{} bytes were sent, not {}", transport.bytes_sent(7), bytes);
      require(group.bytes_sent() == 0, "values are counted as {} bytes of traffic", group.bytes_sent());
    });
    EXPECT_THAT(texts, Each("")) << ranks << " ranks";
  }
}

// What the host carries goes in rounds up to 1 MiB of all ranks together, and directly beyond. The bytes are the same,
// and those that a dry run plans.
TEST(BruckAllGather, TensorsGoInRoundsWhereTheyAreSmall) {
  for (const int ranks : kSizes)
    for (const bool small : {true, false}) {
      LocalWorld world(ranks);
      const int64_t count = static_cast<int64_t>(kMostBytesOfSmall / sizeof(float)) / ranks + (small ? 0 : 1);
      Arena planned_arena(Device::Meta, 0);
      const Context planned_ctx(planned_arena, Device::Cpu, DType::F32);
      const ProcessGroup planned = ProcessGroup::planned(ranks, 0);
      planned.all_gather(planned_ctx, planned_ctx.empty(DType::F32, {count}),
                         planned_ctx.empty(DType::F32, {ranks, count}));
      const auto texts = on_ranks(world, [&](Transport& local) {
        CountingTransport transport(local);
        const ProcessGroup group(transport, all_ranks(ranks), 0);
        Arena arena(Device::Cpu, size_t{4} << 20);
        const Context ctx(arena, Device::Cpu, DType::F32);
        const Tensor mine = ctx.empty(DType::F32, {count}), all = ctx.empty(DType::F32, {ranks, count});
        for (int64_t i = 0; i < count; ++i) mine.as<float>()[i] = static_cast<float>(1000 * transport.rank() + i % 999);
        group.all_gather(ctx, mine, all);
        for (int64_t i = 0; i < all.count(); ++i)
          require(all.as<float>()[i] == static_cast<float>(1000 * (i / count) + i % count % 999), "number {}", i);
        require_messages(transport, small ? rounds(ranks) : ranks - 1);
        require(group.bytes_sent() == planned.bytes_sent(), "{} bytes were sent, {} were planned", group.bytes_sent(),
                planned.bytes_sent());
      });
      EXPECT_THAT(texts, Each("")) << ranks << " ranks";
    }
}

// Of any lengths, also none at all.
TEST(BruckAllGather, StringsOfAnyLength) {
  for (const int ranks : kSizes)
    for (const size_t unit : {size_t{0}, size_t{1}, size_t{100'000}}) {
      LocalWorld world(ranks);
      const auto text_of = [&](size_t rank) { return std::string(rank % 3 * unit, static_cast<char>('a' + rank)); };
      const auto texts = on_ranks(world, [&](Transport& local) {
        CountingTransport transport(local);
        const auto all = all_gather_strings(transport, 3, text_of(static_cast<size_t>(transport.rank())));
        size_t bytes = 0;
        for (size_t i = 0; i < all.size(); ++i) {
          require(all[i] == text_of(i), "the text of rank {} has {} bytes", i, all[i].size());
          bytes += all[i].size();
        }
        const int of_texts = bytes == 0 ? 0 : bytes <= kMostBytesOfSmall ? rounds(ranks) : ranks - 1;
        require_messages(transport, rounds(ranks) + of_texts);
      });
      EXPECT_THAT(texts, Each("")) << ranks << " ranks, unit " << unit;
    }
}

TEST(BruckAllGather, ThousandRanksSendTenMessages) {
  const int ranks = test::kSanitized ? 64 : 1024;
  LocalWorld world(ranks);
  const auto texts = on_ranks(world, [&](Transport& local) {
    CountingTransport transport(local);
    const ProcessGroup group(transport, all_ranks(ranks), 0);
    require(group.values(transport.rank()) == all_ranks(ranks), "values came in another order");
    require_messages(transport, rounds(ranks));
  });
  EXPECT_THAT(texts, Each(""));
}

TEST(BruckAllGather, ARankThatFailsEndsAll) {
  LocalWorld world(9);
  const auto texts = on_ranks(world, [](Transport& transport) {
    if (transport.rank() == 4) return transport.abandon("a bug");
    ProcessGroup(transport, all_ranks(9), 0).values(1);
  });
  for (size_t rank = 0; rank < 9; ++rank) EXPECT_EQ(texts[rank], rank == 4 ? "" : "rank 4: a bug");
}

// Those whose partners wait themselves name who keeps them all.
TEST(BruckAllGather, ARankThatDoesNotComeIsNamed) {
  LocalWorld world(9, std::chrono::milliseconds(300));
  const auto texts = on_ranks(world, [](Transport& transport) {
    if (transport.rank() != 4) ProcessGroup(transport, all_ranks(9), 0).values(1);
  });
  for (const size_t rank : {0, 1, 2, 3, 5, 6, 7, 8})
    EXPECT_THAT(texts[rank], StartsWith("rank 4 has not come, though alive: rank ")) << rank;
}

}  // namespace
}  // namespace agoq::comm
