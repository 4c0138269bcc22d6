#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sys/resource.h>

#include <nlohmann/json.hpp>

#include "cli/program.h"
#include "model/model_config.h"
#include "sanitized.h"

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

constexpr double kPlanSeconds = test::kSanitized ? 20 : 1;  // the promise is about the program that users run

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

const std::vector<std::string> kPipeline = {
    "llama3-8b", "--seq-length", "8192", "--pipeline-model-parallel-size", "4", "--global-batch-size", "8"};

std::vector<std::string> with(std::vector<std::string> arguments, const std::vector<std::string>& more) {
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

TEST(Plan, EveryAdviceKeepsItsPromise) {
  // 13B does not fit, 8B unquantized does not fit: what is promised for each change is what a plan with that change
  // says.
  for (const std::vector<std::string>& given :
       {std::vector<std::string>{"llama3.2-1b", "--seq-length", "65536", "--micro-batch-size", "2", "--gpu-memory",
                                 "40GiB"},
        with(kPipeline, {"--micro-batch-size", "2", "--grad-reduce-dtype", "bf16", "--main-grads-dtype", "fp32",
                         "--gpu-memory", "24GiB"}),
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

TEST(Plan, TellsThatLayersMultiplyIn8BitFloats) {
  const std::vector<std::string> plain = {"plan", "llama3-8b", "--seq-length", "1024"};
  EXPECT_THAT(run_agoq(plain).out, testing::Not(HasSubstr("8-bit floats")));
  const std::vector<std::string> given =
      with(plain, {"--fp8-format", "hybrid", "--fp8-recipe", "tensorwise", "--first-last-layers-bf16"});
  const std::string products = "products in 8-bit floats (hybrid, tensorwise); those of layers 0 and 31 in bf16";
  EXPECT_THAT(run_agoq(given).out, HasSubstr("1 x 1024 tokens, on a GPU\n" + products + "\n\n"));
  EXPECT_EQ(plan_of({given.begin() + 1, given.end()})["products"], products);
}

// Two bytes a parameter of the layers, where a step has several micro-batches and --gpu-memory has room.
TEST(Plan, CachesWeightsIn8BitFloatsWhereTheyFit) {
  const std::vector<std::string> given = {"llama3-8b", "--seq-length", "1024", "--fp8-format", "e4m3"};
  const auto total = [&](std::vector<std::string> more) {
    return plan_of(with(given, std::move(more)))["total"].get<double>();
  };
  const double off = total({"--fp8-weight-cache", "off"}), on = total({"--fp8-weight-cache", "on"});
  EXPECT_NEAR((on - off) / (32.0 * 218e6), 2.0, 0.02);
  EXPECT_EQ(total({"--gpu-memory", "141GiB"}), off) << "one micro-batch has nothing to gain";
  EXPECT_EQ(total({"--global-batch-size", "4"}), off) << "no memory is named";
  EXPECT_EQ(total({"--global-batch-size", "4", "--gpu-memory", "141GiB"}), on);
  EXPECT_EQ(total({"--global-batch-size", "4", "--gpu-memory", "66GiB"}), off);
}

// The first of four stages multiplies in bf16 alone.
TEST(Plan, StagesMayHaveNoLayerIn8BitFloats) {
  const std::vector<std::string> given = {"llama3-8b",
                                          "--seq-length",
                                          "1024",
                                          "--pipeline-model-parallel-size",
                                          "4",
                                          "--global-batch-size",
                                          "8",
                                          "--fp8-format",
                                          "e4m3",
                                          "--first-last-layers-bf16",
                                          "--num-layers-at-start-in-bf16",
                                          "8"};
  EXPECT_GT(plan_of(with(given, {"--fp8-recipe", "delayed"}))["total"].get<double>(), 0);
  const json off = plan_of(with(given, {"--fp8-weight-cache", "off"})),
             on = plan_of(with(given, {"--fp8-weight-cache", "on"}));
  const auto more = [&](size_t stage) {
    return on["stages"][stage]["total"].get<double>() - off["stages"][stage]["total"].get<double>();
  };
  EXPECT_EQ(more(0), 0) << "none of its layers has codes";
  EXPECT_NEAR(more(1) / (8 * 218e6), 2.0, 0.02);
  EXPECT_EQ(on["stages"][3]["widths"], off["stages"][3]["widths"]) << "a cache changes no bit";
}

TEST(Plan, SuggestsTheLongestSequenceThatFits) {
  const json plan = plan_of({"llama3-8b", "--seq-length", "131072", "--gpu-memory", "80GiB"});
  EXPECT_EQ(plan["model"]["hidden_size"], 4096);
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

TEST(Plan, StagesOfAPipelineStayBelowTheFirst) {
  for (const char* chunks : {"1", "2"}) {
    const json plan = plan_of(with(kPipeline, {"--num-virtual-stages-per-pipeline-rank", chunks}));
    EXPECT_EQ(plan["world_size"], 4);
    EXPECT_EQ(plan["mesh"], (json{{"tensor", 1}, {"data", 1}, {"pipeline", 4}}));
    EXPECT_EQ(plan["micro_batches"], 8);
    ASSERT_EQ(plan["stages"].size(), 4U);
    EXPECT_EQ(plan["ranks"], plan["stages"]);
    EXPECT_EQ(plan["total"], plan["stages"][0]["total"]);
    uint64_t parameters = 0;
    for (const json& stage : plan["stages"]) {
      EXPECT_LE(stage["total"], plan["total"]);
      uint64_t sum = 0;
      for (const json& owner : stage["owners"]) sum += owner["bytes"].get<uint64_t>();
      EXPECT_EQ(stage["total"], sum);
      parameters += stage["parameters"].get<uint64_t>();
    }
    EXPECT_EQ(plan["parameters"], parameters);
  }
}

TEST(Plan, WidthsOfStagesCanBeTheSame) {
  const json dbca = plan_of(kPipeline), same = plan_of(with(kPipeline, {"--pipeline-stage-widths", "same"}));
  EXPECT_EQ(dbca["total"], same["total"]);
  for (const size_t stage : {1U, 2U, 3U}) {
    EXPECT_EQ(same["stages"][stage]["widths"], same["stages"][0]["widths"]);
    EXPECT_NE(dbca["stages"][stage]["widths"], dbca["stages"][0]["widths"]);
    EXPECT_LT(same["stages"][stage]["total"], dbca["stages"][stage]["total"]);
  }
}

TEST(Plan, ProcessesBeyondOneCopyOfTheModelAreDataParallel) {
  const json plan = plan_of({"llama3-8b", "--seq-length", "4096", "--tensor-model-parallel-size", "2",
                             "--pipeline-model-parallel-size", "2", "--world-size", "8", "--global-batch-size", "8"});
  EXPECT_EQ(plan["mesh"], (json{{"tensor", 2}, {"data", 2}, {"pipeline", 2}}));
  EXPECT_EQ(plan["micro_batches"], 4);
  ASSERT_EQ(plan["ranks"].size(), 8U);
  for (const json& rank : plan["ranks"]) {
    EXPECT_LE(rank["total"], plan["total"]);
    for (const char* axis : {"tensor", "data", "pipeline"}) EXPECT_GT(rank["bytes_sent"][axis], 0) << axis;
  }
  const json alone = plan_of({"llama3-8b", "--seq-length", "4096"});
  EXPECT_EQ(alone["ranks"].size(), 1U);
  EXPECT_EQ(alone["ranks"][0]["bytes_sent"], (json{{"tensor", 0}, {"data", 0}, {"pipeline", 0}}));
}

TEST(Plan, TextShowsTheStages) {
  const std::string text =
      run_agoq(with({"plan"}, with(kPipeline, {"--num-virtual-stages-per-pipeline-rank", "2"}))).out;
  EXPECT_THAT(text, HasSubstr("4 processes: pipeline 4 x data 1 x tensor 1"));
  EXPECT_THAT(text, HasSubstr("12-15, 28-31"));
  EXPECT_THAT(text, HasSubstr("x1 fp4 x 8; x2 fp4 x 8; gate_up fp4 x 8"));
  EXPECT_THAT(text, testing::ContainsRegex("\n    3 +5 "));
  EXPECT_THAT(text, HasSubstr("Stage 0 needs the most"));
  EXPECT_THAT(run_agoq({"plan", "demo"}).out, testing::Not(HasSubstr("stage")));
}

TEST(Plan, RefusesAMeshAndSaysWhichWouldDo) {
  const auto error = [](const std::vector<std::string>& more) {
    const Ran ran = run_agoq(with({"plan", "llama3-8b"}, more));
    EXPECT_NE(ran.status, 0);
    return ran.err;
  };
  EXPECT_THAT(error({"--tensor-model-parallel-size", "3"}), HasSubstr("use 1, 2, 4, 8"));
  EXPECT_THAT(error({"--pipeline-model-parallel-size", "40"}), HasSubstr("at most 32 stages"));
  EXPECT_THAT(error({"--pipeline-model-parallel-size", "4", "--world-size", "6"}), HasSubstr("start 4 or 8"));
  EXPECT_THAT(error({"--pipeline-model-parallel-size", "99999999999"}), HasSubstr("more than the 65536 processes"));
  EXPECT_THAT(error({"--gpu-transport", "direct", "--world-size", "64", "--global-batch-size", "64"}),
              HasSubstr("direct joins the GPUs of one machine, 33 at most"));
  EXPECT_THAT(error({"--world-size", "3", "--global-batch-size", "4"}), HasSubstr("try 3 or 6"));
}

TEST(Plan, SeventyBillionParametersOnSixteenStagesInUnderASecond) {
  const ScratchFolder folder;
  const std::string model = folder.file("config.json");
  write_plainly(model, R"({"model_type": "llama", "vocab_size": 128256, "hidden_size": 8192,
    "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
    "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "tie_word_embeddings": false})");
  const double before = child_seconds();
  const json plan = plan_of({model, "--seq-length", "8192", "--tensor-model-parallel-size", "4",
                             "--pipeline-model-parallel-size", "16", "--num-virtual-stages-per-pipeline-rank", "5",
                             "--global-batch-size", "64", "--gpu-memory", "10GiB"});
  EXPECT_LT(child_seconds() - before, kPlanSeconds);
  EXPECT_EQ(plan["stages"].size(), 16U);
  EXPECT_FALSE(plan["advice"].empty());
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
