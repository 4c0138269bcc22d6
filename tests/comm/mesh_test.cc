#include "comm/mesh.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "base/error.h"

namespace agoq::comm {
namespace {

using testing::ElementsAre;

TEST(Mesh, RanksAndCoordinatesAreInverse) {
  const Mesh mesh({2, 3, 4});
  std::set<Coordinates> seen;
  for (int rank = 0; rank < mesh.ranks(); ++rank) {
    EXPECT_EQ(mesh.rank(mesh.coordinates(rank)), rank);
    seen.insert(mesh.coordinates(rank));
  }
  EXPECT_EQ(seen.size(), 24u);
  EXPECT_THROW(mesh.coordinates(24), Error);
  EXPECT_THROW(mesh.coordinates(-1), Error);
}

TEST(Mesh, TensorRanksAreNeighbours) {
  const Mesh mesh({2, 2, 2});
  EXPECT_THAT(mesh.group(5, {Axis::Tensor}), ElementsAre(4, 5));
  EXPECT_THAT(mesh.group(5, {Axis::Data}), ElementsAre(5, 7));
  EXPECT_THAT(mesh.group(5, {Axis::Pipeline}), ElementsAre(1, 5));
  EXPECT_THAT(mesh.group(5, {Axis::Tensor, Axis::Data}), ElementsAre(4, 5, 6, 7));
  EXPECT_THAT(mesh.group(5, {}), ElementsAre(5));
}

// Along any axes, each rank is in exactly one group, which is the same for all of its members.
TEST(Mesh, GroupsPartitionTheWorld) {
  const Mesh mesh({2, 3, 4});
  for (const std::initializer_list<Axis> axes : {std::initializer_list<Axis>{Axis::Tensor},
                                                 {Axis::Data},
                                                 {Axis::Pipeline},
                                                 {Axis::Tensor, Axis::Data},
                                                 {Axis::Data, Axis::Pipeline},
                                                 {Axis::Tensor, Axis::Data, Axis::Pipeline}}) {
    size_t size = 1;
    for (Axis axis : axes) size *= static_cast<size_t>(mesh.size(axis));
    for (int rank = 0; rank < mesh.ranks(); ++rank) {
      const std::vector<int> group = mesh.group(rank, axes);
      EXPECT_EQ(group.size(), size);
      EXPECT_THAT(group, testing::Contains(rank));
      for (int member : group) EXPECT_EQ(mesh.group(member, axes), group);
    }
  }
}

TEST(Mesh, RefusesAnEmptyAxis) {
  EXPECT_THROW(Mesh({2, 0, 1}), Error);
  EXPECT_EQ(Mesh({2, 1, 4}).text(), "tensor 2 x data 1 x pipeline 4");
}

}  // namespace
}  // namespace agoq::comm
