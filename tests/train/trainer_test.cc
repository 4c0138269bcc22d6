#include "train/trainer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "base/log.h"
#include "base/scratch_folder.h"
#include "comm/thread_transport.h"
#include "train/config/settings.h"
#include "train/data_files.h"
#include "train/file_size_limit.h"
#include "train/trainer_fixture.h"

namespace agoq::train {
namespace {

using testing::HasSubstr;

TEST_F(TrainerTest, TwentySkippedStepsInARowEndTheRunAndNameTheTensor) {
  std::vector<StepMetrics> steps;
  Observer observer;
  observer.on_step = [&](const StepMetrics& m) { steps.push_back(m); };
  Trainer trainer(config_, observer);
  a_weight(trainer) = NAN;
  EXPECT_THAT(error_of([&] { trainer.run(stop_); }),
              HasSubstr("20 steps in a row had non-finite gradients, first in embedding"));
  ASSERT_EQ(steps.size(), 19u);
  for (size_t i = 0; i < steps.size(); ++i) EXPECT_EQ(steps[i].skipped, static_cast<int64_t>(i) + 1);
  EXPECT_EQ(trainer.state().optimizer().updates(trainer.state().context()), 0);
}

TEST_F(TrainerTest, SkippedStepsThatAreNotInARowDoNot) {
  Trainer* running = nullptr;
  float healthy = 0;
  Observer observer;
  observer.on_step = [&](const StepMetrics& m) {
    if (m.step == 3) a_weight(*running) = NAN;
    if (m.step == 3 + 19) a_weight(*running) = healthy;
  };
  Trainer trainer(config_, observer);
  running = &trainer;
  healthy = a_weight(trainer);
  const Summary summary = trainer.run(stop_);
  EXPECT_EQ(summary.step, 30);
  EXPECT_EQ(summary.skipped, 19);
  EXPECT_EQ(trainer.state().optimizer().updates(trainer.state().context()), 11);
  EXPECT_TRUE(std::isfinite(summary.train_loss));
}

// A run whose steps are chosen by the clock: far fewer than given, and the same ones for a resumed run.
TEST_F(TrainerTest, TrainMinutesChooseTheStepsOnceForARun) {
  config_.train_iters = 1000000;
  config_.lr_warmup_iters = 100000;
  config_.train_minutes = 0.03;
  config_.save = scratch_.file("run");
  std::vector<std::string> notes;
  std::vector<double> rates;
  Observer observer;
  observer.on_note = [&](const std::string& text) {
    notes.push_back(text);
    if (text.find("--train-minutes") != std::string::npos) stop_ = true;  // as soon as it is chosen
  };
  observer.on_step = [&](const StepMetrics& m) { rates.push_back(m.lr); };
  // Steps of the plan and steps done.
  const auto run = [&]() -> std::pair<TrainConfig, int64_t> {
    Trainer trainer(config_, observer);
    const int64_t done = trainer.run(stop_).step;
    return {trainer.plan().config, done};
  };
  const auto [chosen, stopped_at] = run();
  EXPECT_GE(chosen.train_iters, stopped_at);
  EXPECT_LT(chosen.train_iters, 100000);
  EXPECT_NEAR(static_cast<double>(chosen.lr_warmup_iters), 0.1 * static_cast<double>(chosen.train_iters), 1);
  EXPECT_EQ(chosen.lr_decay_iters, chosen.train_iters);
  ASSERT_FALSE(notes.empty());
  EXPECT_THAT(notes.front(), HasSubstr(std::to_string(chosen.train_iters) + " of at most 1000000 steps"));
  TrainConfig written;
  read_toml_file(written, scratch_.file("run/config.toml"));
  EXPECT_EQ(written.train_iters, chosen.train_iters);

  stop_ = false;
  rates.clear();
  const auto [resumed, ended_at] = run();
  EXPECT_EQ(ended_at, chosen.train_iters);
  EXPECT_EQ(resumed.lr_warmup_iters, chosen.lr_warmup_iters);
  EXPECT_EQ(resumed.lr_decay_iters, chosen.lr_decay_iters);
  EXPECT_EQ(rates.size(), static_cast<size_t>(chosen.train_iters - stopped_at));
  // Asked for other minutes, it takes the steps that are given.
  config_.train_minutes = 0;
  config_.train_iters = chosen.train_iters + 3;
  config_.lr_warmup_iters = 1;
  EXPECT_EQ(run().second, config_.train_iters);
}

TEST_F(TrainerTest, RanksChooseTheSameSteps) {
  config_.train_iters = 1000000;
  config_.train_minutes = 0.01;
  std::vector<int64_t> chosen(2);
  const auto steps = run_ranks(
      2, [&](int rank, Trainer& trainer) { chosen[static_cast<size_t>(rank)] = trainer.plan().config.train_iters; });
  EXPECT_EQ(chosen[0], chosen[1]);
  EXPECT_EQ(steps.size(), static_cast<size_t>(chosen[0]));
  EXPECT_LT(chosen[0], 100000);
}

// What continuing a saved run with one change says: "" if it went on, otherwise the error.
class ResumedRun : public TrainerTest {
 protected:
  ResumedRun() {
    config_.train_iters = 2;
    config_.save = scratch_.file("run");
    Trainer(config_).run(stop_);
  }
  std::string with(std::string_view setting, const std::vector<std::string>& words) {
    TrainConfig changed = config_;
    assign(changed, find_setting(setting), words);
    changed.train_iters = 3;
    std::filesystem::remove_all(scratch_.file("copy"));
    std::filesystem::copy(config_.save, scratch_.file("copy"), std::filesystem::copy_options::recursive);
    changed.save = scratch_.file("copy");
    const std::string error = error_of([&] { Trainer(changed).run(stop_); });
    return error;
  }
};

TEST_F(ResumedRun, OperationAndSpellingMayChange) {
  std::filesystem::copy(scratch_.file("text.txt"), scratch_.file("renamed.txt"));
  write_plainly(
      scratch_.file("respelled.json"),
      R"({"model_type": "llama", "vocab_size": 257, "hidden_size": 32, "intermediate_size": 64, "head_dim": 16,
                    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "use_cache": false,
                    "max_position_embeddings": 128, "torch_dtype": "float16", "eos_token_id": 7, "rope_theta": 10000.0})");
  const std::vector<std::pair<std::string, std::string>> changes = {{"data-path", scratch_.file("renamed.txt")},
                                                                    {"model-config", scratch_.file("respelled.json")},
                                                                    {"micro-batch-size", "1"},
                                                                    {"lr", "1e-4"},
                                                                    {"lr-decay-style", "linear"},
                                                                    {"weight-decay", "0"},
                                                                    {"activation-policy", "paper"},
                                                                    {"recompute-granularity", "full"},
                                                                    {"main-grads-dtype", "fp32"},
                                                                    {"main-params-dtype", "split"},
                                                                    {"compute-dtype", "bf16"},
                                                                    {"eod-token", "9"},
                                                                    {"eval-interval", "1"},
                                                                    {"save-interval", "1"},
                                                                    {"keep-checkpoints", "7"},
                                                                    {"threads", "1"},
                                                                    {"sample-tokens", "2"}};
  for (const auto& [setting, value] : changes) EXPECT_EQ(with(setting, {value}), "") << setting;
}

TEST_F(ResumedRun, WhatMakesItThisRunMayNot) {
  std::string text = read_plainly(scratch_.file("text.txt"));
  text[100] ^= 1;
  write_plainly(scratch_.file("other.txt"), text);
  std::string wider = read_plainly(config_.model_config);
  wider.replace(wider.find("64"), 2, "96");
  write_plainly(scratch_.file("wider.json"), wider);
  const auto refused = [&](const std::string& setting, const std::string& value, const std::string& difference) {
    EXPECT_THAT(with(setting, {value}), HasSubstr("\n  " + difference)) << setting;
  };
  refused("data-path", scratch_.file("other.txt"), "data[0].fingerprint: saved ");
  refused("valid-fraction", "0.3", "data[0].samples: saved ");
  refused("model-config", scratch_.file("wider.json"), "model.intermediate_size: saved 64, now 96");
  refused("seq-length", "8", "seq-length: saved 16, now 8");
  refused("global-batch-size", "8", "global-batch-size: saved 4, now 8");
  refused("seed", "7", "seed: saved 1234, now 7");
  refused("eod-mask-loss", "true", "eod-mask-loss: saved false, now true");
  refused("exp-avg-dtype", "fp32", "exp-avg-dtype: saved \"8bit\", now \"fp32\"");
}

// Steps of checkpoints in the run folder.
std::set<std::string> checkpoints_in(const std::string& run) {
  std::set<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(run + "/checkpoints"))
    if (entry.is_directory()) names.insert(entry.path().filename().string());
  return names;
}

