#include "parallel/stages.h"

#include <gmock/gmock.h>

#include "base/error.h"
#include "base/error_of.h"

namespace agoq::parallel {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

std::vector<int64_t> counts(int64_t layers, int stages, int chunks, const EndLayers& ends = {}) {
  std::vector<int64_t> counts;
  for (const LayerRange& range : divide_layers(layers, stages, chunks, ends)) counts.push_back(range.count());
  return counts;
}

TEST(Stages, DivideLayersEvenly) {
  EXPECT_THAT(divide_layers(8, 2, 2),
              ElementsAre(LayerRange{0, 2}, LayerRange{2, 4}, LayerRange{4, 6}, LayerRange{6, 8}));
  EXPECT_THAT(counts(5, 1, 1), ElementsAre(5));
}

TEST(Stages, LayersLeftOverGoBeforeTheLastStage) {
  EXPECT_THAT(counts(9, 4, 1), ElementsAre(2, 2, 3, 2));
  EXPECT_THAT(counts(10, 4, 1), ElementsAre(2, 3, 3, 2));
  EXPECT_THAT(counts(11, 4, 1), ElementsAre(3, 3, 3, 2));
  EXPECT_THAT(counts(7, 2, 2), ElementsAre(2, 2, 2, 1));
  EXPECT_THAT(counts(3, 2, 1), ElementsAre(2, 1));
}

TEST(Stages, CoverAllLayersInOrder) {
  for (int p = 1; p <= 16; ++p)
    for (int v = 1; v <= 4; ++v)
      for (int64_t layers = p * v; layers <= 100; ++layers) {
        const std::vector<LayerRange> ranges = divide_layers(layers, p, v);
        ASSERT_EQ(ranges.size(), static_cast<size_t>(p * v));
        int64_t next = 0;
        for (const LayerRange& range : ranges) {
          ASSERT_EQ(range.begin, next);
          ASSERT_TRUE(range.count() == layers / (p * v) || range.count() == layers / (p * v) + 1);
          next = range.end;
        }
        ASSERT_EQ(next, layers);
        ASSERT_EQ(ranges.back().count(), layers / (p * v)) << "the stage with the head";
      }
}

TEST(Stages, ExplicitEndsLeaveTheRestToTheOthers) {
  EXPECT_THAT(counts(16, 4, 1, {3, 3}), ElementsAre(3, 5, 5, 3));
  EXPECT_THAT(counts(17, 4, 1, {3, 3}), ElementsAre(3, 5, 6, 3));
  EXPECT_THAT(counts(16, 4, 1, {1, 0}), ElementsAre(1, 5, 5, 5));
  EXPECT_THAT(counts(16, 4, 1, {3, 0}), ElementsAre(3, 4, 5, 4));
  EXPECT_THAT(counts(16, 4, 1, {0, 2}), ElementsAre(4, 5, 5, 2));
  EXPECT_THAT(counts(5, 2, 1, {3, 2}), ElementsAre(3, 2));
}

TEST(Stages, RefuseWhatLeavesAStageEmpty) {
  EXPECT_THAT(error_of([] { divide_layers(24, 8, 4); }),
              AllOf(HasSubstr("24 layers are too few for 8 stages x 4 chunks"),
                    HasSubstr("8 stages allow at most 3 chunks"), HasSubstr("4 chunks allow at most 6 stages")));
  EXPECT_THAT(error_of([] { divide_layers(4, 8, 1); }),
              AllOf(HasSubstr("8 stages allow no chunks"), HasSubstr("1 chunks allow at most 4 stages")));
  EXPECT_THAT(error_of([] { divide_layers(8, 4, 1, {5, 2}); }), HasSubstr("leave 1 of 8 layers for the other 2"));
  EXPECT_THAT(error_of([] { divide_layers(8, 2, 1, {5, 2}); }), HasSubstr("need none"));
  EXPECT_THAT(error_of([] { divide_layers(8, 2, 2, {1, 0}); }), HasSubstr("one chunk per stage, not 2"));
  EXPECT_THAT(error_of([] { divide_layers(8, 1, 1, {1, 0}); }), HasSubstr("2 or more stages"));
  EXPECT_THROW(divide_layers(8, 4, 1, {-1, 0}), Error);
}

}  // namespace
}  // namespace agoq::parallel
