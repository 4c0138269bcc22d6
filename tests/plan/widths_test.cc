#include "plan/widths.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "codec/codec.h"
#include "parallel/saved_slots.h"
#include "parallel/schedule.h"

namespace agoq::plan {
namespace {

using codec::Codec;
using model::SavedTensor;
using testing::ElementsAre;

// ---- the knapsack -----------------------------------------------------------------------------------------------

std::vector<WidthItem> random_items(std::mt19937& random, int count, int64_t largest_step) {
  std::vector<WidthItem> items;
  for (int64_t i = 0; i < count; ++i) {
    WidthItem item{{i}, SavedTensor::GateUp, {}};
    WidthOption option{Codec::None, static_cast<int64_t>(random() % 1000), 1. + static_cast<double>(random() % 1000)};
    for (size_t o = 0; o < 1 + random() % 5; ++o) {
      item.options.push_back(option);
      option.bytes += 1 + static_cast<int64_t>(random()) % largest_step;
      option.error *= static_cast<double>(random() % 100) / 100;
      if (option.error == 0) break;
    }
    items.push_back(item);
  }
  return items;
}

// The least error of all combinations within the budget.
double brute_force(std::span<const WidthItem> items, int64_t budget) {
  if (budget < 0) return std::numeric_limits<double>::infinity();
  if (items.empty()) return 0;
  double least = std::numeric_limits<double>::infinity();
  for (const WidthOption& option : items.front().options)
    least = std::min(least, option.error + brute_force(items.subspan(1), budget - option.bytes));
  return least;
}

int64_t bytes_of(std::span<const WidthItem> items, bool widest) {
  int64_t bytes = 0;
  for (const WidthItem& item : items) bytes += (widest ? item.options.back() : item.options.front()).bytes;
  return bytes;
}

TEST(Widths, AreTheBestOfAllCombinations) {
  std::mt19937 random(1);
  for (int trial = 0; trial < 200; ++trial) {
    const auto items = random_items(random, 1 + trial % 6, 100);
    const int64_t narrowest = bytes_of(items, false), widest = bytes_of(items, true);
    for (int64_t budget = narrowest; budget <= widest; budget += 1 + (widest - narrowest) / 9) {
      const auto choices = choose_widths(items, budget);
      ASSERT_LE(total_bytes(choices), budget);
      ASSERT_NEAR(total_error(choices), brute_force(items, budget), 1e-9 * total_error(choices));
    }
  }
}

// Additions of a gigabyte cannot be counted byte by byte; what rounding costs is a unit per item.
TEST(Widths, OfLargeTensorsStayWithinTheBudgetAndNearTheBest) {
  std::mt19937 random(2);
  for (int trial = 0; trial < 20; ++trial) {
    const auto items = random_items(random, 6, int64_t{1} << 30);
    const int64_t narrowest = bytes_of(items, false), widest = bytes_of(items, true);
    const int64_t lost = (widest - narrowest + kBudgetUnits) / kBudgetUnits * static_cast<int64_t>(items.size() + 1);
    for (int64_t tenth = 0; tenth <= 10; ++tenth) {
      const int64_t budget = narrowest + (widest - narrowest) / 10 * tenth;
      const auto choices = choose_widths(items, budget);
      ASSERT_LE(total_bytes(choices), budget);
      const double error = total_error(choices), slack = 1e-9 * error;
      ASSERT_GE(error, brute_force(items, budget) - slack);
      ASSERT_LE(error, brute_force(items, std::max(budget - lost, narrowest)) + slack);
    }
  }
}

TEST(Widths, LoseNoErrorToALargerBudget) {
  std::mt19937 random(3);
  for (const int64_t largest_step : {int64_t{20}, int64_t{1} << 30}) {
    const auto items = random_items(random, 12, largest_step);
    const int64_t narrowest = bytes_of(items, false), widest = bytes_of(items, true);
    double before = std::numeric_limits<double>::infinity();
    for (int64_t hundredth = 0; hundredth <= 100; ++hundredth) {
      const double error = total_error(choose_widths(items, narrowest + (widest - narrowest) * hundredth / 100));
      ASSERT_LE(error, before);
      before = error;
    }
  }
}

TEST(Widths, OfNothingAreNone) {
  EXPECT_TRUE(choose_widths({}, 100).empty());
  EXPECT_TRUE(choose_widths({}, -1).empty());
}

// ---- a pipeline stage of LLaMA3-8B ------------------------------------------------------------------------------

class WidthsOfAStage : public testing::Test {
 protected:
  static constexpr int64_t kTokens = 4096;