TEST_F(TrainerTest, SavesByTimeAsWellOnAllRanksAlike) {
  EXPECT_EQ(TrainConfig().save_interval_minutes, 30) << "a run that nobody asked to save loses half an hour at most";
  config_.train_iters = 4;
  config_.keep_checkpoints = 0;
  config_.save_interval_minutes = 0;
  config_.save = scratch_.file("never");
  Trainer(config_).run(stop_);
  EXPECT_EQ(checkpoints_in(config_.save), std::set<std::string>{"step-00000004"});
  config_.save_interval_minutes = 1e-9;  // always due
  config_.save = scratch_.file("always");
  run_ranks(2, [](int, Trainer&) {});
  EXPECT_EQ(checkpoints_in(config_.save),
            (std::set<std::string>{"step-00000001", "step-00000002", "step-00000003", "step-00000004"}));
  config_.save_interval_minutes = 1000;
  config_.save_interval = 3;
  config_.save = scratch_.file("steps");
  Trainer(config_).run(stop_);
  EXPECT_EQ(checkpoints_in(config_.save), (std::set<std::string>{"step-00000003", "step-00000004"}));
}

TEST_F(TrainerTest, EndsSavedWhenItsTimeIsUp) {
  config_.train_iters = 3;
  config_.save = scratch_.file("run");
  config_.exit_duration_in_mins = 1e-9;  // at once, but never before a step
  for (int64_t step = 1; step <= 2; ++step) {
    run_ranks(2, [&](int, Trainer& trainer) { EXPECT_EQ(trainer.step(), step); });
    EXPECT_TRUE(std::filesystem::exists(config_.save + fmt::format("/checkpoints/step-{:08}/manifest.json", step)));
    EXPECT_FALSE(std::filesystem::exists(config_.save + "/summary.json"));
  }
  const Summary last = Trainer(config_).run(stop_);
  EXPECT_EQ(last.step, 3);
  EXPECT_FALSE(last.stopped_early || last.time_is_up);
  config_.save = scratch_.file("other");
  const Summary first = Trainer(config_).run(stop_);
  EXPECT_EQ(first.step, 1);
  EXPECT_TRUE(first.stopped_early && first.time_is_up);
}

