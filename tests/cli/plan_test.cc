#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sys/resource.h>

#include <nlohmann/json.hpp>

#include "cli/program.h"
#include "model/model_config.h"

namespace agoq {
namespace {

using nlohmann::json;
using test::Ran;
using test::run_agoq;
using testing::HasSubstr;

json plan_of(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), "plan");
  arguments.push_back("--json");
  const Ran ran = run_agoq(arguments);
  EXPECT_EQ(ran.status, 0) << ran.err;
  return json::parse(ran.out);
}

// Sanitizers make the program ten times slower; the promise is about the program that users run.
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
constexpr double kPlanSeconds = 20;
#else
constexpr double kPlanSeconds = 1;
#endif
#elif defined(__SANITIZE_ADDRESS__)
constexpr double kPlanSeconds = 20;
#else
constexpr double kPlanSeconds = 1;
#endif

// Processor seconds of the programs run so far: what a busy machine does not stretch.
double child_seconds() {
  rusage usage{};
  getrusage(RUSAGE_CHILDREN, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

TEST(Plan, AnyPresetAndLengthInUnderASecond) {
  for (const std::string& preset : model::preset_names())
    for (const char* length : {"1024", "8192", "131072", "1000000"}) {
      const double before = child_seconds();
      const json plan = plan_of({preset, "--seq-length", length, "--gpu-memory", "80GiB"});
      EXPECT_LT(child_seconds() - before, kPlanSeconds) << preset << " " << length;
      EXPECT_EQ(plan["seq_length"], std::stoll(length));
      uint64_t sum = 0;
      for (const json& owner : plan["owners"]) sum += owner["bytes"].get<uint64_t>();
      EXPECT_EQ(plan["total"], sum);
      EXPECT_EQ(plan["fits"].get<bool>(),
                sum + plan["cuda_context_estimate"].get<uint64_t>() <= plan["budget"].get<uint64_t>());
      EXPECT_LE(plan["bytes_per_parameter"].get<double>(), 7.1) << preset;
    }
}

TEST(Plan, EveryAdviceKeepsItsPromise) {
  // 13B does not fit, 8B unquantized does not fit: what is promised for each change is what a plan with that change
  // says.
  for (const std::vector<std::string>& given :
       {std::vector<std::string>{"llama3.2-1b", "--seq-length", "65536", "--micro-batch-size", "2", "--gpu-memory",
                                 "40GiB"},
        {"llama2-7b", "--seq-length", "4096", "--exp-avg-dtype", "fp32", "--exp-avg-sq-dtype", "fp32",
         "--main-grads-dtype", "fp32", "--main-params-dtype", "fp32", "--activation-policy", "bf16", "--gpu-memory",
         "80GiB"}}) {
    const json plan = plan_of(given);
    ASSERT_FALSE(plan["fits"].get<bool>());
    ASSERT_GE(plan["advice"].size(), 4u);
    bool still_fitting = true;
    for (const json& advice : plan["advice"]) {
      std::vector<std::string> changed = given;
      std::istringstream words(advice["change"].get<std::string>());
      for (std::string word; words >> word;) {
        std::erase(word, '\'');
        changed.push_back(word);
      }
      const json then = plan_of(changed);
      EXPECT_EQ(then["total"], advice["total"]) << advice["change"];
      EXPECT_EQ(then["fits"], advice["fits"]) << advice["change"];
      EXPECT_EQ(plan["total"].get<uint64_t>() - then["total"].get<uint64_t>(), advice["saved"].get<uint64_t>());
      EXPECT_TRUE(still_fitting || !advice["fits"].get<bool>()) << "what fits stands first";
      still_fitting = advice["fits"].get<bool>();
    }
  }
}

TEST(Plan, SuggestsTheLongestSequenceThatFits) {
  const json plan = plan_of({"llama3-8b", "--seq-length", "131072", "--gpu-memory", "80GiB"});
  std::string longest;
  for (const json& advice : plan["advice"])
    if (const auto change = advice["change"].get<std::string>(); change.starts_with("--seq-length "))
      longest = change.substr(13);
  ASSERT_FALSE(longest.empty());
  const int64_t length = std::stoll(longest);
  EXPECT_EQ(length % 1024, 0);
  EXPECT_TRUE(plan_of({"llama3-8b", "--seq-length", longest, "--gpu-memory", "80GiB"})["fits"].get<bool>());
  EXPECT_FALSE(plan_of({"llama3-8b", "--seq-length", std::to_string(length + 1024), "--gpu-memory", "80GiB"})["fits"]
                   .get<bool>());
}

TEST(Plan, TextSaysWhatFits) {
  const std::string fits = run_agoq({"plan", "llama3-8b", "--seq-length", "8192", "--gpu-memory", "80GiB"}).out;
  EXPECT_THAT(fits, testing::ContainsRegex("fits in 80.00 GiB: yes, [0-9.]+ GiB free"));
  const std::string not_at_all = run_agoq({"plan", "codellama-34b", "--gpu-memory", "80GiB"}).out;
  EXPECT_THAT(not_at_all, HasSubstr("fits in 80.00 GiB: no"));
  EXPECT_THAT(not_at_all, HasSubstr("no batch is small enough"));
  const std::string long_one = run_agoq({"plan", "llama2-7b", "--seq-length", "65536"}).out;
  EXPECT_THAT(long_one, HasSubstr("longer than the 4096 positions"));
}

TEST(Plan, UnquantizedTrainingNeedsEighteenBytesPerParameter) {
  const json plan = plan_of({"llama2-7b", "--baseline", "bf16"});
  EXPECT_NEAR(plan["bytes_per_parameter"].get<double>(), 18.0, 0.01);
  EXPECT_EQ(plan["total"], plan["reference_total"]);
}

}  // namespace
}  // namespace agoq