  static SlotPool pool(int stage) {
    const auto actions = parallel::schedule(stage, 4, 1, 16);
    return {{parallel::divide_layers(config().layers, 4, 1)[static_cast<size_t>(stage)]},
            parallel::peak_in_flight(actions)};
  }
  static const model::ModelConfig& config() {
    static const model::ModelConfig config = model::preset("llama3-8b");
    return config;
  }
  model::Recipe recipe(const std::string& overrides = "") const {
    return make_recipe(config(), spec_, model::Policy::Agoq, model::Recompute::None, overrides);
  }
  std::vector<WidthItem> items(const model::Recipe& recipe, const SlotPool& pool) const {
    return width_items(spec_, recipe, {&pool, 1}, kTokens);
  }
  std::string histogram(const model::Recipe& recipe, const SlotPool& pool) const {
    return width_histogram(spec_, recipe, pool.chunks);
  }

  const model::LayerSpec spec_{config()};
};

TEST_F(WidthsOfAStage, ItemsAreItsNormAndMlpInputs) {
  const SlotPool stage = pool(2);
  const auto all = items(recipe(), stage);
  ASSERT_EQ(all.size(), 3U * 8);
  EXPECT_THAT(all[0].layers, ElementsAre(16));
  EXPECT_EQ(all[0].kept, SavedTensor::X1);
  std::vector<Codec> codecs;
  for (const WidthOption& option : all[0].options) codecs.push_back(option.codec);
  EXPECT_THAT(codecs, ElementsAre(Codec::None, Codec::Fp5, Codec::Fp6, Codec::Int8, Codec::Bf16));
  // 4.125, 5.125, ... bits per number, two micro-batches in flight.
  const double numbers = 4096. * kTokens * 2;
  EXPECT_EQ(static_cast<double>(all[0].options[0].bytes), numbers * 4.125 / 8);
  EXPECT_EQ(static_cast<double>(all[0].options[1].bytes), numbers * 5.125 / 8);
  EXPECT_EQ(static_cast<double>(all[0].options[2].bytes), numbers * 6.125 / 8);
  EXPECT_EQ(static_cast<double>(all[0].options[3].bytes), numbers * 8.125 / 8);
  EXPECT_EQ(static_cast<double>(all[0].options[4].bytes), numbers * 2);
}

TEST_F(WidthsOfAStage, StayAsTheRecipeSaysWithoutRoom) {
  const SlotPool stage = pool(3);
  const model::Recipe own = recipe("layers=25,mlp=fp8;layers=26,norm=nf4");
  const auto all = items(own, stage);
  for (const int64_t budget : {int64_t{-1}, int64_t{0}, bytes_of(all, false)})
    EXPECT_EQ(with_widths(own, choose_widths(all, budget)).layers, own.layers);
}

TEST_F(WidthsOfAStage, AreAllWidestWithRoomForEverything) {
  const SlotPool stage = pool(3);
  const model::Recipe own = recipe(), wide = with_widths(own, choose_widths(items(own, stage), int64_t{1} << 50));
  EXPECT_EQ(histogram(wide, stage), "x1 bf16 x 8; x2 bf16 x 8; gate_up bf16 x 8");
  for (int64_t layer = 0; layer < config().layers; ++layer)
    for (size_t k = 0; k < model::kSavedTensors; ++k) {
      const auto kept = static_cast<SavedTensor>(k);
      const bool chosen =
          layer >= 24 && (kept == SavedTensor::X1 || kept == SavedTensor::X2 || kept == SavedTensor::GateUp);
      EXPECT_EQ(wide.at(layer, kept), chosen ? Codec::Bf16 : own.at(layer, kept));
    }
}

TEST_F(WidthsOfAStage, NeverNarrowWhatTheRecipeHasWide) {
  const SlotPool stage = pool(3);
  const model::Recipe own = recipe("layers=24-25,mlp=int8;layers=26,norm=bf16;layers=27,norm=fp32");
  const auto all = items(own, stage);
  for (int64_t tenth = 0; tenth <= 10; ++tenth) {
    const int64_t budget = bytes_of(all, false) + (bytes_of(all, true) - bytes_of(all, false)) * tenth / 10;
    const model::Recipe chosen = with_widths(own, choose_widths(all, budget));
    for (int64_t layer = 24; layer < 32; ++layer)
      for (const SavedTensor kept : {SavedTensor::X1, SavedTensor::X2, SavedTensor::GateUp})
        EXPECT_GE(codec::code_bits(chosen.at(layer, kept)), codec::code_bits(own.at(layer, kept)));
  }
}

TEST_F(WidthsOfAStage, LeaveAloneWhatIsRecomputed) {
  const SlotPool stage = pool(3);
  const model::Recipe full = make_recipe(config(), spec_, model::Policy::Agoq, model::Recompute::Full, "");
  const model::Recipe wide = with_widths(full, choose_widths(items(full, stage), int64_t{1} << 50));
  EXPECT_EQ(histogram(wide, stage), "x1 bf16 x 8; x2 none x 8; gate_up none x 8");
}

// A stage that is allowed stage 0's bytes: as near to the best as the relaxation, which no choice can beat, shows.
TEST_F(WidthsOfAStage, FillStageZerosBytesNearlyOptimally) {
  const int64_t budget = bytes_of(items(recipe(), pool(0)), false);
  for (const int stage : {1, 2, 3}) {
    const auto all = items(recipe(), pool(stage));
    const auto choices = choose_widths(all, budget);
    EXPECT_LE(total_bytes(choices), budget);
    // Lagrangian bound: max over the price of a byte of  sum_i min_o (error + price * bytes) - price * budget.
    double bound = 0;
    for (double price = 1e-16; price < 1e-6; price *= 1.01) {
      double value = -price * static_cast<double>(budget);
      for (const WidthItem& item : all) {
        double least = std::numeric_limits<double>::infinity();
        for (const WidthOption& o : item.options)
          least = std::min(least, o.error + price * static_cast<double>(o.bytes));
        value += least;
      }
      bound = std::max(bound, value);
    }
    EXPECT_GE(total_error(choices), bound);
    EXPECT_LE(total_error(choices), 1.05 * bound) << histogram(with_widths(recipe(), choices), pool(stage));
  }
}

TEST_F(WidthsOfAStage, WeightsSayWhichLayersMatter) {
  const SlotPool stage = pool(3);
  const auto all = width_items(spec_, recipe(), {&stage, 1}, kTokens,
                               [](int64_t layer, SavedTensor) { return layer == 30 ? 100. : 1.; });
  const int64_t narrowest = bytes_of(all, false), widest = bytes_of(all, true);
  const model::Recipe chosen = with_widths(recipe(), choose_widths(all, narrowest + (widest - narrowest) / 8));
  for (const SavedTensor kept : {SavedTensor::X1, SavedTensor::X2, SavedTensor::GateUp})
    for (const int64_t other : {24, 25, 26, 27, 28, 29, 31})
      EXPECT_LT(codec::code_bits(chosen.at(other, kept)), codec::code_bits(chosen.at(30, kept)));
}

// With norms behind, x1 and x2 are inputs of products and y1 and y2 of norms, where an error matters less.
TEST(WidthsOfPostNorm, InputsOfProductsComeFirst) {
  const model::ModelConfig config = model::preset("olmo2-7b");
  const model::LayerSpec spec(config);
  const model::Recipe recipe = make_recipe(config, spec, model::Policy::Agoq, model::Recompute::None, "");
  const SlotPool stage{{{0, 4}}, 1};
  const auto all = width_items(spec, recipe, {&stage, 1}, 4096);
  ASSERT_EQ(all.size(), 5U * 4);
  const int64_t narrowest = bytes_of(all, false), widest = bytes_of(all, true);
  const model::Recipe chosen = with_widths(recipe, choose_widths(all, narrowest + (widest - narrowest) / 50));
  for (int64_t layer = 0; layer < 4; ++layer)
    for (const auto& [x, y] : {std::pair{SavedTensor::X1, SavedTensor::Y1}, {SavedTensor::X2, SavedTensor::Y2}})
      EXPECT_GT(codec::code_bits(chosen.at(layer, x)), codec::code_bits(chosen.at(layer, y)));
}

// Interleaved: layers 4 and 20 lie in the same slots, and so have the same width; the longer chunk's last stands alone.
TEST_F(WidthsOfAStage, AreSharedByChunksThatShareSlots) {
  const SlotPool shared{{{4, 8}, {20, 23}}, 9};
  const auto all = items(recipe("layers=21,mlp=fp6"), shared);
  ASSERT_EQ(all.size(), 3U * 4);
  EXPECT_THAT(all[2].layers, ElementsAre(4, 20));
  EXPECT_THAT(all[11].layers, ElementsAre(7));
  // Place 1: room for the wider of fp4 and fp6; the recipe's own errors; then both in fp6 at no cost.
  const WidthItem& mixed = all[5];
  EXPECT_THAT(mixed.layers, ElementsAre(5, 21));
  EXPECT_EQ(mixed.options[0].bytes, all[2].options[2].bytes);
  const model::Recipe chosen = with_widths(recipe("layers=21,mlp=fp6"), choose_widths(all, bytes_of(all, false) + 1));
  EXPECT_EQ(chosen.at(5, SavedTensor::GateUp), Codec::Fp6);
  EXPECT_EQ(chosen.at(21, SavedTensor::GateUp), Codec::Fp6);
  EXPECT_EQ(chosen.at(4, SavedTensor::GateUp), Codec::Fp4);
  EXPECT_EQ(width_histogram(spec_, chosen, shared.chunks), "x1 fp4 x 7; x2 fp4 x 7; gate_up fp4 x 5, fp6 x 2");
}

// What a plan counts for slots is what the slots take, also where 33 tokens leave gaps for alignment.
TEST_F(WidthsOfAStage, CountTheBytesThatTheSlotsTake) {
  constexpr int64_t kOddTokens = 33;
  constexpr int kSlots = 3;
  const model::Recipe own = recipe("layers=0-1,mlp=fp6;layers=9,norm=fp8");
  for (const int chunks : {1, 2, 3})
    for (const int rank : {0, 1}) {
      parallel::Parallelism parallelism;
      parallelism.mesh = parallel::training_mesh({1, 1, 2});
      parallelism.rank = rank;
      parallelism.chunks = chunks;
      const parallel::StageShard stage(config(), spec_, parallelism);
      Arena arena(Device::Meta, 0);
      const parallel::SavedSlots slots(arena, spec_, own, stage, kOddTokens, kSlots);
      int64_t held = 0;
      for (const OwnerBytes& o : arena.by_owner())
        for (const SavedTensor kept : {SavedTensor::X1, SavedTensor::X2, SavedTensor::GateUp})
          if (o.owner == model::owner_of(spec_[kept])) held += static_cast<int64_t>(o.bytes);
      const SlotPool pool{stage.chunks, kSlots};
      EXPECT_EQ(bytes_of(width_items(spec_, own, {&pool, 1}, kOddTokens), false), held) << chunks << " chunks";
    }
}

// ---- the table of errors ----------------------------------------------------------------------------------------

TEST(Widths, ErrorsAreThoseOfTheCodecs) {
  constexpr int64_t kRows = 64, kCols = 1024;
  std::mt19937 random(4);
  std::normal_distribution<float> gaussian;
  Arena arena(Device::Cpu, 16 << 20);
  for (const Codec codec :
       {Codec::Int4, Codec::Fp4, Codec::Nf4, Codec::Fp5, Codec::Fp6, Codec::Fp8, Codec::Int8, Codec::Bf16}) {
    const auto q = codec::allocate(arena, Owner::Operands, codec, kRows, codec::RowBlocks(kCols));
    double error = 0, norm = 0;
    for (int64_t row = 0; row < kRows; ++row) {
      std::vector<float> x(kCols), y(kCols);
      std::generate(x.begin(), x.end(), [&] { return gaussian(random); });
      codec::encode_row(q, row, x.data(), codec::Rounding::nearest());
      codec::decode_row(q, row, y.data());
      for (size_t i = 0; i < x.size(); ++i) {
        error += (double{x[i]} - y[i]) * (double{x[i]} - y[i]);
        norm += double{x[i]} * x[i];
      }
    }
    EXPECT_NEAR(std::sqrt(error / norm), relative_error(codec), 0.04 * relative_error(codec)) << codec::name_of(codec);
  }
}

}  // namespace
}  // namespace agoq::plan
