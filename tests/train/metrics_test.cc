#include "train/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cmath>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>

#include "base/log.h"
#include "base/scratch_folder.h"
#include "train/data_files.h"
#include "train/run_folder.h"

namespace agoq::train {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using Json = nlohmann::json;

std::vector<Json> lines_of(const std::string& path) {
  std::vector<Json> lines;
  std::istringstream text(read_plainly(path));
  for (std::string line; std::getline(text, line);) lines.push_back(Json::parse(line));
  return lines;
}

StepMetrics metrics_of(int64_t step) {
  StepMetrics m;
  m.step = step;
  m.loss = 1.0 / static_cast<double>(step);
  return m;
}

TEST(Metrics, NumbersReadBackExactly) {
  const ScratchFolder scratch;
  std::mt19937_64 random(1);
  std::vector<double> losses = {0, 1e-300, 0.1f, 2.302585092994046, std::numeric_limits<double>::denorm_min(), 1e22};
  for (int i = 0; i < 200; ++i) {
    const double value = std::bit_cast<double>(random());
    if (std::isfinite(value)) losses.push_back(value);
  }
  {
    MetricsWriter writer(scratch.file("m"), 0);
    for (size_t i = 0; i < losses.size(); ++i) {
      StepMetrics m = metrics_of(static_cast<int64_t>(i) + 1);
      m.loss = m.grad_norm = m.lr = losses[i];
      writer.step(m);
      writer.valid(m.step, losses[i]);
    }
  }
  const std::vector<Json> lines = lines_of(scratch.file("m"));
  ASSERT_EQ(lines.size(), 2 * losses.size());
  for (size_t i = 0; i < losses.size(); ++i) {
    EXPECT_EQ(lines[2 * i]["loss"].get<double>(), losses[i]);
    EXPECT_EQ(lines[2 * i]["lr"].get<double>(), losses[i]);
    EXPECT_EQ(lines[2 * i + 1]["valid_loss"].get<double>(), losses[i]);
  }
}

TEST(Metrics, ALineHasTheFieldsThatReportsRead) {
  const ScratchFolder scratch;
  StepMetrics m{12, NAN, 3e-4, INFINITY, 123.456789, 45678.9, 1.5, 0.31, 1u << 30, 2};
  MetricsWriter(scratch.file("m"), 0).step(m);
  const Json line = lines_of(scratch.file("m")).at(0);
  EXPECT_EQ(line.size(), 10u);
  EXPECT_EQ(line["step"], 12);
  EXPECT_TRUE(line["loss"].is_null());
  EXPECT_TRUE(line["grad_norm"].is_null());
  EXPECT_NEAR(line["step_ms"].get<double>(), m.step_ms, 1e-3);
  EXPECT_NEAR(line["tokens_per_second"].get<double>(), m.tokens_per_second, 0.1);
  EXPECT_EQ(line["tflops"], 1.5);
  EXPECT_EQ(line["mfu"], 0.31);
  EXPECT_EQ(line["memory_bytes"], 1u << 30);
  EXPECT_EQ(line["skipped"], 2);
}

TEST(Metrics, AStepWithoutTargetsHasNoLossAndIsCounted) {
  const ScratchFolder scratch;
  StepMetrics m{.step = 3, .loss = NAN, .skipped = 5, .without_targets = 4, .counted = false};
  MetricsWriter(scratch.file("m"), 0).step(m);
  const Json line = lines_of(scratch.file("m")).at(0);
  EXPECT_TRUE(line["loss"].is_null());
  EXPECT_EQ(line["skipped"], 5);
  EXPECT_EQ(line["without_targets"], 4);
  EXPECT_THAT(log_line(m, 10, 1), AllOf(HasSubstr("| loss       - |"), HasSubstr("skipped 5")));
}

// Of a CPU, whose peak nobody states.
TEST(Metrics, TellNoMfuWithoutAPeak) {
  const ScratchFolder scratch;
  MetricsWriter(scratch.file("m"), 0).step({.step = 1, .tflops = 0.05});
  const Json line = lines_of(scratch.file("m")).at(0);
  EXPECT_FALSE(line.contains("mfu"));
  EXPECT_EQ(line["tflops"], 0.05);
  EXPECT_THAT(log_line({.step = 1, .tflops = 0.05}, 10, 1), AllOf(Not(HasSubstr("MFU")), HasSubstr("TFLOP/s |")));
}

TEST(Metrics, ALineOfSeveralProcessesTellsWhatWasWaitedFor) {
  const ScratchFolder scratch;
  StepMetrics m{.step = 1};
  m.exposed = ExposedSeconds{0.0015, 0, 1.25, 0.002};
  MetricsWriter(scratch.file("m"), 0).step(m);
  const Json want = {{"tensor", 1.5}, {"pipeline", 0.0}, {"gradients", 1250.0}, {"weights", 2.0}};
  EXPECT_EQ(lines_of(scratch.file("m")).at(0)["exposed_ms"], want);
}

TEST(Metrics, ALineTellsTheSharesThatEightBitFloatsDoNotHold) {
  const ScratchFolder scratch;
  StepMetrics m{.step = 1};
  m.fp8 = ops::Fp8Counts{{{1000, 0, 1}, {8, 2, 0}, {4, 0, 0}}};  // dW is made of numbers
  MetricsWriter(scratch.file("m"), 0).step(m);
  m.fp8 = ops::Fp8Counts{};  // nothing counts for the loss
  MetricsWriter(scratch.file("none"), 0).step(m);
  const Json line = lines_of(scratch.file("m")).at(0);
  EXPECT_EQ(line["fp8_flushed"], (Json{{"x", 0.001}, {"w", 0.0}, {"dy", 0.0}}));
  EXPECT_EQ(line["fp8_saturated"], (Json{{"x", 0.0}, {"w", 0.25}, {"dy", 0.0}}));
  EXPECT_FALSE(lines_of(scratch.file("none")).at(0).contains("fp8_flushed"));
}

TEST(Metrics, AResumedRunWritesTheSameHistory) {
  const ScratchFolder scratch;
  set_log_level(LogLevel::Error);
  const auto run = [](MetricsWriter writer, int64_t from, int64_t to) {
    for (int64_t step = from; step <= to; ++step) {
      writer.step(metrics_of(step));
      if (step % 5 == 0) writer.valid(step, static_cast<double>(step));
    }
  };
  run(MetricsWriter(scratch.file("whole"), 0), 1, 20);
  run(MetricsWriter(scratch.file("killed"), 0), 1, 13);
  write_plainly(scratch.file("killed"), read_plainly(scratch.file("killed")) + "{\"step\":14,\"lo");  // torn by a kill
  run(MetricsWriter(scratch.file("killed"), 10), 11, 20);
  EXPECT_EQ(read_plainly(scratch.file("killed")), read_plainly(scratch.file("whole")));
  run(MetricsWriter(scratch.file("killed"), 0), 1, 2);  // from the beginning
  EXPECT_EQ(lines_of(scratch.file("killed")).size(), 2u);
  set_log_level(LogLevel::Info);
}

// A run that is killed between its last evaluation and its summary evaluates again when it is started again.
TEST(Metrics, AnEvaluationIsToldOnceHoweverOftenItIsMade) {
  const ScratchFolder scratch;
  const std::string path = scratch.file("m");
  {
    MetricsWriter writer(path, 0);
    writer.step(metrics_of(1));
    writer.valid(1, 2.5);
  }
  const std::string history = read_plainly(path);
  for (int restart = 0; restart < 3; ++restart) MetricsWriter(path, 1).valid(1, 2.5);
  EXPECT_EQ(read_plainly(path), history);
  write_plainly(path, history + "{\"step\":1,\"valid_loss\":2.5}\n");  // of an earlier version
  MetricsWriter(path, 1).valid(2, 1.5);
  EXPECT_EQ(read_plainly(path), history + "{\"step\":2,\"valid_loss\":1.5}\n");
}

TEST(Metrics, DamagedLinesAreQuotedWithoutTheirControlBytes) {
  const ScratchFolder scratch;
  write_plainly(scratch.file("m"), "{\"step\":1}\n\x1b]0;owned\x07\xff\n");
  testing::internal::CaptureStderr();
  MetricsWriter(scratch.file("m"), 1);
  const std::string told = testing::internal::GetCapturedStderr();
  EXPECT_THAT(told, HasSubstr("no metrics line: \\x1b]0;owned\\x07\\xff\n"));
  EXPECT_EQ(told.find('\x1b', told.find("no metrics line")), std::string::npos);
}

TEST(Metrics, EveryLineIsInTheFileAtOnce) {
  const ScratchFolder scratch;
  MetricsWriter writer(scratch.file("m"), 0);
  for (int64_t step = 1; step < 4; ++step) {
    writer.step(metrics_of(step));
    EXPECT_EQ(lines_of(scratch.file("m")).size(), static_cast<size_t>(step));
  }
  EXPECT_THAT(error_of([&] { MetricsWriter(scratch.file("no/folder/m"), 0); }), HasSubstr("no/folder/m"));
}

TEST(LogLine, SaysEverythingInColumns) {
  const StepMetrics m{120, 2.34567, 3e-4, 0.5123, 123.44, 12345, 0.1234, 0.312, uint64_t{3} << 29, 1};
  const std::string line = log_line(m, 2000, 3723);
  for (const char* part : {" 120/2000", "loss  2.3457", "lr 3.00e-04", "0.512", "123.4 ms", "tokens/s", "0.123 TFLOP/s",
                           "MFU 31.2%", "1.50 GiB", "skipped 1", "ETA 01:02:03"})
    EXPECT_THAT(line, HasSubstr(part));
  EXPECT_EQ(line.find('\n'), std::string::npos);
  const StepMetrics other{7, 11.3, 1e-6, 120.5, 9.1, 987654, 45.6, 0.05, 1000, 3};
  EXPECT_EQ(log_line(other, 2000, 59.6).size(), line.size());
  EXPECT_THAT(log_line(other, 2000, 90061), HasSubstr("ETA 1d 01:01:01"));
  EXPECT_THAT(log_line(other, 2000, NAN), HasSubstr("ETA -"));
  EXPECT_THAT(log_line(other, 2000, 59.6), AllOf(HasSubstr("MFU  5.0%"), HasSubstr("00:01:00")));
}

TEST(RunFolder, KnowsItsFilesAndWritesThemWhole) {
  const ScratchFolder scratch;
  const RunFolder run(scratch.file("runs/deep/demo"));
  EXPECT_EQ(run.config(), scratch.file("runs/deep/demo/config.toml"));
  EXPECT_EQ(run.checkpoints(), scratch.file("runs/deep/demo/checkpoints"));
  run.write_json("summary.json", R"({"valid_loss":1.5,"b":[1,2]})");
  EXPECT_EQ(Json::parse(read_plainly(run.summary())), (Json{{"valid_loss", 1.5}, {"b", {1, 2}}}));
  EXPECT_THROW(run.write_json("summary.json", "{"), Error);
  EXPECT_EQ(Json::parse(read_plainly(run.summary()))["valid_loss"], 1.5);
  run.write("config.toml", "seed = 1\n");
  EXPECT_EQ(read_plainly(run.config()), "seed = 1\n");
  EXPECT_FALSE(std::filesystem::exists(scratch.file("runs/deep/demo/probe")));
}

TEST(RunFolder, BelongsToOneRunAtATime) {
  const ScratchFolder scratch;
  {
    const RunFolder first(scratch.file("run"));
    EXPECT_THAT(error_of([&] { RunFolder second(scratch.file("run")); }),
                AllOf(HasSubstr("in use by process " + std::to_string(getpid())), HasSubstr(scratch.file("run"))));
  }
  EXPECT_NO_THROW(RunFolder(scratch.file("run")));
}

TEST(RunFolder, AKilledRunLeavesNoLock) {
  const ScratchFolder scratch;
  const pid_t child = fork();
  if (child == 0) {
    const RunFolder run(scratch.file("run"));
    kill(getpid(), SIGKILL);
  }
  int status = 0;
  waitpid(child, &status, 0);
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_NO_THROW(RunFolder(scratch.file("run")));
}

TEST(RunFolder, WhatCannotBeWrittenFailsAtOnce) {
  const ScratchFolder scratch;
  write_plainly(scratch.file("file"), "");
  EXPECT_THAT(error_of([&] { RunFolder(scratch.file("file")); }), HasSubstr(scratch.file("file")));
  EXPECT_THAT(error_of([&] { RunFolder(scratch.file("file/run")); }), HasSubstr("cannot create the run folder"));
  EXPECT_THAT(error_of([&] { RunFolder("/proc/self"); }),
              AllOf(HasSubstr("/proc/self cannot be used"), HasSubstr("probe")));
  EXPECT_THAT(error_of([&] { RunFolder(""); }), HasSubstr("no name"));
}

}  // namespace
}  // namespace agoq::train
