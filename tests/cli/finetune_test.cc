// A new run that begins with the weights of another.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "cli/program.h"

namespace agoq {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using test::losses_of;
using test::Ran;
using test::run_agoq;
using test::TinyRun;
using testing::HasSubstr;

class FineTuning : public testing::Test {
 protected:
  FineTuning() {
    EXPECT_EQ(tiny_.train(6, "base").status, 0);
    for (int i = 0; i < 300; ++i) poems_ += "roses are red, violet number " + std::to_string(i) + " is blue\n";
    write_plainly(tiny_.file("poems.txt"), poems_);
  }
  Ran tune(int steps, const std::string& from, const std::string& save, const std::vector<std::string>& more = {}) {
    std::vector<std::string> arguments = {"train",
                                          "--finetune",
                                          tiny_.file(from),
                                          "--data-path",
                                          tiny_.file("poems.txt"),
                                          "--seq-length",
                                          "16",
                                          "--lr-decay-style",
                                          "constant",
                                          "--train-iters",
                                          std::to_string(steps),
                                          "--save",
                                          tiny_.file(save)};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run_agoq(arguments);
  }
  // Every file of a folder with its content.
  std::map<std::string, std::string> contents(const std::string& folder) {
    std::map<std::string, std::string> files;
    for (const auto& entry : fs::recursive_directory_iterator(tiny_.file(folder)))
      if (entry.is_regular_file()) files[entry.path().string()] = read_plainly(entry.path().string());
    return files;
  }
  double loss_of(const std::string& folder) {
    const Ran ran =
        run_agoq({"eval", tiny_.file(folder), "--data-path", tiny_.file("poems.txt"), "--seq-length", "16", "--json"});
    EXPECT_EQ(ran.status, 0) << ran.err;
    return json::parse(ran.out)["loss"];
  }
  TinyRun tiny_;
  std::string poems_;
};

TEST_F(FineTuning, BeginsAtStepZeroWithTheWeightsAloneAndLeavesTheSourceAlone) {
  const auto before = contents("base");
  const Ran none = tune(0, "base", "untouched");
  ASSERT_EQ(none.status, 0) << none.err;
  EXPECT_THAT(none.out, testing::ContainsRegex("begins with the weights of .*/base/checkpoints/step-00000006"));
  EXPECT_EQ(loss_of("untouched"), loss_of("base"));
  ASSERT_EQ(tune(4, "base/checkpoints", "tuned").status, 0);
  EXPECT_EQ(losses_of(tiny_.file("tuned")).begin()->first, 1);
  EXPECT_LT(loss_of("tuned"), loss_of("base"));
  EXPECT_EQ(contents("base"), before);
  // Moments begin at zero: the same as from an export, which has none.
  ASSERT_EQ(run_agoq({"export", tiny_.file("base"), tiny_.file("exported"), "--dtype", "fp32"}).status, 0);
  ASSERT_EQ(
      run_agoq({"train", "--model", tiny_.file("exported"), "--data-path", tiny_.file("poems.txt"), "--seq-length",
                "16", "--lr-decay-style", "constant", "--train-iters", "4", "--save", tiny_.file("from-export")})
          .status,
      0);
  EXPECT_EQ(losses_of(tiny_.file("tuned")), losses_of(tiny_.file("from-export")));
}

TEST_F(FineTuning, TheSameCommandContinuesBitForBitEvenWithoutItsSource) {
  ASSERT_EQ(tune(6, "base", "whole").status, 0);
  ASSERT_EQ(tune(3, "base/", "parts").status, 0);
  fs::rename(tiny_.file("base"), tiny_.file("gone"));
  const Ran rest = tune(6, "base", "parts");
  ASSERT_EQ(rest.status, 0) << rest.err;
  EXPECT_THAT(rest.out, testing::ContainsRegex("resumed from .*/parts/checkpoints/step-00000003 at step 3"));
  EXPECT_EQ(losses_of(tiny_.file("parts")), losses_of(tiny_.file("whole")));
}

TEST_F(FineTuning, RefusesWhatWouldMixTwoRuns) {
  for (const char* inside : {"base", "base/checkpoints", "base/checkpoints/step-00000006"}) {
    const Ran ran = tune(3, inside, "base");
    EXPECT_EQ(ran.status, 1);
    EXPECT_THAT(ran.err, HasSubstr("a fine-tuning run needs a folder of its own")) << inside;
  }
  ASSERT_EQ(tune(2, "base", "tuned").status, 0);
  ASSERT_EQ(tune(2, "tuned", "again").status, 0);
  const Ran other = tune(3, "tuned", "again/../tuned");
  EXPECT_THAT(other.err, HasSubstr("needs a folder of its own"));
  const Ran source = tune(3, "again", "tuned");
  EXPECT_EQ(source.status, 1);
  EXPECT_THAT(source.err, testing::ContainsRegex("began with --finetune .*/base, and this command begins with "
                                                 "--finetune .*/again"));
  const Ran without = tiny_.train(3, "tuned");
  EXPECT_EQ(without.status, 1);
  EXPECT_THAT(without.err, testing::ContainsRegex("this command begins without --finetune: to continue that run, pass "
                                                  "the same value: --finetune .*/base;"));
  const Ran two = tune(3, "base", "new", {"--model-config", tiny_.model_path()});
  EXPECT_THAT(two.err, HasSubstr("give one of them"));
  fs::create_directory(tiny_.file("empty"));
  EXPECT_THAT(tune(3, "empty", "new").err, HasSubstr("no checkpoint there"));
  EXPECT_FALSE(fs::exists(tiny_.file("new")));
}

}  // namespace
}  // namespace agoq
