#include "train/config/settings.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <limits>
#include <set>

#include "agoq/agoq.h"
#include "base/error_of.h"
#include "base/scratch_folder.h"
#include "parallel/unquantized.h"
#include "plan/stage_plan.h"
#include "train/init_source.h"

namespace agoq::train {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;

// How many members an aggregate has: as many as it can be initialised with.
struct Anything {
  template <class T>
  operator T() const {
    std::abort();  // only its type is asked for
  }
};
template <class T, class... Members>
constexpr size_t member_count(Members... members) {
  if constexpr (requires { T{members..., Anything{}}; })
    return member_count<T>(members..., Anything{});
  else
    return sizeof...(members);
}

TEST(Settings, TableHasEveryMemberOfTheConfig) {
  EXPECT_EQ(all_settings().size(), member_count<TrainConfig>());
  std::set<std::string_view> names;
  for (const Setting& setting : all_settings()) EXPECT_TRUE(names.insert(setting.name).second) << setting.name;
}

// A value that is not the default, hard to write, and of the setting's type.
std::vector<std::string> unusual(const Setting& setting, size_t index) {
  const std::string number = std::to_string(1000 + index);
  if (setting.is_switch()) return {"true"};
  if (setting.is_list()) return {"0.7", "a \"quoted\" path", "0.3", number};
  if (std::holds_alternative<double TrainConfig::*>(setting.field)) return {number + ".1234567890123"};
  if (std::holds_alternative<std::string TrainConfig::*>(setting.field)) return {"# \\ \n\t'\"\xc3\xa9" + number};
  return {number};
}

parallel::RunSpec run_spec_of(const TrainConfig& config) {
  const model::ModelConfig model = model::preset("demo");
  return make_run_spec(resolved(config, model, Device::Cpu, 1), model, {0, 1});
}

TEST(Settings, BaselineIsWhatPlansCompareWith) {
  TrainConfig config;
  const parallel::RunSpec reference = plan::reference_run_spec(run_spec_of(config));
  config.baseline = "bf16";
  const parallel::RunSpec baseline = run_spec_of(config);
  EXPECT_EQ(baseline.precision, reference.precision);
  EXPECT_EQ(baseline.parallelism.grad_reduce, reference.parallelism.grad_reduce);
  EXPECT_EQ(baseline.recipe.layers, reference.recipe.layers);
  config.baseline = "fp32";
  EXPECT_EQ(run_spec_of(config).precision, parallel::unquantized(DType::F32).precision);
}

TEST(Settings, Fp8ProductsAreSetByMegatronsNames) {
  TrainConfig config;
  EXPECT_FALSE(run_spec_of(config).precision.fp8.recipe.has_value());
  config.fp8_format = "e4m3";
  ops::Fp8Recipe recipe = run_spec_of(config).precision.fp8.recipe.value();
  EXPECT_EQ(recipe.x, (ops::OperandFormat{DType::E4M3, ops::Granularity::Row}));
  EXPECT_EQ(recipe.dw_dy, (ops::OperandFormat{DType::E4M3, ops::Granularity::Tensor}));
  EXPECT_EQ(recipe.dw_x, recipe.dw_dy);
  EXPECT_EQ(recipe.forward, ops::Accumulation::Fast);
  EXPECT_EQ(recipe.dx, ops::Accumulation::Fp32);
  EXPECT_EQ(recipe.dw, ops::Accumulation::Fp32);
  config.fp8_recipe = "blockwise";
  recipe = run_spec_of(config).precision.fp8.recipe.value();
  EXPECT_EQ(recipe.x.granularity, ops::Granularity::Block1x128);
  EXPECT_EQ(recipe.w.granularity, ops::Granularity::Block128x128);
  EXPECT_EQ(recipe.forward, ops::Accumulation::Fp32) << "blocks are always promoted";
  config.fp8_format = "hybrid";
  config.fp8_recipe = "tensorwise";
  recipe = run_spec_of(config).precision.fp8.recipe.value();
  EXPECT_EQ(recipe.x, (ops::OperandFormat{DType::E4M3, ops::Granularity::Tensor}));
  EXPECT_EQ(recipe.dy, (ops::OperandFormat{DType::E5M2, ops::Granularity::Tensor}));
  config.fp8_recipe = "delayed";
  ops::Fp8Recipe delayed = recipe;
  delayed.delayed = ops::DelayedScaling{1024, false, 0};
  EXPECT_EQ(run_spec_of(config).precision.fp8.recipe, delayed) << "scales of tensors, known before";
  config.fp8_amax_history_len = 1, config.fp8_amax_compute_algo = "most_recent", config.fp8_margin = 2;
  delayed.delayed = ops::DelayedScaling{1, true, 2};
  EXPECT_EQ(run_spec_of(config).precision.fp8.recipe, delayed);
  config.first_last_layers_bf16 = true;
  config.num_layers_at_start_in_bf16 = 2;
  const model::Fp8Layers fp8 = run_spec_of(config).precision.fp8;
  const int64_t layers = model::preset("demo").layers;
  for (int64_t layer = 0; layer < layers; ++layer)
    EXPECT_EQ(fp8.of(layer, layers) != nullptr, layer >= 2 && layer < layers - 1) << layer;
}

TEST(Settings, Fp8TextNamesFormatRecipeAndExceptedLayers) {
  TrainConfig config;
  config.compute_dtype = "bf16";
  const auto text = [&](int64_t first, int64_t last) {
    config.num_layers_at_start_in_bf16 = first, config.num_layers_at_end_in_bf16 = last;
    return fp8_text(config, 32);
  };
  EXPECT_EQ(text(1, 1), "");
  config.fp8_format = "e4m3";
  EXPECT_EQ(text(1, 1), "products in 8-bit floats (e4m3, rowwise)");
  config.first_last_layers_bf16 = true;
  EXPECT_EQ(text(1, 1), "products in 8-bit floats (e4m3, rowwise); those of layers 0 and 31 in bf16");
  config.fp8_format = "hybrid", config.fp8_recipe = "tensorwise";
  EXPECT_EQ(text(0, 0), "products in 8-bit floats (hybrid, tensorwise)");
  EXPECT_EQ(text(0, 1), "products in 8-bit floats (hybrid, tensorwise); those of layer 31 in bf16");
  EXPECT_EQ(text(3, 2), "products in 8-bit floats (hybrid, tensorwise); those of layers 0 to 2 and 30 to 31 in bf16");
}

TEST(Settings, Fp8ErrorsSayWhatToChange) {
  const auto error = [](const std::function<void(TrainConfig&)>& change) {
    TrainConfig config;
    config.fp8_format = "e4m3";
    change(config);
    return error_of([&] { run_spec_of(config); });
  };
  EXPECT_THAT(error([](TrainConfig& c) { c.fp8_format = "e5m2"; }), HasSubstr("--fp8-format e5m2"));
  EXPECT_THAT(error([](TrainConfig& c) { c.fp8_recipe = "mxfp8"; }), HasSubstr("--fp8-recipe mxfp8"));
  EXPECT_THAT(error([](TrainConfig& c) { c.fp8_format = "", c.fp8_recipe = "mxfp8"; }), HasSubstr("mxfp8"));
  EXPECT_THAT(error([](TrainConfig& c) { c.fp8_margin = 1; }), HasSubstr("are for --fp8-recipe delayed"));
  EXPECT_THAT(error([](TrainConfig& c) { c.fp8_recipe = "delayed", c.fp8_margin = -1; }), HasSubstr("--fp8-margin -1"));
  EXPECT_THAT(error([](TrainConfig& c) { c.fp8_recipe = "delayed", c.fp8_amax_history_len = 0; }),
              HasSubstr("--fp8-amax-history-len"));
  EXPECT_THAT(error([](TrainConfig& c) { c.fp8_recipe = "delayed", c.fp8_amax_compute_algo = "mean"; }),
              HasSubstr("--fp8-amax-compute-algo mean"));
  EXPECT_THAT(error([](TrainConfig& c) { c.fp8_format = "", c.fp8_recipe = "tensorwise"; }),
              HasSubstr("--fp8-recipe tensorwise is one of --fp8-format, which is not set"));
  EXPECT_THAT(error([](TrainConfig& c) { c.fp8_format = "", c.fp8_weight_cache = "on"; }),
              HasSubstr("--fp8-weight-cache on keeps weights in --fp8-format"));
  EXPECT_THAT(error([](TrainConfig& c) { c.fp8_weight_cache = "yes"; }), HasSubstr("--fp8-weight-cache yes"));
  EXPECT_THAT(error([](TrainConfig& c) { c.num_layers_at_end_in_bf16 = -1; }), HasSubstr("must not be negative"));
  EXPECT_THAT(error([](TrainConfig& c) {
                c.first_last_layers_bf16 = true, c.num_layers_at_end_in_bf16 = std::numeric_limits<int64_t>::max();
              }),
              HasSubstr("leave none of"));
  EXPECT_THAT(error([](TrainConfig& c) { c.fp8_format = "hybrid", c.fp8_recipe = "blockwise"; }),
              HasSubstr("use --fp8-format e4m3"));
  EXPECT_THAT(error([](TrainConfig& c) { c.fp8_format = "", c.first_last_layers_bf16 = true; }),
              HasSubstr("--fp8-format, which is not set"));
  EXPECT_THAT(error([](TrainConfig& c) { c.first_last_layers_bf16 = true, c.num_layers_at_end_in_bf16 = 100; }),
              HasSubstr("leave none of"));
}

// It quantizes nothing, so a baseline may have it; a plan compares with training that recomputes nothing.
TEST(Settings, BaselineLeavesRecomputationAlone) {
  TrainConfig config;
  config.baseline = "bf16";
  config.recompute_granularity = "full";
  const parallel::RunSpec baseline = run_spec_of(config);
  EXPECT_EQ(baseline.recipe.recompute, model::Recompute::Full);
  EXPECT_EQ(plan::reference_run_spec(baseline).recipe.recompute, model::Recompute::None);
}

TEST(Settings, EveryFieldSurvivesTheRoundTripThroughToml) {
  const TrainConfig defaults;
  TrainConfig config;
  for (size_t i = 0; i < all_settings().size(); ++i) assign(config, all_settings()[i], unusual(all_settings()[i], i));
  TrainConfig again;
  read_toml(again, to_toml(config), "f.toml");
  for (const Setting& setting : all_settings()) {
    EXPECT_EQ(text_of(again, setting), text_of(config, setting));
    EXPECT_NE(text_of(again, setting), text_of(defaults, setting)) << setting.name;
  }
  EXPECT_EQ(to_toml(again), to_toml(config));
}

TEST(Settings, EachNameSetsItsOwnMember) {
  const TrainConfig defaults;
  for (size_t i = 0; i < all_settings().size(); ++i) {
    TrainConfig config;
    assign(config, all_settings()[i], unusual(all_settings()[i], i));
    size_t changed = 0;
    for (const Setting& setting : all_settings()) changed += text_of(config, setting) != text_of(defaults, setting);
    EXPECT_EQ(changed, 1u) << all_settings()[i].name;
  }
  TrainConfig config;
  assign(config, "seq-length", "512");
  assign(config, "lr", "3e-3");
  assign(config, "eod-mask-loss", "true");
  EXPECT_EQ(config.seq_length, 512);
  EXPECT_EQ(config.lr, 3e-3);
  EXPECT_TRUE(config.eod_mask_loss);
}

TEST(Settings, ExtremeNumbersSurvive) {
  TrainConfig config;
  config.seed = std::numeric_limits<uint64_t>::max();
  config.lr = 5e-324;
  config.eod_token = std::numeric_limits<int64_t>::min();
  config.weight_decay = 0.1 + 0.2;
  TrainConfig again;
  read_toml(again, to_toml(config), "f.toml");
  EXPECT_EQ(again.seed, config.seed);
  EXPECT_EQ(again.lr, config.lr);
  EXPECT_EQ(again.eod_token, config.eod_token);
  EXPECT_EQ(again.weight_decay, config.weight_decay);
}

TEST(Settings, ChangesAreToldInOrder) {
  TrainConfig before, now;
  before.tokenizer = "byte";
  EXPECT_TRUE(changed_settings(before, before).empty());
  now = before;
  now.save = "elsewhere";
  now.lr = 1e-4;
  now.activation_override = "norm=fp5";
  now.tokenizer = "";
  now.data_path = {"0.7", "a", "0.3", "b"};
  EXPECT_EQ(changed_settings(before, now),
            (std::vector<std::string>{"data-path none -> 0.7 a 0.3 b", "tokenizer byte -> none", "lr 0.0003 -> 0.0001",
                                      "activation-override none -> norm=fp5"}));
}

TEST(Settings, ErrorsSayWhichValueAndWhere) {
  const auto error_in = [](std::string_view text) {
    return error_of([&] {
      TrainConfig config;
      read_toml(config, text, "f.toml");
    });
  };
  EXPECT_EQ(error_in("lr = 1\nseq-lenght = 5"), "f.toml:2: unknown setting 'seq-lenght'; did you mean 'seq-length'?");
  EXPECT_EQ(error_in("seq_length = 5"), "f.toml:1: unknown setting 'seq_length'; did you mean 'seq-length'?");
  EXPECT_EQ(error_in("seq-length = 1.5"), "f.toml:1: seq-length: '1.5' is not a whole number");
  EXPECT_THAT(error_in("\nseq-length = 99999999999999999999"),
              AllOf(StartsWith("f.toml:2: "), HasSubstr("not representable")));
  EXPECT_EQ(error_in("seq-length = '99999999999999999999'"),
            "f.toml:1: seq-length: 99999999999999999999 is out of range");
  EXPECT_EQ(error_in("seed = -1"), "f.toml:1: seed: '-1' is not a whole number from 0 up");
  EXPECT_EQ(error_in("lr = \"fast\""), "f.toml:1: lr: 'fast' is not a number");
  EXPECT_EQ(error_in("lr = \"nan\""), "f.toml:1: lr: 'nan' is not a finite number");
  EXPECT_EQ(error_in("eod-mask-loss = 1"), "f.toml:1: eod-mask-loss: '1' is neither true nor false");
  EXPECT_EQ(error_in("lr = [1, 2]"), "f.toml:1: lr takes one value, not an array");
}

TEST(Settings, WhatCannotBeRecordedIsRefused) {
  const auto problem = [](const std::string& name, const std::vector<std::string>& words) {
    TrainConfig config;
    assign(config, find_setting(name), words);
    return error_of([&] { require_recordable(config); });
  };
  for (const std::string name :
       {"model", "model-config", "finetune", "tokenizer", "save", "sample-prompt", "document-separator"})
    EXPECT_TRUE(problem(name, {"caf\xe9"}).starts_with("--" + name + " 'caf\\xe9' is not UTF-8")) << name;
  EXPECT_TRUE(problem("data-path", {"0.5", "a", "0.5", "\xff"}).starts_with("--data-path '0.5 a 0.5 \\xff' is not"));
  EXPECT_EQ(problem("save", {"runs/a\nb"}), "--save 'runs/a\\x0ab' holds the control byte 0x0a; choose another name");
  EXPECT_TRUE(problem("save", {"runs/a\x1b[0m"}).starts_with("--save 'runs/a\\x1b[0m' holds the control byte"));
  EXPECT_EQ(problem("save", {"caf\xc3\xa9 and more"}), "");
  EXPECT_EQ(problem("sample-prompt", {"two\nlines\t"}), "");
  TrainConfig config;
  EXPECT_THAT(error_of([&] { read_toml(config, "lr = 1\nsave = \"\xff\"", "f.toml"); }),
              AllOf(StartsWith("f.toml:2: "), HasSubstr("utf-8")));
}

TEST(Settings, ABaselineBesideAFlagThatContradictsItIsRefused) {
  const std::vector<std::pair<std::string_view, std::string>> quantized = {
      {"activation-policy", "agoq"},  {"activation-override", "norm=fp5"}, {"compute-dtype", "bf16"},
      {"main-params-dtype", "split"}, {"main-grads-dtype", "int8"},        {"exp-avg-dtype", "8bit"},
      {"exp-avg-sq-dtype", "8bit"},   {"grad-reduce-dtype", "int8"}};
  for (const auto& [name, value] : quantized) {
    TrainConfig config;
    config.baseline = "fp32";
    assign(config, name, value);
    const std::vector<std::string_view> given = {"baseline", name}, nothing = {"baseline"};
    EXPECT_EQ(error_of([&] { require_no_contradiction(config, given); }).substr(0, 22), "--baseline fp32 sets -")
        << name;
    EXPECT_EQ(error_of([&] { require_no_contradiction(config, nothing); }), "") << "a config file gives way";
    config = resolved(config, model::preset("demo"), Device::Cpu);
    EXPECT_EQ(error_of([&] { require_no_contradiction(config, given); }), "") << "it has given way";
  }
  TrainConfig config;
  config.baseline = "bf16";
  config.activation_policy = "bf16";
  config.recompute_granularity = "full";
  config.grad_reduce_dtype = "bf16";
  const std::vector<std::string_view> given = {"activation-policy", "recompute-granularity", "grad-reduce-dtype"};
  EXPECT_EQ(error_of([&] { require_no_contradiction(config, given); }), "");

  TrainConfig of_file;
  EXPECT_EQ(
      error_of([&] { read_toml(of_file, "baseline = \"fp32\"\nexp-avg-dtype = \"8bit\"", "f.toml"); }),
      "f.toml: --baseline fp32 sets --exp-avg-dtype to fp32, and --exp-avg-dtype 8bit is given: leave one of them "
      "out");
  agoq::Settings settings;
  settings.set("baseline", "bf16").set("main-grads-dtype", "int8");
  EXPECT_EQ(error_of([&] { plan_memory(settings, Target::Cpu); }).substr(0, 22), "--baseline bf16 sets -");
}

TEST(Resolved, PathsMeanTheSameFromEverywhere) {
  const ScratchFolder folder;
  write_plainly(folder.file("config.json"), "{}");
  const std::filesystem::path before = std::filesystem::current_path();
  std::filesystem::current_path(folder.path());
  const std::string here = std::filesystem::current_path().string();
  TrainConfig config;
  config.model_config = "config.json";
  config.data_path = {"0.7", "a/../b", "0.3", "./c/"};
  config.valid_data_path = {"0.7"};  // one word is a path, whatever it looks like
  config.save = "runs//x/";
  config.tokenizer = "../tokenizer";
  config = resolved(config, model::preset("demo"), Device::Cpu);
  std::filesystem::current_path(before);
  EXPECT_EQ(config.model_config, here + "/config.json");
  EXPECT_EQ(config.data_path, (std::vector<std::string>{"0.7", here + "/b", "0.3", here + "/c"}));
  EXPECT_EQ(config.valid_data_path, std::vector<std::string>{here + "/0.7"});
  EXPECT_EQ(config.save, here + "/runs/x");
  EXPECT_EQ(config.tokenizer, std::filesystem::path(here).parent_path().string() + "/tokenizer");
  EXPECT_EQ(config.model, "") << "what is open stays open";
  config.model_config = "demo";
  EXPECT_EQ(resolved(config, model::preset("demo"), Device::Cpu).model_config, "demo");
}

TEST(PublicSettings, SpeakTheSameNames) {
  agoq::Settings settings;
  settings.set("seq-length", "512").set("data-path", std::vector<std::string>{"0.7", "a", "0.3", "b"});
  EXPECT_EQ(settings.get("seq-length"), "512");
  EXPECT_EQ(settings.get("data-path"), "0.7 a 0.3 b");
  EXPECT_EQ(agoq::Settings::names().size(), all_settings().size());
  EXPECT_EQ(error_of([&] { settings.set("lrr", "1"); }), "unknown setting 'lrr'; did you mean 'lr'?");

  const ScratchFolder folder;
  write_plainly(folder.file("s.toml"), settings.toml());
  agoq::Settings copy = agoq::Settings().load(folder.file("s.toml"));
  EXPECT_EQ(copy.toml(), settings.toml());
  copy.set("seq-length", "1");
  EXPECT_EQ(settings.get("seq-length"), "512");
}

TEST(PublicPlan, AgreesWithItsParts) {
  agoq::Settings settings;
  settings.set("model-config", "demo").set("seq-length", "128");
  const agoq::MemoryPlan plan = agoq::plan_memory(settings);
  uint64_t bytes = 0, reference = 0;
  for (const agoq::OwnerMemory& owner : plan.owners) {
    bytes += owner.bytes;
    reference += owner.reference_bytes;
  }
  EXPECT_EQ(bytes, plan.total);
  EXPECT_EQ(reference, plan.reference_total);
  EXPECT_LT(plan.bytes_per_parameter, 7.1);
  EXPECT_EQ(plan.world_size, 1);
}

// The dry run of each rank, as a run of so many processes makes it.
TEST(PublicPlan, IsOfAnyRankOfAMesh) {
  constexpr int kWorld = 8;
  const std::pair<const char*, const char*> given[] = {{"model-config", "demo"},
                                                       {"seq-length", "128"},
                                                       {"global-batch-size", "8"},
                                                       {"tensor-model-parallel-size", "2"},
                                                       {"pipeline-model-parallel-size", "2"}};
  agoq::Settings settings;
  TrainConfig config;
  for (const auto& [name, value] : given) {
    settings.set(name, value);
    assign(config, find_setting(name), {value});
  }
  const model::ModelConfig model = resolve_model(config);
  config = resolved(config, model, Device::Cuda, kWorld);
  uint64_t most = 0;
  for (int rank = 0; rank < kWorld; ++rank) {
    const parallel::RunSpec run_spec =
        plan::with_stage_widths(make_run_spec(config, model, {rank, kWorld}), Device::Cuda);
    const agoq::MemoryPlan plan = agoq::plan_memory(settings, agoq::Target::Cuda, {kWorld, rank});
    EXPECT_EQ(plan.total, plan::plan_layout(run_spec, Device::Cuda).total) << "rank " << rank;
    EXPECT_EQ(plan.rank, rank);
    EXPECT_EQ(plan.stage, rank / 4);
    most = std::max(most, plan.total);
  }
  const agoq::MemoryPlan largest = agoq::plan_memory(settings, agoq::Target::Cuda, {kWorld, {}});
  EXPECT_EQ(largest.total, most);
  EXPECT_EQ(largest.world_size, kWorld);
  EXPECT_EQ(agoq::plan_memory(settings, agoq::Target::Cuda).world_size, 4) << "one copy of the model";
  EXPECT_THROW(agoq::plan_memory(settings, agoq::Target::Cuda, {kWorld, kWorld}), Error);
}

}  // namespace
}  // namespace agoq::train
