// Runs on data with a mask: what counts for the loss, and how documents are read when a run goes on.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <set>

#include "base/checksum.h"
#include "train/checkpoint/checkpoint_folder.h"
#include "train/checkpoint/manifest.h"
#include "train/checkpoint/run_metadata.h"
#include "train/data/dataset.h"
#include "train/data/token_file.h"
#include "train/trainer_fixture.h"

namespace agoq::train {
namespace {

using testing::HasSubstr;

// Conversations of 16 tokens with end tokens inside. All but the first token of those in `counting` are targets, so
// that sample i has some if conversation i is one of them.
class MaskedRun : public TrainerTest {
 protected:
  static constexpr int64_t kConversations = 32;
  MaskedRun() {
    config_.data_path = {scratch_.file("chat")};
    config_.valid_fraction = 0;
    config_.eod_token = 7;
    config_.train_iters = 8;
    config_.lr_decay_style = "constant";
    write({3});
  }
  void write(const std::set<int64_t>& counting) {
    std::vector<std::vector<int64_t>> conversations;
    std::string mask;
    for (int64_t i = 0; i <= kConversations; ++i) {
      conversations.emplace_back();
      for (int64_t t = 0; t < 16; ++t) conversations.back().push_back(t % 5 == 4 ? 7 : (i * 31 + t * t) % 250);
      mask += '\0' + std::string(15, counting.contains(i) ? '\1' : '\0');
    }
    write_megatron(scratch_.file("chat"), conversations);
    write_plainly(scratch_.file("chat.mask"), mask);
  }
  // Of everything that a checkpoint holds.
  static uint64_t state_hash(Trainer& trainer) {
    Xxh3 hash;
    for (const StoredTensor& tensor : trainer.state().named_tensors())
      for (const StoredPiece& piece : tensor.pieces) hash.add({piece.data.raw(), piece.data.bytes()});
    return hash.value();
  }
  std::string refusal() {
    int steps = 0;
    Observer observer;
    observer.on_step = [&](const StepMetrics&) { ++steps; };
    const std::string error = error_of([&] { Trainer(config_, observer).run(stop_); });
    EXPECT_TRUE(error.empty() || steps == 0) << steps;
    return error;
  }
  std::string saved_manifest(int64_t step) const {
    return config_.save + "/checkpoints/" + step_name(step) + "/manifest.json";
  }
};

TEST_F(MaskedRun, DataInWhichNothingCountsIsRefusedBeforeTheFirstStep) {
  write({});
  EXPECT_THAT(refusal(), testing::AllOf(HasSubstr("nothing counts for the loss"), HasSubstr("chat.mask")));
  write({3});
  config_.valid_fraction = 0.25;
  EXPECT_THAT(refusal(), testing::AllOf(HasSubstr("nothing counts for the loss"), HasSubstr("chat.mask")));
  write({3, 31});
  config_.eval_iters = 1;
  EXPECT_THAT(refusal(), HasSubstr("in the first 2 samples"));
  config_.eval_iters = 4;
  EXPECT_EQ(refusal(), "");
}

TEST_F(MaskedRun, AStepWithoutTargetsChangesNothingAndIsCounted) {
  const auto train = [&](int64_t steps, const std::string& save) {
    config_.train_iters = steps;
    config_.save = save;
    Trainer* running = nullptr;
    std::vector<StepMetrics> told;
    uint64_t before = 0;
    Observer observer;
    observer.on_step = [&](const StepMetrics& m) {
      const uint64_t now = state_hash(*running);
      EXPECT_EQ(now == before, !m.counted) << "step " << m.step;
      EXPECT_EQ(std::isnan(m.loss), !m.counted);
      before = now;
      told.push_back(m);
    };
    Trainer trainer(config_, observer);
    running = &trainer;
    before = state_hash(trainer);
    const Summary summary = trainer.run(stop_);
    EXPECT_TRUE(std::isfinite(summary.train_loss));
    EXPECT_EQ(told.back().without_targets, summary.without_targets);
    EXPECT_EQ(told.back().skipped, summary.skipped);
    return std::tuple(state_hash(trainer), summary.without_targets, summary.skipped,
                      trainer.state().optimizer().updates(trainer.state().context()));
  };
  const auto whole = train(8, "");
  EXPECT_EQ(std::get<1>(whole), 7);
  EXPECT_EQ(std::get<2>(whole), 7);
  EXPECT_EQ(std::get<3>(whole), 1);
  train(3, scratch_.file("parts"));
  EXPECT_EQ(train(8, scratch_.file("parts")), whole);
}

TEST_F(MaskedRun, AllRanksSkipTheSameSteps) {
  std::vector<bool> alone;
  Observer observer;
  observer.on_step = [&](const StepMetrics& m) { alone.push_back(m.counted); };
  Trainer(config_, observer).run(stop_);
  std::vector<bool> together;
  std::atomic<int> updates{0};
  for (const StepMetrics& m : run_ranks(2, [&](int, Trainer& trainer) {
         updates += static_cast<int>(trainer.state().optimizer().updates(trainer.state().context()));
       }))
    together.push_back(m.counted);
  EXPECT_EQ(together, alone);
  EXPECT_EQ(updates, 2) << "one on each rank, though the targets are one rank's";
}

TEST_F(MaskedRun, GoesOnWithTheDocumentsThatItBeganWith) {
  config_.save = scratch_.file("run");
  config_.train_iters = 2;
  const auto go_on = [&] {
    ++config_.train_iters;
    Trainer trainer(config_);
    trainer.run(stop_);
    return trainer.plan().config;
  };
  config_.reset_position_ids = config_.reset_attention_mask = false;  // as runs did before there was anything else
  Trainer(config_).run(stop_);
  config_.reset_position_ids = config_.reset_attention_mask = std::nullopt;
  EXPECT_EQ(go_on().reset_attention_mask, false);
  EXPECT_EQ(go_on().reset_position_ids, false);
  config_.reset_attention_mask = true;
  EXPECT_THAT(error_of(go_on), HasSubstr("reset-attention-mask: saved false, now true"));

  std::filesystem::remove_all(config_.save);
  config_.reset_attention_mask = std::nullopt;
  EXPECT_EQ(go_on().reset_attention_mask, std::nullopt);
  config_.reset_attention_mask = false;
  EXPECT_THAT(error_of(go_on), HasSubstr("reset-attention-mask: saved true, now false"));
}

// Its checkpoints know samples of the data, and documents that end with the end token whatever the index says.
TEST_F(MaskedRun, ARunBegunByAnOlderVersionGoesOn) {
  config_.save = scratch_.file("run");
  config_.train_iters = 2;
  config_.reset_position_ids = config_.reset_attention_mask = true;
  Trainer(config_).run(stop_);
  const auto edit = [&](int64_t step, const std::function<void(nlohmann::ordered_json&)>& change) {
    auto manifest = nlohmann::ordered_json::parse(read_plainly(saved_manifest(step)));
    manifest.erase(manifest.begin());  // its checksum
    change(manifest["metadata"]["identity"]);
    write_plainly(saved_manifest(step), sealed_manifest(manifest.dump().substr(1)));
  };
  const TokenFile file(config_.data_path[0], {});
  edit(2, [&](nlohmann::ordered_json& identity) {
    EXPECT_EQ(identity["documents"], "index");
    identity.erase("documents");
    identity["eod-token"] = 7;
    identity["data"][0]["fingerprint"] = fmt::format("{:016x}", file.sampled_fingerprint());
  });
  const auto go_on = [&](int64_t steps) {
    config_.train_iters = steps;
    return error_of([&] { Trainer(config_).run(stop_); });
  };
  EXPECT_EQ(go_on(3), "");
  edit(3, [&](const nlohmann::ordered_json& identity) {
    EXPECT_FALSE(identity.contains("documents"));
    EXPECT_EQ(identity["eod-token"], 7);
    EXPECT_EQ(identity["data"][0]["fingerprint"], fmt::format("xxh3:{:016x}", file.fingerprint()));
  });
  config_.eod_token = 8;
  EXPECT_THAT(go_on(4), HasSubstr("eod-token: saved 7, now 8"));
  config_.eod_token = 7;
  edit(3, [](nlohmann::ordered_json& identity) { identity["data"][0]["fingerprint"] = "0123456789abcdef"; });
  EXPECT_THAT(go_on(4), HasSubstr("data[0].fingerprint: saved \"0123456789abcdef\", now \"xxh3:"));
}

// It divides what it evaluates on by its index, also once it goes on.
TEST_F(MaskedRun, ARunOfFlatDataIsNotTakenForAnOlderOne) {
  std::filesystem::remove(scratch_.file("chat.idx"));
  config_.data_path = {scratch_.file("chat.bin")};
  config_.save = scratch_.file("run");
  for (const int64_t steps : {1, 2}) {
    config_.train_iters = steps;
    Trainer(config_).run(stop_);
    const auto manifest = nlohmann::json::parse(read_plainly(saved_manifest(steps)));
    const nlohmann::json& identity = manifest["metadata"]["identity"];
    EXPECT_EQ(identity["documents"], "token");
    EXPECT_EQ(identity["eod-token"], 7);
    EXPECT_FALSE(ends_documents_by_token(identity.dump()));
  }
}

// A mask beside a flat file was not read then: reading it now would be another run.
TEST_F(MaskedRun, AnOlderRunOfAFlatFileDoesNotGoOnWithItsMask) {
  std::filesystem::remove(scratch_.file("chat.idx"));
  DataConfig data;
  data.data_path = {scratch_.file("chat.bin")};
  data.valid_fraction = 0;
  BatchSpec spec;
  spec.sequence_length = 16;
  spec.eod_token = 7;
  const Dataset masked = open_datasets(data, spec).train;
  nlohmann::ordered_json saved = {{"data", nlohmann::ordered_json::parse(masked.identity())}};
  const std::string sampled = fmt::format("{:016x}", masked.parts()[0].file->sampled_fingerprint());
  saved["data"][0]["fingerprint"] = sampled;
  EXPECT_THAT(with_whole_contents(saved.dump(), masked), HasSubstr(sampled + " without "));
  std::filesystem::remove(scratch_.file("chat.mask"));
  const Dataset plain = open_datasets(data, spec).train;
  EXPECT_THAT(with_whole_contents(saved.dump(), plain), testing::Not(HasSubstr(sampled)));
}

}  // namespace
}  // namespace agoq::train
