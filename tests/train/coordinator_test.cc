#include "train/coordinator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "comm/ranks.h"

namespace agoq::train {
namespace {

using namespace std::chrono_literals;
using testing::Each;
using testing::HasSubstr;

TEST(Coordinator, WorkMayTakeLongerThanRanksWaitForEachOther) {
  comm::LocalWorld world(2, 1s);
  EXPECT_THAT(comm::on_ranks(world,
                             [](comm::Transport& transport) {
                               const Coordinator coordinator(&transport);
                               coordinator.at_length(
                                   [&] { std::this_thread::sleep_for(coordinator.is_rank0() ? 0s : 2s); }, 50ms);
                             }),
              Each(""));
}

TEST(Coordinator, WorkThatFailsOnOneFailsOnAll) {
  comm::LocalWorld world(2, 60s);
  EXPECT_THAT(comm::on_ranks(world,
                             [](comm::Transport& transport) {
                               const Coordinator coordinator(&transport);
                               coordinator.at_length(
                                   [&] { require(coordinator.is_rank0(), "rank {} cannot", coordinator.rank()); }, 1ms);
                             }),
              Each("rank 1 cannot"));
}

}  // namespace
}  // namespace agoq::train