// cosine to 0 over 10 steps, stopped at 6, then asked for 20: the learning rate goes on where it was.
TEST_F(TrainerTest, ALongerRunDecaysAsItBegan) {
  config_.train_iters = 10;
  config_.lr = 1e-3;
  config_.save = scratch_.file("run");
  Observer until_6;
  until_6.on_step = [&](const StepMetrics& m) { stop_ = m.step == 6; };
  Trainer(config_, until_6).run(stop_);
  stop_ = false;
  std::filesystem::copy(config_.save, scratch_.file("stretched"), std::filesystem::copy_options::recursive);
  const auto rates_of = [&](const TrainConfig& config) {
    std::map<int64_t, double> rates;
    std::string notes;
    Observer observer;
    observer.on_step = [&](const StepMetrics& m) { rates[m.step] = m.lr; };
    observer.on_note = [&](const std::string& text) { notes += text + "\n"; };
    Trainer(config, observer).run(stop_);
    return std::pair(rates, notes);
  };
  // 0.5 (1 + cos(pi s / 10)) of 1e-3, by hand, and the same over 20.
  TrainConfig longer = config_;
  longer.train_iters = 20;
  const auto [rates, notes] = rates_of(longer);
  EXPECT_NEAR(rates.at(7), 3.4549e-4, 1e-8);
  EXPECT_NEAR(rates.at(10), 2.4472e-5, 1e-8);
  EXPECT_EQ(rates.at(11), 0);
  EXPECT_EQ(rates.at(20), 0);
  EXPECT_THAT(notes,
              HasSubstr("decays to 0 at step 10, as the run began, and stays there, so that later steps learn nothing; "
                        "--lr-decay-iters 20 would stretch the decay"));
  longer.save = scratch_.file("stretched");
  longer.lr_decay_iters = 20;
  const auto [stretched, no_notes] = rates_of(longer);
  EXPECT_NEAR(stretched.at(7), 7.9389e-4, 1e-8);
  EXPECT_THAT(no_notes, testing::Not(HasSubstr("as the run began")));
}

