// The program chooses what libraries read from the environment, never over the user, and tells it; nothing below does.
#include "cli/environment.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <regex>

#include "cli/program.h"
#include "device/gpu.h"
#include "device/gpu_queues.h"

namespace agoq::cli {
namespace {

namespace fs = std::filesystem;

using test::Ran;
using test::run_agoq;
using test::Shell;
using test::TinyRun;
using testing::ContainsRegex;
using testing::HasSubstr;
using testing::Not;

// The tests set OMP_WAIT_POLICY for the program, in place of which it would choose.
const std::string kWithoutPolicy = std::string("env -u OMP_WAIT_POLICY ") + AGOQ_PROGRAM;

TEST(Environment, OnlyTheProgramWritesIt) {
  const fs::path sources = fs::path(AGOQ_SOURCES) / "src";
  const std::regex writes(R"(\b(setenv|putenv|unsetenv|clearenv)\s*\()");
  int files = 0, writers = 0;
  for (const auto& entry : fs::recursive_directory_iterator(sources)) {
    if (!entry.is_regular_file()) continue;
    ++files;
    if (!std::regex_search(read_plainly(entry.path().string()), writes)) continue;
    ++writers;
    EXPECT_EQ(*fs::relative(entry.path(), sources).begin(), fs::path("cli")) << entry.path();
  }
  EXPECT_GT(files, 100);
  EXPECT_GE(writers, 1) << "it looks for the wrong words";
}

TEST(Environment, WhatTheProgramChoosesIsTold) {
  const Shell shell{.before = "unset GOMP_SPINCOUNT; ", .program = kWithoutPolicy};
  EXPECT_THAT(run_agoq({"doctor"}, shell).out, ContainsRegex("GOMP_SPINCOUNT +10000, chosen by agoq"));
  const TinyRun run;
  const Ran ran = run_agoq(run.train_arguments(1, "run"), shell);
  EXPECT_EQ(ran.status, 0) << ran.err;
  EXPECT_THAT(ran.out, ContainsRegex("\nset     [^\n]*GOMP_SPINCOUNT=10000"));
}

TEST(Environment, TheUsersValuesStand) {
  const Shell shell{.before = "export GOMP_SPINCOUNT=7; ", .program = kWithoutPolicy};
  EXPECT_THAT(run_agoq({"doctor"}, shell).out, ContainsRegex("GOMP_SPINCOUNT +7, of the environment"));
  const TinyRun run;
  EXPECT_THAT(run_agoq(run.train_arguments(1, "run"), shell).out, Not(HasSubstr("GOMP_SPINCOUNT")));
}

TEST(Environment, OfACudaBuildHasQueuesForAllStreams) {
  if constexpr (!kCudaBuild) GTEST_SKIP() << "this build has no CUDA backend";
  const auto doctor = [](const std::string& before) { return run_agoq({"doctor"}, {.before = before}).out; };
  EXPECT_THAT(doctor("unset CUDA_DEVICE_MAX_CONNECTIONS; "),
              ContainsRegex("ok +CUDA_DEVICE_MAX_CONNECTIONS +32, chosen by agoq"));
  const std::string one = doctor("export CUDA_DEVICE_MAX_CONNECTIONS=1; ");
  EXPECT_THAT(one, ContainsRegex("UNFIT +CUDA_DEVICE_MAX_CONNECTIONS +1, of the environment"));
  EXPECT_THAT(one, HasSubstr(why_too_few_gpu_queues("1")));
}

}  // namespace
}  // namespace agoq::cli
