#include "train/checkpoint/state_io.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <type_traits>

#include "base/error_of.h"
#include "base/scratch_folder.h"
#include "parallel/tiny_state.h"
#include "train/checkpoint/checkpoint_save.h"

namespace agoq::train {
namespace {

using model::MasterForm;
using test::tiny_model;
using test::tiny_run_spec;
using test::TinyState;
using testing::HasSubstr;

constexpr MasterForm kForms[] = {MasterForm::Split, MasterForm::Fp32};
constexpr DType kComputeTypes[] = {DType::F32, DType::BF16};

parallel::RunSpec run_spec_of(MasterForm master, DType compute) {
  parallel::RunSpec run_spec = tiny_run_spec();
  run_spec.precision.master = master;
  run_spec.precision.compute = compute;
  return run_spec;
}

struct Trained {
  explicit Trained(const parallel::RunSpec& run_spec) : state(run_spec) {
    state->params().initialize(state->context(), 3);
    for (int i = 0; i < 3; ++i) state.step();
  }
  Checkpoint save(const ScratchFolder& folder, int64_t step = 3) {
    return Checkpoint(save_checkpoint(folder.file("checkpoints"), step, state->named_tensors(), "{}"));
  }
  TinyState state;
};

std::vector<std::vector<uint8_t>> moments_of(TinyState& state) {
  std::vector<std::vector<uint8_t>> moments;
  for (const StoredTensor& tensor : state->named_tensors())
    if (tensor.name.starts_with("exp_avg")) {
      const Tensor& data = tensor.pieces.at(0).data;
      moments.emplace_back(data.raw(), data.raw() + data.bytes());
    }
  return moments;
}

void expect_same(const std::vector<float>& got, const std::vector<float>& want) {
  ASSERT_EQ(got.size(), want.size());
  EXPECT_EQ(std::memcmp(got.data(), want.data(), got.size() * sizeof(float)), 0);
}

TEST(StateIo, EveryFormAndComputeTypeLoadsEveryOther) {
  for (const MasterForm form : kForms)
    for (const DType compute : kComputeTypes) {
      const ScratchFolder folder;
      Trained trained(run_spec_of(form, compute));
      const Checkpoint checkpoint = trained.save(folder);
      for (const MasterForm other_form : kForms)
        for (const DType other_compute : kComputeTypes) {
          TinyState loaded(run_spec_of(other_form, other_compute));
          load_state(checkpoint, *loaded);
          expect_same(loaded.weights(), trained.state.weights());
          EXPECT_EQ(moments_of(loaded), moments_of(trained.state));
          TinyState weights_only(run_spec_of(other_form, other_compute));
          load_weights(checkpoint, *weights_only);
          expect_same(weights_only.weights(), trained.state.weights());
        }
    }
}

// What GEMMs read in bf16 is not in the checkpoint, and must be what it was.
TEST(StateIo, TrainingGoesOnBitForBit) {
  for (const MasterForm form : kForms)
    for (const DType compute : kComputeTypes) {
      const ScratchFolder folder;
      Trained trained(run_spec_of(form, compute));
      const Checkpoint checkpoint = trained.save(folder);
      TinyState loaded(run_spec_of(form, compute));
      load_state(checkpoint, *loaded);
      loaded->optimizer().set_updates(loaded->context(), trained.state->optimizer().updates(trained.state->context()));
      for (int i = 0; i < 2; ++i) {
        const double loss = trained.state.step();
        EXPECT_TRUE(std::isfinite(loss));
        EXPECT_EQ(loaded.step(), loss);
      }
      expect_same(loaded.weights(), trained.state.weights());
    }
}

parallel::RunSpec delayed_run_spec(int64_t history) {
  parallel::RunSpec run_spec = run_spec_of(MasterForm::Split, DType::F32);
  constexpr ops::OperandFormat kWhole{DType::E4M3, ops::Granularity::Tensor};
  ops::Fp8Recipe recipe{kWhole, kWhole, kWhole, kWhole, kWhole};
  recipe.delayed = ops::DelayedScaling{history, false, 8};  // so much room that most numbers become subnormal
  run_spec.precision.fp8.recipe = recipe;
  return run_spec;
}

// Scales that are known before are part of the state, as what they are made from.
TEST(StateIo, DelayedScalesGoOnBitForBit) {
  const ScratchFolder folder;
  Trained trained(delayed_run_spec(4));
  const Checkpoint checkpoint = trained.save(folder);
  TinyState loaded(delayed_run_spec(4)), bare(delayed_run_spec(4));
  EXPECT_EQ(load_state(checkpoint, *loaded), "");
  load_weights(checkpoint, *bare);
  for (TinyState* state : {&loaded, &bare})
    (*state)->optimizer().set_updates((*state)->context(),
                                      trained.state->optimizer().updates(trained.state->context()));
  const double loss = trained.state.step();
  EXPECT_EQ(loaded.step(), loss);
  EXPECT_NE(bare.step(), loss) << "or the history makes no difference";
  EXPECT_EQ(loaded.step(), trained.state.step());
  expect_same(loaded.weights(), trained.state.weights());
}

TEST(StateIo, AHistoryMayBecomeLongerShorterOrBegin) {
  const ScratchFolder folder;
  Trained trained(delayed_run_spec(3));
  const Checkpoint checkpoint = trained.save(folder);
  const auto history = [](TinyState& state) {
    const Tensor h = state->scales()->history(1);
    return std::vector<float>(h.as<float>(), h.as<float>() + h.cols());
  };
  const std::vector<float> three = history(trained.state);
  EXPECT_GT(three[2], 0) << "as many as steps";
  TinyState longer(delayed_run_spec(5)), shorter(delayed_run_spec(2));
  load_state(checkpoint, *longer);
  EXPECT_EQ(history(longer), (std::vector<float>{three[0], three[1], three[2], 0, 0}));
  load_state(checkpoint, *shorter);
  EXPECT_EQ(history(shorter), (std::vector<float>{three[0], three[1]}));
  Trained plain(run_spec_of(MasterForm::Split, DType::F32));
  const Checkpoint without = plain.save(folder, 4);
  TinyState begins(delayed_run_spec(2));
  EXPECT_THAT(load_state(without, *begins), HasSubstr("no amax history"));
  EXPECT_EQ(history(begins), (std::vector<float>{0, 0}));
  TinyState plain_again(run_spec_of(MasterForm::Split, DType::F32));
  EXPECT_EQ(load_state(checkpoint, *plain_again), "") << "a run that has no use for a history";
}

TEST(StateIo, TheComputeTypeLeavesNoTrace) {
  for (const MasterForm form : kForms) {
    const ScratchFolder folder;
    Trained fp32(run_spec_of(form, DType::F32));
    const Checkpoint first = fp32.save(folder, 1);
    TinyState bf16(run_spec_of(form, DType::BF16));
    load_state(first, *bf16);
    const Checkpoint second(save_checkpoint(folder.file("checkpoints"), 2, bf16->named_tensors(), "{}"));
    ASSERT_EQ(second.manifest().tensors.size(), first.manifest().tensors.size());
    for (size_t i = 0; i < first.manifest().tensors.size(); ++i) {
      const ManifestTensor &a = first.manifest().tensors[i], &b = second.manifest().tensors[i];
      EXPECT_EQ(a.name, b.name);
      EXPECT_EQ(a.pieces.at(0).checksum, b.pieces.at(0).checksum) << a.name;
    }
    for (const ManifestTensor& tensor : first.manifest().tensors)
      EXPECT_THAT(tensor.name, testing::ContainsRegex("^(weights|corrections|exp_avg(_sq)?\\.(codes|scales))/"));
  }
}

// One weight [rows, cols], and what a rank holds of it in some type.
struct Weights {
  static constexpr int64_t kRows = 10, kCols = 6;

