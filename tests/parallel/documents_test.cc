#include "parallel/documents.h"

#include <gmock/gmock.h>

namespace agoq::parallel {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

std::vector<int32_t> offsets(std::vector<int32_t> document_start, int64_t sequence_length) {
  return document_offsets(document_start, sequence_length);
}

TEST(Documents, AreTheRunsOfOneStart) {
  EXPECT_THAT(offsets({0, 0, 0, 3, 3, 3}, 3), ElementsAre(0, 3, 6));
  EXPECT_THAT(offsets({0, 0, 2, 3, 3, 3}, 3), ElementsAre(0, 2, 3, 6));
  EXPECT_THAT(offsets({0}, 5), ElementsAre(0, 1));
}

TEST(Documents, AreUnknownWhereTokensSeeAnythingElse) {
  EXPECT_THAT(offsets({0, 0, 0, 0}, 2), IsEmpty()) << "a document over two sequences";
  EXPECT_THAT(offsets({0, 0, 1, 1}, 4), IsEmpty()) << "a start inside a document";
  EXPECT_THAT(offsets({0, 1, 0}, 4), IsEmpty()) << "back to an earlier document";
  EXPECT_THAT(offsets({1, 1}, 4), IsEmpty()) << "a start ahead of its token";
}

}  // namespace
}  // namespace agoq::parallel
