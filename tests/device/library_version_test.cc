#include "device/library_version.h"

#include <gmock/gmock.h>

#include "base/error.h"
#include "base/error_of.h"

namespace agoq {
namespace {

using ::testing::HasSubstr;

LibraryVersion library(LibraryVersion::Number built, LibraryVersion::Number loaded,
                       LibraryVersion::Number oldest = {}) {
  return {"cuDNN", built, loaded, oldest};
}

TEST(LibraryVersion, DecodesWhatTheLibrariesReturn) {
  EXPECT_EQ(decode_version(91900), (LibraryVersion::Number{9, 19, 0}));   // cudnnGetVersion
  EXPECT_EQ(decode_version(22809), (LibraryVersion::Number{2, 28, 9}));   // ncclGetVersion
  EXPECT_EQ(decode_version(130100), (LibraryVersion::Number{13, 1, 0}));  // cublasLtGetVersion
}

TEST(LibraryVersion, TheSameAndNewerMinorVersionsFit) {
  EXPECT_TRUE(library({9, 19, 0}, {9, 19, 0}).fits());
  EXPECT_TRUE(library({9, 19, 0}, {9, 26, 1}).fits());
  EXPECT_TRUE(library({2, 28, 9}, {2, 28, 3}).fits()) << "a patch release keeps the interface";
}

TEST(LibraryVersion, OlderMinorAndOtherMajorVersionsDoNot) {
  EXPECT_THAT(library({9, 19, 0}, {9, 14, 0}).misfit(),
              "cuDNN 9.14.0 is loaded, but this program was built against 9.19.0");
  EXPECT_FALSE(library({9, 19, 0}, {10, 0, 0}).fits());
  EXPECT_FALSE(library({9, 19, 0}, {8, 25, 0}).fits());
}

TEST(LibraryVersion, OneWithWrongResultsDoesNotFitWhateverTheProgramWasBuiltAgainst) {
  EXPECT_THAT(library({9, 14, 0}, {9, 14, 0}, {9, 15, 0}).misfit(), HasSubstr("oldest version that passes"));
  EXPECT_TRUE(library({9, 14, 0}, {9, 15, 0}, {9, 15, 0}).fits());
}

TEST(LibraryVersion, AMisfitIsAnErrorThatNamesBothAndTheRemedy) {
  EXPECT_NO_THROW(require_fit(library({9, 19, 0}, {9, 19, 1})));
  EXPECT_THAT(error_of([] {
                require_fit(library({9, 19, 0}, {9, 14, 0}));
              }),
              AllOf(HasSubstr("9.14.0 is loaded"), HasSubstr("cuDNN 9.19.0 or newer"), HasSubstr("LD_LIBRARY_PATH")));
}

TEST(LibraryVersion, TextHasOneNumberWhereBothAreEqual) {
  EXPECT_EQ(library({9, 19, 0}, {9, 19, 0}).text(), "9.19.0");
  EXPECT_EQ(library({9, 19, 0}, {9, 26, 1}).text(), "9.26.1, built against 9.19.0");
}

}  // namespace
}  // namespace agoq