// Held-out tokens that count for nothing any more once training has begun: the file is changed under the run.
class FailingEvaluation : public TrainerTest {
 protected:
  FailingEvaluation() {
    set_log_level(LogLevel::Error);
    write_megatron(scratch_.file("valid"), {std::vector<int64_t>(200, 'x')});
    write_plainly(scratch_.file("valid.mask"), std::string(200, '\1'));
    config_.valid_data_path = {scratch_.file("valid")};
    config_.train_iters = 4;
    config_.eval_interval = 2;
    config_.save = scratch_.file("run");
  }
  ~FailingEvaluation() override { set_log_level(LogLevel::Info); }
  void expect_saved_without_a_loss() const {
    EXPECT_TRUE(std::filesystem::exists(config_.save + "/checkpoints/step-00000004/manifest.json"));
    const auto summary = nlohmann::json::parse(read_plainly(config_.save + "/summary.json"));
    EXPECT_TRUE(summary.at("valid_loss").is_null());
    EXPECT_EQ(summary.at("evaluation_error"), "no held-out token counts for the loss");
    EXPECT_THAT(read_plainly(config_.save + "/metrics.jsonl"), testing::Not(HasSubstr("valid_loss")));
  }
};

TEST_F(FailingEvaluation, IsToldAndTheRunIsSaved) {
  Trainer trainer(config_);
  write_plainly(scratch_.file("valid.mask"), std::string(200, '\0'));
  const Summary summary = trainer.run(stop_);
  EXPECT_EQ(summary.step, 4);
  EXPECT_FALSE(summary.valid_loss);
  expect_saved_without_a_loss();
}

TEST_F(FailingEvaluation, IsToldOnAllRanksAlike) {
  test::ThreadWorld(2).run([&](comm::Transport& transport) {
    omp_set_num_threads(1);
    Trainer trainer(config_, {}, {&transport, transport.rank(), 2});
    write_plainly(scratch_.file("valid.mask"), std::string(200, '\0'));
    EXPECT_EQ(trainer.run(stop_).step, 4);
  });
  expect_saved_without_a_loss();
}

TEST_F(TrainerTest, TheLastStateIsSavedBeforeItIsEvaluated) {
  config_.train_iters = 2;
  config_.save = scratch_.file("run");
  bool evaluated = false;
  Observer observer;
  observer.on_valid = [&](int64_t, double) {
    evaluated = true;
    EXPECT_TRUE(std::filesystem::exists(config_.save + "/checkpoints/step-00000002/manifest.json"));
  };
  Trainer(config_, observer).run(stop_);
  EXPECT_TRUE(evaluated);
}

TEST_F(TrainerTest, AFullDiskAtAFileBesideTheCheckpointsEndsNothing) {
  config_.train_iters = 3;
  config_.save = scratch_.file("run");
  std::optional<FileSizeLimit> full;
  Observer observer;
  observer.on_step = [&](const StepMetrics& m) {
    if (m.step == 1) full.emplace(100);  // memory.json and metrics.jsonl no longer fit
    if (m.step == 2) full.reset();
  };
  observer.on_valid = [&](int64_t, double) { full.emplace(100); };  // nor does summary.json
  set_log_level(LogLevel::Error);
  const Summary summary = Trainer(config_, observer).run(stop_);
  set_log_level(LogLevel::Info);
  full.reset();
  EXPECT_EQ(summary.step, 3);
  for (const char* name : {"/memory.json", "/summary.json"})
    EXPECT_FALSE(std::filesystem::exists(config_.save + name)) << name;
  EXPECT_TRUE(std::filesystem::exists(config_.save + "/checkpoints/step-00000003/manifest.json"));
}

