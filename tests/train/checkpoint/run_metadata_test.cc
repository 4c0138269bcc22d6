#include "train/checkpoint/run_metadata.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "base/error_of.h"
#include "base/scratch_folder.h"
#include "train/config/settings.h"

namespace agoq::train {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

TEST(RunMetadata, ComesBackWithEverySetting) {
  RunMetadata metadata;
  metadata.updates = 7;
  metadata.skipped = 3;
  metadata.skipped_in_a_row = 2;
  metadata.without_targets = 1;
  metadata.tokens = uint64_t{1} << 40;
  metadata.iters_before_fit = 400;
  metadata.identity = R"({"a":1})";
  metadata.model = R"({"b":2})";
  metadata.model_folder = "/models/one";
  TrainConfig& settings = metadata.settings;
  settings.data_path = {"0.7", "a \"b\"", "0.3", "c"};
  settings.lr = 0.1 + 0.2;
  settings.seed = ~uint64_t{0};
  settings.eod_token = -5;
  settings.eod_mask_loss = true;
  settings.reset_position_ids = false;
  settings.tokenizer = "/t\xc3\xa9";
  const RunMetadata again = metadata_from_json(to_json(metadata), "m");
  EXPECT_EQ(again.updates, 7);
  EXPECT_EQ(again.skipped, 3);
  EXPECT_EQ(again.skipped_in_a_row, 2);
  EXPECT_EQ(again.without_targets, 1);
  EXPECT_EQ(again.tokens, metadata.tokens);
  EXPECT_EQ(again.iters_before_fit, 400);
  EXPECT_EQ(again.identity, metadata.identity);
  EXPECT_EQ(again.model, metadata.model);
  EXPECT_EQ(again.model_folder, metadata.model_folder);
  EXPECT_EQ(to_toml(again.settings), to_toml(settings));
  EXPECT_THAT(error_of([] { metadata_from_json("{}", "m.json"); }), HasSubstr("m.json"));
}

TEST(RunMetadata, WhatWasMovedWithTheRunFolderIsFoundAgain) {
  const ScratchFolder folder;
  const auto make = [&](const std::string& name) {
    fs::create_directories(folder.file(name));
    return folder.file(name);
  };
  const std::string run = make("project/runs/one"), model = make("project/models/llama");
  EXPECT_EQ(find_moved(model, run, run), model);
  fs::rename(folder.file("project"), folder.file("moved"));
  const std::string run_now = folder.file("moved/runs/one");
  EXPECT_EQ(find_moved(model, run, run_now), folder.file("moved/models/llama"));
  make("project/models/llama");
  EXPECT_EQ(find_moved(model, run, run_now), model) << "it is still there";
  EXPECT_EQ(find_moved("/no/such/folder", run, run_now), "/no/such/folder");
  EXPECT_EQ(find_moved("", run, run_now), "");
  EXPECT_EQ(find_moved("byte", run, run_now), "byte") << "no path";
  const std::string own = make("project/runs/one/tokenizer"), moved_own = make("moved/runs/one/tokenizer");
  EXPECT_EQ(find_moved(own, run, run_now), moved_own) << "a copied run reads its own files";
  fs::remove(moved_own);
  EXPECT_EQ(find_moved(own, run, run_now), own);
}

// As versions wrote it that recorded the tokenizer of a relative --model as it was given.
TEST(RunMetadata, ARelativeTokenizerIsThatOfTheModelFolder) {
  RunMetadata metadata;
  metadata.identity = metadata.model = "{}";
  metadata.model_folder = "/models/llama";
  metadata.settings.tokenizer = "../models/llama";
  const Manifest manifest{.step = 1, .files = {}, .tensors = {}, .metadata = to_json(metadata)};
  EXPECT_EQ(read_metadata(manifest, "/runs/one/checkpoints/step-00000001").settings.tokenizer, "/models/llama");
}

}  // namespace
}  // namespace agoq::train
