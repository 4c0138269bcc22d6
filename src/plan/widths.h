// Stage-dependent bit widths (DBCA-PP, design 5 and 6; docs/pipeline.md): a pipeline stage that holds fewer activations
// than stage 0 stores them in more bits, each tensor in a width of its own.
//
// A multiple-choice knapsack: each norm and MLP input that the recipe stores gets one of its options, so that the sum
// of squared gradient errors is least and the bytes stay within a budget.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "model/recipe.h"
#include "parallel/stages.h"

namespace agoq::plan {

// Relative L2 error of a codec on Gaussian blocks of 128 (docs/design.md, section 3).
double relative_error(codec::Codec codec);

// How strongly the error of a saved tensor of a layer shows in the gradient: (relative error of the gradient / relative
// error of the tensor)^2, but for a factor that all share.
using Weight = std::function<double(int64_t layer, model::SavedTensor kept)>;
// The same for all layers, from bench/results/gradient_error.md; one of a pair of tensors (x1 and x2) has half of what
// both showed together.
Weight measured_weights(const model::LayerSpec& spec);

// Saved slots that some chunks of a stage share. The layers of a place (parallel/saved_slots.h) share a choice; a chunk
// with slots of its own is a pool of one.
struct SlotPool {
  std::vector<parallel::LayerRange> chunks;
  int64_t slots = 0;
};

struct WidthOption {
  codec::Codec codec = codec::Codec::None;  // None: every layer as the recipe says
  int64_t bytes = 0;                        // in the arena, of all slots
  double error = 0;                         // weight * relative error^2, over the layers
};

// A saved tensor of layers that share a choice. Options never fall in bytes and always in error; the first is the
// recipe's.
struct WidthItem {
  std::vector<int64_t> layers;
  model::SavedTensor kept{};
  std::vector<WidthOption> options;
};

struct Choice {
  std::vector<int64_t> layers;
  model::SavedTensor kept{};
  WidthOption option;
};

// The norm and MLP inputs of a stage with their options among fp5, fp6, int8 and bf16: those that need more bits than
// the recipe's codec. What is recomputed, or stored in bf16 or fp32 already, has one option. `tokens`: of a
// micro-batch.
std::vector<WidthItem> width_items(const model::LayerSpec& spec, const model::Recipe& recipe,
                                   std::span<const SlotPool> pools, int64_t tokens, const Weight& weight);
inline std::vector<WidthItem> width_items(const model::LayerSpec& spec, const model::Recipe& recipe,
                                          std::span<const SlotPool> pools, int64_t tokens) {
  return width_items(spec, recipe, pools, tokens, measured_weights(spec));
}

// The choice of least error among those of at most `budget` bytes; the recipe's codecs if even they need more. Bytes
// are counted in units of 1 / kBudgetUnits of all that could be added, rounded up: exact where these are whole, never
// beyond the budget otherwise. A larger budget never gives a larger error. Deterministic.
inline constexpr int64_t kBudgetUnits = int64_t{1} << 17;
std::vector<Choice> choose_widths(std::span<const WidthItem> items, int64_t budget);

// The recipe with these choices: a layer gets the chosen codec where that has more bits than its own.
model::Recipe with_widths(model::Recipe recipe, std::span<const Choice> choices);

int64_t total_bytes(std::span<const Choice> choices);
double total_error(std::span<const Choice> choices);

// How many layers store each norm and MLP input in which codec: "x1 fp4 x 8, fp6 x 2; x2 fp5 x 10; gate_up fp4 x 10".
std::string width_histogram(const model::LayerSpec& spec, const model::Recipe& recipe,
                            std::span<const parallel::LayerRange> chunks);

}  // namespace agoq::plan
