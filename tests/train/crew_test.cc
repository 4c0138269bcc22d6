#include "train/crew.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "comm/ranks.h"

namespace agoq::train {
namespace {

using namespace std::chrono_literals;
using testing::Each;
using testing::HasSubstr;

TEST(Crew, WorkMayTakeLongerThanRanksWaitForEachOther) {
  comm::LocalWorld world(2, 1s);
  EXPECT_THAT(comm::on_ranks(world,
                             [](comm::Transport& transport) {
                               const Crew crew(&transport);
                               crew.at_length([&] { std::this_thread::sleep_for(crew.leads() ? 0s : 2s); }, 50ms);
                             }),
              Each(""));
}

TEST(Crew, WorkThatFailsOnOneFailsOnAll) {
  comm::LocalWorld world(2, 60s);
  EXPECT_THAT(comm::on_ranks(world,
                             [](comm::Transport& transport) {
                               const Crew crew(&transport);
                               crew.at_length([&] { require(crew.leads(), "rank {} cannot", crew.rank()); }, 1ms);
                             }),
              Each("rank 1 cannot"));
}

}  // namespace
}  // namespace agoq::train
