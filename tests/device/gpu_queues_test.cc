#include "device/gpu_queues.h"

#include <gmock/gmock.h>

#include <cstdlib>

#include "base/error.h"

namespace agoq {
namespace {

using testing::HasSubstr;

TEST(GpuQueues, AreThoseThatTheDriverMakes) {
  EXPECT_EQ(gpu_queues(nullptr), 8);
  EXPECT_EQ(gpu_queues("1"), 1);
  EXPECT_EQ(gpu_queues("32"), 32);
  EXPECT_EQ(gpu_queues("100"), 32);
  for (const char* odd : {"", "0", "-3", "many", "8x"}) EXPECT_EQ(gpu_queues(odd), 8) << odd;
}

TEST(GpuQueues, TooFewAreToldWithTheRemedy) {
  EXPECT_EQ(why_too_few_gpu_queues("32"), "");
  EXPECT_EQ(why_too_few_gpu_queues("20"), "");
  const std::string one = why_too_few_gpu_queues("1"), unset = why_too_few_gpu_queues(nullptr);
  EXPECT_THAT(one, HasSubstr("CUDA_DEVICE_MAX_CONNECTIONS=1 gives the streams of a GPU 1 queue,"));
  EXPECT_THAT(one, HasSubstr("unset it"));
  EXPECT_THAT(unset, HasSubstr("CUDA_DEVICE_MAX_CONNECTIONS is not set"));
  EXPECT_THAT(unset, HasSubstr("set it to 32 before the process starts"));
  for (const std::string& text : {one, unset}) EXPECT_EQ(text.find('\n'), std::string::npos);
}

// What a job over several GPUs meets where a script has chosen for another trainer.
TEST(GpuQueues, OfTheEnvironmentAreChecked) {
  const char* before = std::getenv(kGpuQueuesVariable);
  const std::string kept = before ? before : "";
  setenv(kGpuQueuesVariable, "1", 1);
  EXPECT_THROW(require_gpu_queues(), Error);
  setenv(kGpuQueuesVariable, "32", 1);
  EXPECT_NO_THROW(require_gpu_queues());
  before ? setenv(kGpuQueuesVariable, kept.c_str(), 1) : unsetenv(kGpuQueuesVariable);
}

}  // namespace
}  // namespace agoq
