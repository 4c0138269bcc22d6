#include "comm/mesh.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "base/error.h"

namespace agoq::comm {
namespace {

using testing::ElementsAre;
using Names = std::initializer_list<std::string_view>;

// Any number of axes, any names.
Mesh pipeline_data_tensor(int pipeline, int data, int tensor) {
  return Mesh({{"pipeline", pipeline}, {"data", data}, {"tensor", tensor}});
}

TEST(Mesh, RanksAndPlacesAreInverse) {
  const Mesh mesh({{"pipeline", 2}, {"replica", 3}, {"data", 2}, {"context", 1}, {"tensor", 2}});
  EXPECT_EQ(mesh.ranks(), 24);
  std::set<std::vector<int>> seen;
  for (int rank = 0; rank < mesh.ranks(); ++rank) {
    std::vector<Axis> places;
    std::vector<int> numbers;
    for (const Axis& axis : mesh.axes()) {
      places.push_back({axis.name, mesh.at(rank, axis.name)});
      numbers.push_back(places.back().size);
    }
    EXPECT_EQ(mesh.rank(places), rank);
    seen.insert(numbers);
  }
  EXPECT_EQ(seen.size(), 24U);
  EXPECT_THROW(mesh.at(24, "data"), Error);
  EXPECT_THROW(mesh.at(-1, "data"), Error);
}

TEST(Mesh, TheLastAxisHasNeighbours) {
  const Mesh mesh = pipeline_data_tensor(2, 2, 2);
  EXPECT_THAT(mesh.group(5, {"tensor"}), ElementsAre(4, 5));
  EXPECT_THAT(mesh.group(5, {"data"}), ElementsAre(5, 7));
  EXPECT_THAT(mesh.group(5, {"pipeline"}), ElementsAre(1, 5));
  EXPECT_THAT(mesh.group(5, {"tensor", "data"}), ElementsAre(4, 5, 6, 7));
  EXPECT_THAT(mesh.group(5, {}), ElementsAre(5));
  EXPECT_EQ(mesh.rank({{"pipeline", 1}, {"tensor", 1}}), 5);
}

TEST(Mesh, AnAxisThatItDoesNotHaveHasOneRank) {
  const Mesh mesh = pipeline_data_tensor(1, 4, 2);
  EXPECT_EQ(mesh.size("expert"), 1);
  EXPECT_EQ(mesh.at(7, "expert"), 0);
  EXPECT_THAT(mesh.group(5, {"expert"}), ElementsAre(5));
  EXPECT_THAT(Mesh().group(0, {"data"}), ElementsAre(0));
  EXPECT_EQ(Mesh().ranks(), 1);
}

// Along any axes, each rank is in exactly one group, which is the same for all of its members.
TEST(Mesh, GroupsPartitionTheWorld) {
  const Mesh mesh = pipeline_data_tensor(4, 3, 2);
  for (const Names axes : {Names{"tensor"}, Names{"data"}, Names{"pipeline"}, Names{"tensor", "data"},
                           Names{"data", "pipeline"}, Names{"tensor", "data", "pipeline"}}) {
    size_t size = 1;
    for (const std::string_view axis : axes) size *= static_cast<size_t>(mesh.size(axis));
    for (int rank = 0; rank < mesh.ranks(); ++rank) {
      const std::vector<int> group = mesh.group(rank, axes);
      EXPECT_EQ(group.size(), size);
      EXPECT_TRUE(std::ranges::is_sorted(group));
      EXPECT_THAT(group, testing::Contains(rank));
      for (int member : group) EXPECT_EQ(mesh.group(member, axes), group);
    }
  }
}

TEST(Mesh, RefusesAnEmptyAxisAndANameThatComesTwice) {
  EXPECT_THROW(pipeline_data_tensor(1, 0, 2), Error);
  EXPECT_THROW(Mesh({{"data", 2}, {"data", 2}}), Error);
  EXPECT_EQ(pipeline_data_tensor(4, 1, 2).text(), "pipeline 4 x data 1 x tensor 2");
}

}  // namespace
}  // namespace agoq::comm
