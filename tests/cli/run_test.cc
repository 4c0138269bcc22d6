// A run from its first step to the exported model, by the commands that a user types.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "base/text.h"
#include "cli/program.h"
#include "train/settings.h"

namespace agoq {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using test::Ran;
using test::run_agoq;
using test::TinyRun;
using testing::HasSubstr;

std::map<int64_t, double> losses_of(const std::string& folder) {
  std::map<int64_t, double> losses;
  for (const std::string& line : split(trim(read_plainly(folder + "/metrics.jsonl")), '\n'))
    if (const json entry = json::parse(line); entry.contains("loss")) losses[entry["step"]] = entry["loss"];
  return losses;
}

TEST(Run, TrainsAndTellsWhatItHolds) {
  const TinyRun tiny;
  const Ran ran = tiny.train(
      12, "run", {"--eval-interval", "6", "--log-interval", "4", "--sample-tokens", "8", "--sample-prompt", "the c"});
  ASSERT_EQ(ran.status, 0) << ran.err;
  EXPECT_EQ(ran.err, "");
  for (const char* what :
       {"device  cpu, 2 threads", "saved gate_up", "main gradients", " 4/12 | ", "12/12 | ", "step 6: held-out loss",
        "step 12: held-out loss", "sample of what the model writes", "the c", "bytes per parameter", "total"})
    EXPECT_THAT(ran.out, HasSubstr(what));
  EXPECT_THAT(ran.out, testing::Not(HasSubstr("\r"))) << "no terminal, no redrawn lines";
  for (const char* name : {"config.toml", "recipe.json", "metrics.jsonl", "memory.json", "summary.json", "checkpoints"})
    EXPECT_TRUE(fs::exists(tiny.file("run") + "/" + name)) << name;

  const auto losses = losses_of(tiny.file("run"));
  ASSERT_EQ(losses.size(), 12u);
  EXPECT_LT(losses.at(12), losses.at(1) - 0.5) << "it learns";
  const json memory = json::parse(read_plainly(tiny.file("run") + "/memory.json"));
  EXPECT_EQ(memory["predicted"], memory["allocated"]);

  // The written config is complete and repeats the run.
  train::TrainConfig config;
  train::read_toml_file(config, tiny.file("run") + "/config.toml");
  EXPECT_EQ(config.seq_length, 32);
  ASSERT_EQ(run_agoq({"train", "--config", tiny.file("run") + "/config.toml", "--save", tiny.file("again")}).status, 0);
  EXPECT_EQ(losses_of(tiny.file("again")), losses);
}

TEST(Run, ContinuesBitForBit) {
  const TinyRun tiny;
  ASSERT_EQ(tiny.train(8, "whole").status, 0);
  ASSERT_EQ(tiny.train(5, "parts").status, 0);
  const Ran rest = tiny.train(8, "parts");
  ASSERT_EQ(rest.status, 0) << rest.err;
  EXPECT_THAT(rest.out, HasSubstr("at step 5"));
  EXPECT_EQ(losses_of(tiny.file("parts")), losses_of(tiny.file("whole")));
  EXPECT_THAT(tiny.train(8, "parts").out, HasSubstr("nothing to do: all 8 steps are done"));

  const Ran changed = tiny.train(8, "parts", {"--seed", "7"});
  EXPECT_EQ(changed.status, 1);
  EXPECT_THAT(changed.err, HasSubstr("seed: saved 1234, now 7"));
}

TEST(Run, KilledRunContinuesBitForBit) {
  const TinyRun tiny;
  const std::vector<std::string> saving = {"--save-interval", "10", "--log-interval", "1000"};
  ASSERT_EQ(tiny.train(120, "whole", saving).status, 0);
  std::vector<std::string> arguments = tiny.train_arguments(120, "killed");
  arguments.insert(arguments.end(), saving.begin(), saving.end());
  test::run_and_signal(arguments, "KILL", tiny.file("killed") + "/metrics.jsonl", 15);
  const Ran rest = run_agoq(arguments);
  ASSERT_EQ(rest.status, 0) << rest.err;
  EXPECT_EQ(losses_of(tiny.file("killed")), losses_of(tiny.file("whole")));
}

TEST(Run, SignalSavesAndExitsWithZero) {
  for (const char* signal : {"TERM", "INT"}) {
    const TinyRun tiny;
    const std::vector<std::string> arguments = tiny.train_arguments(1000000, "run");
    const Ran ran = test::run_and_signal(arguments, signal, tiny.file("run") + "/metrics.jsonl", 3);
    EXPECT_EQ(ran.status, 0) << ran.err;
    EXPECT_THAT(ran.out, testing::ContainsRegex("stopped by a signal at step [1-9][0-9]*; the same command"));
    EXPECT_TRUE(fs::exists(tiny.file("run") + "/checkpoints/latest"));
  }
}

class TrainedRun : public testing::Test {
 public:
  static void SetUpTestSuite() {
    tiny_ = new TinyRun;
    ASSERT_EQ(tiny_->train(12, "run").status, 0);
  }
  static void TearDownTestSuite() { delete tiny_; }

