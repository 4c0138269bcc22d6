#include "base/log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace agoq {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

template <class Action>
std::string stderr_of(Action action) {
  testing::internal::CaptureStderr();
  action();
  return testing::internal::GetCapturedStderr();
}

TEST(Log, SaysTheRankOnlyAmongSeveral) {
  EXPECT_THAT(stderr_of([] { log_info("loss {:.2f}", 1.5); }), AllOf(HasSubstr("loss 1.50\n"), Not(HasSubstr("rank"))));
  set_log_rank(3, 4);
  EXPECT_THAT(stderr_of([] { log_warning("careful"); }), AllOf(HasSubstr("[rank 3]"), HasSubstr("warning: careful")));
  set_log_rank(0, 1);
  EXPECT_THAT(stderr_of([] { log_error("{{}}"); }), AllOf(HasSubstr("error: {}"), Not(HasSubstr("rank"))));
}

TEST(Log, ShowsControlBytesOfWhatItQuotes) {
  EXPECT_THAT(stderr_of([] { log_warning("the line '{}'", "\x1b[2J\xff"); }), HasSubstr("the line '\\x1b[2J\\xff'"));
}

TEST(Log, DropsWhatIsBelowTheLevel) {
  set_log_level(LogLevel::Warning);
  EXPECT_THAT(stderr_of([] { log_info("hidden"); }), IsEmpty());
  EXPECT_THAT(stderr_of([] { log_error("shown"); }), HasSubstr("shown"));
  set_log_level(LogLevel::Info);
}

}  // namespace
}  // namespace agoq
