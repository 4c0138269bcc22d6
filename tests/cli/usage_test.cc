// Help, wrong command lines and wrong files: what people see when something is not as it should be.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>

#include "base/text.h"
#include "cli/program.h"
#include "train/config/settings.h"

namespace agoq {
namespace {

using test::Ran;
using test::run_agoq;
using test::TinyRun;
using testing::HasSubstr;

// One line on stderr, nothing on stdout.
void expect_error(const Ran& ran, int status, const std::string& text) {
  EXPECT_EQ(ran.status, status);
  EXPECT_THAT(ran.err, testing::StartsWith("agoq: error: "));
  EXPECT_THAT(ran.err, HasSubstr(text));
  EXPECT_EQ(std::count(ran.err.begin(), ran.err.end(), '\n'), 1) << ran.err;
  EXPECT_EQ(ran.out, "");
}

TEST(Usage, OverviewNamesEveryCommandAndAFirstExample) {
  const Ran help = run_agoq({"--help"});
  EXPECT_EQ(help.status, 0);
  for (const char* name :
       {"train", "plan", "eval", "generate", "export", "inspect", "data", "report", "bench", "doctor"})
    EXPECT_THAT(help.out, testing::ContainsRegex(std::string("\n  ") + name + " +[a-z]"));
  EXPECT_THAT(help.out, HasSubstr("agoq train --model-config demo"));
  EXPECT_EQ(run_agoq({}).out, help.out);
  EXPECT_THAT(run_agoq({"--version"}).out, testing::MatchesRegex("agoq [0-9.]+\n"));
}

TEST(Usage, HelpOfTrainExplainsEverySettingWithItsDefault) {
  const std::string help = run_agoq({"train", "--help"}).out;
  for (const train::Setting& setting : train::all_settings())
    EXPECT_THAT(help, HasSubstr("\n  --" + std::string(setting.name))) << setting.name;
  for (const char* group : {"Model:", "Data:", "Batch and schedule:", "Precision:", "Run:"})
    EXPECT_THAT(help, HasSubstr(group));
  EXPECT_THAT(help, HasSubstr("(default: 0.0003)"));
  for (const std::string& line : split(help, '\n')) EXPECT_LE(line.size(), 125u) << line;
}

TEST(Usage, EveryCommandHasHelp) {
  for (const char* name : {"plan", "eval", "generate", "export", "inspect", "bench", "doctor"}) {
    const Ran ran = run_agoq({name, "--help"});
    EXPECT_EQ(ran.status, 0) << name;
    EXPECT_THAT(ran.out, HasSubstr(std::string("Usage: agoq ") + name));
  }
}

TEST(Usage, UnknownNamesGetTheNearestOnes) {
  expect_error(run_agoq({"trian"}), 2, "unknown command 'trian'; did you mean 'train'?");
  expect_error(run_agoq({"train", "--seq-lenght", "5"}), 2, "unknown flag --seq-lenght; did you mean '--seq-length'?");
  expect_error(run_agoq({"plan", "--gpu-mem=5GiB"}), 2, "unknown flag --gpu-mem; did you mean '--gpu-memory'?");
  expect_error(run_agoq({"train", "stray"}), 2, "unexpected argument 'stray'");
  expect_error(run_agoq({"--nonsense"}), 2, "unknown flag --nonsense");
}

TEST(Usage, WrongValuesAreNamed) {
  expect_error(run_agoq({"train", "--seq-length", "long"}), 2, "--seq-length: 'long' is not a whole number");
  expect_error(run_agoq({"train", "--seed", "-1"}), 2, "--seed: '-1'");
  expect_error(run_agoq({"train", "--lr"}), 2, "--lr");
  expect_error(run_agoq({"train", "--eod-mask-loss=perhaps"}), 2, "a switch takes no value");
  expect_error(run_agoq({"export", "x", "y", "--dtype", "int4"}), 2, "int4 not in {bf16,fp16,fp32}");
  expect_error(run_agoq({"export", "x"}), 2, "DESTINATION is required");
  expect_error(run_agoq({"plan", "demo", "--gpu-memory", "lots"}), 1, "'lots' is not a size");
  expect_error(run_agoq({"plan", "lama3-8b"}), 1, "did you mean 'llama3-8b'");
  expect_error(run_agoq({"plan", "demo", "--activation-policy", "fp3"}), 1, "unknown activation policy 'fp3'");
}

TEST(Usage, ImpossibleValuesAreRefusedBeforeAnyWork) {
  const TinyRun tiny;
  const auto refused = [&](const std::string& flag, const std::string& value, const std::string& text) {
    expect_error(tiny.train(1, "run", {flag, value}), 1, text);
    EXPECT_FALSE(std::filesystem::exists(tiny.file("run"))) << flag;
  };
  for (const char* flag : {"--threads", "--keep-checkpoints", "--sample-tokens", "--train-iters", "--eval-interval"})
    refused(flag, "-1", std::string(flag) + " must not be negative, but is -1");
  refused("--threads", "1025", "--threads 1025: at most 1024");
  refused("--log-interval", "0", "--log-interval must be positive, not 0");
  refused("--eod-token", "257", "--eod-token 257 is outside the model's vocabulary of 257");
  expect_error(run_agoq({"generate", "x", "--max-new-tokens", "-5"}), 2, "--max-new-tokens: '-5'");
}

TEST(Usage, BenchLooksAtItsFileBeforeItMeasures) {
  const Ran ran = run_agoq({"bench", "codec", "--model-config", "demo", "--seq-length", "64", "--device", "cpu",
                            "--seconds", "0.01", "--json", "no/such/folder/x.json"});
  EXPECT_EQ(ran.status, 1);
  EXPECT_THAT(ran.err, HasSubstr("cannot write no/such/folder/x.json"));
  EXPECT_EQ(ran.out, "");
}

TEST(Usage, AResultThatCannotBeWrittenIsAFailure) {
  const TinyRun tiny;
  for (const std::vector<std::string>& arguments :
       {std::vector<std::string>{"plan", "demo"}, {"inspect", tiny.text_path()}, {"doctor"}}) {
    const Ran ran = run_agoq(arguments, {.output = "/dev/full"});
    EXPECT_EQ(ran.status, 1) << arguments[0];
    EXPECT_THAT(ran.err, HasSubstr("standard output took only a part of the result"));
  }
}

TEST(Usage, ConfigFileErrorsNameTheLine) {
  const ScratchFolder folder;
  const std::string path = folder.file("c.toml");
  write_plainly(path, "model-config = \"demo\"\nmicro-batchsize = 4\n");
  expect_error(run_agoq({"plan", "--config", path}), 1,
               path + ":2: unknown setting 'micro-batchsize'; did you mean 'micro-batch-size'?");
  write_plainly(path, "model-config = \"demo\nseq-length = 4");
  expect_error(run_agoq({"plan", "--config", path}), 1, path + ":1: Error while parsing string");
  write_plainly(path, "model-config = demo");
  expect_error(run_agoq({"plan", "--config", path}), 1, "text stands in quotes");
  expect_error(run_agoq({"plan", "--config", folder.file("none.toml")}), 1, "none.toml");
}

TEST(Usage, FlagsWinOverTheFile) {
  const ScratchFolder folder;
  write_plainly(folder.file("c.toml"), "model-config = 'demo'\nseq-length = 128\nmicro-batch-size = 3\n");
  const std::string out = run_agoq({"plan", "--config", folder.file("c.toml"), "--seq-length", "64"}).out;
  EXPECT_THAT(out, HasSubstr("micro-batches of 3 x 64 tokens"));
}

TEST(Usage, MissingInputsAreNamed) {
  const TinyRun tiny;
  const std::string none = tiny.file("none");
  expect_error(run_agoq({"train"}), 1, "no model: give --model FOLDER or --model-config");
  expect_error(run_agoq({"train", "--model-config", tiny.model_path()}), 1, "no training data");
  expect_error(run_agoq({"eval", none, "--data-path", tiny.text_path()}), 1, none);
  expect_error(run_agoq({"generate", none}), 1, none);
  expect_error(run_agoq({"export", none, tiny.file("out")}), 1, none);
  expect_error(run_agoq({"inspect", none}), 1, none);
  std::filesystem::create_directory(tiny.file("empty"));
  expect_error(run_agoq({"eval", tiny.file("empty"), "--data-path", tiny.text_path()}), 1, "neither a run folder");
  expect_error(run_agoq({"train", "--model-config", tiny.file("none.json"), "--data-path", "x"}), 1, "none.json");
}

TEST(Usage, DoctorLooksAtTheMachine) {
  const Ran ran = run_agoq({"doctor"});
  EXPECT_EQ(ran.status, 0) << ran.err;
  for (const char* what : {"CPU", "memory", "OpenBLAS", "NCCL", "CUDA runtime", "NVIDIA GPUs", "Python", "disk space"})
    EXPECT_THAT(ran.out, HasSubstr(what));
}

}  // namespace
}  // namespace agoq