TEST_F(TrainerTest, WhatARunCannotRecordIsRefusedBeforeTheFirstStep) {
  Observer observer;
  observer.on_plan = [](const RunPlan&) { ADD_FAILURE() << "planned"; };
  const auto refused = [&](const TrainConfig& config) { return error_of([&] { Trainer(config, observer); }); };
  TrainConfig odd = config_;
  odd.save = scratch_.file("caf\xe9");
  EXPECT_THAT(refused(odd), HasSubstr("caf\\xe9' is not UTF-8"));
  odd.save = scratch_.file("a\nb");
  EXPECT_THAT(refused(odd), HasSubstr("control byte 0x0a"));
  odd.save = "";
  odd.sample_prompt = "\xff";
  EXPECT_THAT(refused(odd), HasSubstr("--sample-prompt '\\xff' is not UTF-8"));
  // The folder that the process runs in becomes a part of every path.
  const std::filesystem::path before = std::filesystem::current_path();
  std::filesystem::create_directory(scratch_.file("\xfc"));
  std::filesystem::current_path(scratch_.file("\xfc"));
  odd = config_;
  odd.save = "run";
  const std::string error = refused(odd);
  std::filesystem::current_path(before);
  EXPECT_THAT(error, testing::AllOf(HasSubstr("--save '"), HasSubstr("is not UTF-8")));
}

TEST_F(TrainerTest, ThePlanComesBeforeTheFirstStepAndStays) {
  config_.train_iters = 1;
  int plans = 0, steps = 0;
  plan::Layout told;
  Observer observer;
  observer.on_plan = [&](const RunPlan& plan) {
    EXPECT_EQ(steps, 0);
    told = plan.layout;
    ++plans;
  };
  observer.on_step = [&](const StepMetrics& m) {
    EXPECT_EQ(m.memory_bytes, told.total);
    ++steps;
  };
  Trainer trainer(config_, observer);
  trainer.run(stop_);
  EXPECT_EQ(plans, 1);
  EXPECT_EQ(trainer.plan().layout.total, told.total);
  EXPECT_NEAR(trainer.plan().bytes_per_parameter(trainer.plan().reference), 18, 0.2);
  // In bf16 of each token: x1, n1, x2, n2 and o; q, k and v; gate, up and h. A few fp32 statistics come on top.
  const double saved = trainer.plan().saved_bytes_per_token_layer(trainer.plan().reference);
  EXPECT_NEAR(saved, 2 * (5 * 32 + 3 * 32 + 3 * 64), 32);
}

// Three of four layers are on the last stage.
TEST_F(TrainerTest, MemoryIsThatOfTheRankWithTheMost) {
  std::string model = read_plainly(config_.model_config);
  model.replace(model.find("\"num_hidden_layers\": 1"), 22, "\"num_hidden_layers\": 4");
  write_plainly(config_.model_config, model);
  config_.pipeline_model_parallel_size = 2;
  config_.decoder_first_pipeline_num_layers = 1;
  config_.train_iters = 2;
  size_t totals[2] = {};
  const std::vector<StepMetrics> steps =
      run_ranks(2, [&](int rank, Trainer& trainer) { totals[rank] = trainer.plan().layout.total; });
  EXPECT_GT(totals[1], totals[0]);
  ASSERT_EQ(steps.size(), 2u);
  for (const StepMetrics& m : steps) EXPECT_EQ(m.memory_bytes, totals[1]);
}

// A mesh with every axis waits for everything; one process for nothing.
TEST_F(TrainerTest, WhatComputingWaitsForIsTold) {
  std::string model = read_plainly(config_.model_config);
  model.replace(model.find("\"num_hidden_layers\": 1"), 22, "\"num_hidden_layers\": 2");
  write_plainly(config_.model_config, model);
  config_.train_iters = 3;
  for (const StepMetrics& m : run_ranks(1, [](int, Trainer&) {})) EXPECT_FALSE(m.exposed);
  config_.tensor_model_parallel_size = config_.pipeline_model_parallel_size = 2;
  const std::vector<StepMetrics> steps = run_ranks(8, [](int, Trainer&) {});
  ASSERT_EQ(steps.size(), 3u);
  for (const StepMetrics& m : steps) {
    ASSERT_TRUE(m.exposed);
    for (const Exposed kind : {Exposed::Tensor, Exposed::Pipeline, Exposed::Gradients, Exposed::Weights}) {
      const bool none_yet = m.step == 1 && kind == Exposed::Weights;
      EXPECT_EQ((*m.exposed)[static_cast<size_t>(kind)] > 0, !none_yet) << name_of(kind) << ", step " << m.step;
    }
  }
}

}  // namespace
}  // namespace agoq::train
