#include "comm/transport/local_transport.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "comm/ranks.h"
#include "comm/traffic.h"

namespace agoq::comm {
namespace {

using std::chrono::milliseconds;
using testing::Each;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::StartsWith;

TEST(LocalTransport, MovesWhatOthersMove) {
  LocalWorld world(4);
  EXPECT_THAT(on_ranks(world, [](Transport& transport) { on_two_threads(transport, 20, 50'000); }), Each(""));
  EXPECT_THAT(on_ranks(world, [](Transport& transport) { early_in_order(transport, 500); }), Each(""));
  EXPECT_THAT(on_ranks(world, [](Transport& transport) { long_ring(transport, 1 << 22); }), Each(""));
}

TEST(LocalTransport, SimulatesManyRanks) {
  LocalWorld world(64);
  EXPECT_THAT(on_ranks(world, [](Transport& transport) { all_to_all(transport, 1, 3, 2000); }), Each(""));
}

TEST(LocalTransport, SizesThatDoNotMatchAreNamed) {
  LocalWorld world(2);
  EXPECT_THAT(on_ranks(world,
                       [](Transport& transport) {
                         if (transport.rank() == 0)
                           send_to(transport, 1, 3, 100);
                         else
                           receive_from(transport, 0, 3, 96);
                       }),
              ElementsAre("", "rank 0 has sent 100 bytes on channel 3, but rank 1 expects 96 from it"));
}

TEST(LocalTransport, AReasonReachesAll) {
  LocalWorld world(4);
  EXPECT_THAT(on_ranks(world,
                       [](Transport& transport) {
                         if (transport.rank() == 3) transport.abandon("a bug");
                         receive_from(transport, (transport.rank() + 1) % 4, 3, 96);
                       }),
              Each("rank 3: a bug"));
}

TEST(LocalTransport, ARankThatDoesNotComeIsNamed) {
  LocalWorld world(4, milliseconds(300));
  const auto texts = on_ranks(world, [](Transport& transport) {
    if (transport.rank() != 0) receive_from(transport, transport.rank() - 1, 3, 96);
  });
  for (const size_t rank : {1u, 2u, 3u}) {
    EXPECT_THAT(texts[rank], StartsWith("rank 0 has not come, though alive: rank "));
    EXPECT_THAT(texts[rank], HasSubstr("has waited 0.3 s for 96 B from rank "));
  }
}

}  // namespace
}  // namespace agoq::comm