  explicit Weights(uint32_t seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    for (float& x : whole) x = normal(random);
    whole[3] = 1.00390625f;  // a tie between two bf16
    for (size_t i = 0; i < whole.size(); ++i) {
      const auto bits = std::bit_cast<uint32_t>(whole[i]);
      high[i].bits = static_cast<uint16_t>((bits >> 16) + ((bits >> 15) & 1));  // to nearest, ties up
      low[i] = static_cast<int16_t>(bits - (uint32_t{high[i].bits} << 16));
    }
  }
  static StoredTensor piece(const char* name, DType dtype, const Rectangle& at, void* data) {
    return {name, dtype, {kRows, kCols}, {{at, Tensor{data, dtype, Device::Cpu, {at.rows(), at.cols()}}}}};
  }
  std::vector<StoredTensor> split() {
    return {{"weights/w", host_tensor(high.data(), {kRows, kCols})},
            {"corrections/w", host_tensor(low.data(), {kRows, kCols})}};
  }
  std::vector<StoredTensor> fp32() { return {{"weights/w", host_tensor(whole.data(), {kRows, kCols})}}; }

  std::vector<float> whole = std::vector<float>(kRows * kCols);
  std::vector<Bf16> high = std::vector<Bf16>(kRows * kCols);
  std::vector<int16_t> low = std::vector<int16_t>(kRows * kCols);
};

// What a rectangle holds of a whole.
template <class T>
std::vector<uint32_t> bits_of(const std::vector<T>& numbers, const Rectangle& at, int64_t cols) {
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t>;
  std::vector<uint32_t> bits;
  for (int64_t row = at.row_begin; row < at.row_end; ++row)
    for (int64_t col = at.col_begin; col < at.col_end; ++col)
      bits.push_back(std::bit_cast<Bits>(numbers[static_cast<size_t>(row * cols + col)]));
  return bits;
}

// A rank of another mesh: bf16 of some columns, corrections of a slice of their rows, or an fp32 master of a slice.
TEST(StateIo, RectanglesOfEitherFormAreFilledFromEither) {
  const Rectangle columns = {0, Weights::kRows, 2, 5}, slice = {4, 7, 2, 5};
  Weights weights(5);
  for (const bool from_split : {false, true}) {
    const ScratchFolder folder;
    const Checkpoint checkpoint(
        save_checkpoint(folder.file("checkpoints"), 1, from_split ? weights.split() : weights.fp32(), "{}"));
    std::vector<Bf16> high(static_cast<size_t>(columns.count()));
    std::vector<int16_t> low(static_cast<size_t>(slice.count()));
    std::vector<float> master(low.size());
    const std::vector<StoredTensor> held = {Weights::piece("weights/w", DType::BF16, columns, high.data()),
                                            Weights::piece("corrections/w", DType::I16, slice, low.data()),
                                            Weights::piece("weights/w", DType::F32, slice, master.data())};
    Arena arena(Device::Cpu, 1 << 20);
    load_weights(checkpoint, Context(arena, Device::Cpu, DType::F32), held);
    const auto all = [](const auto& numbers, const Rectangle& at) {
      return bits_of(numbers, {0, at.rows(), 0, at.cols()}, at.cols());
    };
    EXPECT_EQ(all(high, columns), bits_of(weights.high, columns, Weights::kCols));
    EXPECT_EQ(all(low, slice), bits_of(weights.low, slice, Weights::kCols));
    EXPECT_EQ(all(master, slice), bits_of(weights.whole, slice, Weights::kCols));
  }
}

TEST(StateIo, WhatBf16CannotHoldIsRefused) {
  for (const float bad : {3.4e38f, std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    Weights weights(5);
    weights.whole[7] = bad;
    const ScratchFolder folder;
    const Checkpoint checkpoint(save_checkpoint(folder.file("checkpoints"), 1, weights.fp32(), "{}"));
    Arena arena(Device::Cpu, 1 << 20);
    EXPECT_THAT(error_of([&] { load_weights(checkpoint, Context(arena, Device::Cpu, DType::F32), weights.split()); }),
                HasSubstr("'weights/w' holds"));
  }
}

TEST(StateIo, AnotherModelIsRefusedAndNothingChanges) {
  const ScratchFolder folder;
  Trained trained(tiny_run_spec());
  const Checkpoint checkpoint = trained.save(folder);
  model::ModelConfig larger = tiny_model();
  larger.ffn_size = 192;
  TinyState other(tiny_run_spec(larger));
  other->params().initialize(other->context(), 9);
  const std::vector<float> before = other.weights();
  EXPECT_THAT(error_of([&] { load_weights(checkpoint, *other); }), HasSubstr("'weights/layers.0.gate_up': saved bf16"));
  model::ModelConfig deeper = tiny_model();
  deeper.layers = 3;
  TinyState deep(tiny_run_spec(deeper));
  EXPECT_THAT(error_of([&] { load_weights(checkpoint, *deep); }), HasSubstr("missing: 'weights/layers.2."));
  parallel::RunSpec exact = tiny_run_spec();
  exact.precision.exp_avg = codec::Codec::Fp32;
  TinyState moments(exact);
  EXPECT_THAT(error_of([&] { load_state(checkpoint, *moments); }), HasSubstr("'exp_avg.codes/"));
  expect_same(other.weights(), before);
}

}  // namespace
}  // namespace agoq::train