 protected:
  static std::string run() { return tiny_->file("run"); }
  static double loss_of(const std::string& source) {
    const Ran ran = run_agoq({"eval", source, "--data-path", tiny_->text_path(), "--seq-length", "32", "--json"});
    EXPECT_EQ(ran.status, 0) << ran.err;
    return json::parse(ran.out)["loss"];
  }
  static inline TinyRun* tiny_ = nullptr;
};

TEST_F(TrainedRun, EvaluatesExportsAndEvaluatesTheSame) {
  const std::string exported = tiny_->file("exported");
  const Ran ran = run_agoq({"export", run(), exported, "--dtype", "fp32"});
  ASSERT_EQ(ran.status, 0) << ran.err;
  EXPECT_TRUE(fs::exists(exported + "/config.json"));
  EXPECT_DOUBLE_EQ(loss_of(exported), loss_of(run()));
  EXPECT_LT(loss_of(run()), 5.0) << "untrained: ln 257 = 5.55";
  const Ran text = run_agoq({"eval", run(), "--data-path", tiny_->text_path(), "--max-samples", "3"});
  EXPECT_THAT(text.out, testing::MatchesRegex(
                            "loss [0-9.]+ nats a token, perplexity [0-9.]+, [0-9.]+ bits a byte, over 96 tokens\n"));
}

TEST_F(TrainedRun, GeneratesFromRunAndExportAlike) {
  const std::string exported = tiny_->file("exported-for-text");
  ASSERT_EQ(run_agoq({"export", run(), exported, "--dtype", "fp32"}).status, 0);
  const auto generate = [](const std::string& source) {
    return run_agoq({"generate", source, "--prompt", "the cat", "--max-new-tokens", "12", "--temperature", "0"});
  };
  const Ran ran = generate(run());
  ASSERT_EQ(ran.status, 0) << ran.err;
  EXPECT_THAT(ran.out, testing::StartsWith("the cat"));
  EXPECT_GT(ran.out.size(), std::string("the cat\n").size());
  EXPECT_EQ(generate(exported).out, ran.out);
}

TEST_F(TrainedRun, InspectSaysWhatIsThere) {
  const Ran ran = run_agoq({"inspect", run(), "--verify"});
  ASSERT_EQ(ran.status, 0) << ran.err;
  for (const char* what : {"step 12", "weights/layers.0.qkv", "checksums of all", "query / key-value heads"})
    EXPECT_THAT(ran.out, HasSubstr(what));
  EXPECT_THAT(run_agoq({"inspect", tiny_->text_path(), "--verify"}).out, HasSubstr("text, "));
  EXPECT_THAT(run_agoq({"inspect", tiny_->model_path()}).out, HasSubstr("vocabulary"));
}

TEST_F(TrainedRun, DamagedCheckpointIsFoundAndNamed) {
  const std::string copy = tiny_->file("damaged");
  fs::copy(run(), copy, fs::copy_options::recursive);
  const fs::path checkpoint = fs::path(copy) / "checkpoints/step-00000012";
  const std::string shard = [&] {
    for (const auto& entry : fs::directory_iterator(checkpoint))
      if (entry.path().extension() == ".safetensors") return entry.path().string();
    return std::string();
  }();
  std::string bytes = read_plainly(shard);
  bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 1);
  write_plainly(shard, bytes);
  for (const std::vector<std::string>& arguments :
       {std::vector<std::string>{"inspect", copy, "--verify"}, {"eval", copy, "--data-path", tiny_->text_path()}}) {
    const Ran ran = run_agoq(arguments);
    EXPECT_EQ(ran.status, 1) << arguments[0];
    EXPECT_THAT(ran.err, HasSubstr(fs::path(shard).filename().string()));
  }
  write_plainly(shard, bytes.substr(0, bytes.size() / 2));
  EXPECT_EQ(run_agoq({"inspect", copy}).status, 1);
}

TEST(Run, UnwritableFolderFailsBeforeTheFirstStep) {
  const TinyRun tiny;
  write_plainly(tiny.file("occupied"), "a file, not a folder");
  const Ran ran = tiny.train(5, "occupied");
  EXPECT_EQ(ran.status, 1);
  EXPECT_THAT(ran.err, HasSubstr("occupied"));
  EXPECT_THAT(ran.out, testing::Not(HasSubstr("1/5")));
  if (geteuid() == 0) return;  // root may write everywhere
  fs::create_directory(tiny.file("closed"));
  fs::permissions(tiny.file("closed"), fs::perms::owner_read | fs::perms::owner_exec);
  EXPECT_EQ(tiny.train(5, "closed").status, 1);
}

}  // namespace
}  // namespace agoq
