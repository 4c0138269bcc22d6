#include "plan/widths.h"

#include <algorithm>
#include <limits>
#include <map>
#include <numeric>

#include "model/saved_tensors.h"
#include "parallel/saved_slots.h"

namespace agoq::plan {
namespace {

using codec::Codec;

constexpr std::array kWidths = {Codec::Fp5, Codec::Fp6, Codec::Int8, Codec::Bf16};

bool adjustable(const model::SavedTensorSpec& row) {
  return row.present() && (row.group == model::SavedTensorGroup::Norm || row.group == model::SavedTensorGroup::Mlp);
}

// What a layer stores that the recipe gives `own` and a choice `chosen`; None has no bits.
Codec widened(Codec own, Codec chosen) {
  return own != Codec::None && codec::code_bits(chosen) > codec::code_bits(own) ? chosen : own;
}

// The options of one saved tensor of layers that share a choice.
class WidthOptions {
 public:
  WidthOptions(const model::LayerSpec& spec, const model::SavedTensorSpec& row, int64_t tokens, int64_t slots)
      : spec_(spec), row_(row), tokens_(tokens), slots_(slots) {}

  void add_layer(Codec own, double weight) { layers_.push_back({own, weight}); }
  std::vector<WidthOption> all() const {
    std::vector<WidthOption> options = {option(Codec::None)};
    for (const Codec codec : kWidths) {
      const WidthOption wider = option(codec);
      const bool better = wider.error < options.back().error;
      if (better && wider.bytes >= options.back().bytes) options.push_back(wider);
    }
    return options;
  }

 private:
  struct LayerWidth {
    Codec own{};
    double weight = 0;
  };

  WidthOption option(Codec chosen) const {
    WidthOption option{chosen, 0, 0};
    std::vector<Codec> stored;
    for (const auto& [own, weight] : layers_) {
      const double error = relative_error(stored.emplace_back(widened(own, chosen)));
      option.error += weight * error * error;
    }
    option.bytes = slots_ * model::SavedTensors::shared_bytes(spec_, row_, stored, tokens_);
    return option;
  }

  const model::LayerSpec& spec_;
  const model::SavedTensorSpec& row_;
  int64_t tokens_, slots_;
  std::vector<LayerWidth> layers_;
};

// Bytes beyond the recipe's.
int64_t added(const WidthItem& item, const WidthOption& option) {
  return option.bytes - item.options.front().bytes;
}

// The unit in which additions are counted. It depends on the items alone, so that choices of all budgets compare.
int64_t unit_of(std::span<const WidthItem> items) {
  int64_t divisor = 0, all = 0;
  for (const WidthItem& item : items) {
    for (const WidthOption& option : item.options) divisor = std::gcd(divisor, added(item, option));
    all += added(item, item.options.back());
  }
  return std::max({divisor, (all + kBudgetUnits - 1) / kBudgetUnits, int64_t{1}});
}

// Dynamic programme over items: least[u] is the least error of the items so far with at most u units added.
std::vector<size_t> best_options(std::span<const WidthItem> items, int64_t unit, int64_t units) {
  const auto cost = [&](const WidthItem& item, const WidthOption& option) {
    return (added(item, option) + unit - 1) / unit;
  };
  std::vector<double> least(static_cast<size_t>(units) + 1, 0), before;
  std::vector<std::vector<uint8_t>> taken;  // [item][u]
  for (const WidthItem& item : items) {
    before.assign(least.size(), std::numeric_limits<double>::infinity());
    before.swap(least);
    taken.emplace_back(least.size(), uint8_t{0});
    for (size_t o = 0; o < item.options.size(); ++o) {
      const auto step = static_cast<size_t>(cost(item, item.options[o]));
      for (size_t u = step; u < least.size(); ++u) {
        const double error = before[u - step] + item.options[o].error;
        if (error >= least[u]) continue;
        least[u] = error;
        taken.back()[u] = static_cast<uint8_t>(o);
      }
    }
  }
  std::vector<size_t> best(items.size());
  for (size_t i = items.size(), u = static_cast<size_t>(units); i-- > 0;) {
    best[i] = taken[i][u];
    u -= static_cast<size_t>(cost(items[i], items[i].options[best[i]]));
  }
  return best;
}

}  // namespace

double relative_error(Codec codec) {
  switch (codec) {
    case Codec::Int4:
      return .117;
    case Codec::Fp4:
      return .109;
    case Codec::Nf4:
      return .096;
    case Codec::Fp5:
      return .054;
    case Codec::Fp6:
      return .027;
    case Codec::Fp8:
      return .026;
    case Codec::Int8:
      return .0065;
    case Codec::Bf16:
      return .0017;
    case Codec::Fp32:
    case Codec::None:
      return 0;
    default:
      fail("{} is no activation codec", codec::name_of(codec));
  }
}

Weight measured_weights(const model::LayerSpec& spec) {
  const auto weight = [](double gradient_error) {
    const double ratio = gradient_error / relative_error(Codec::Fp4);
    return ratio * ratio;
  };
  // A norm in front reads x: its error shows in the norm's derivative (.0324) and, by way of n, in the product behind.
  // With the norm behind, the product reads x, and the norm y: each has its own part of it.
  constexpr double kNormInput = .0692, kNorm = .0324;
  const bool post_norm = spec[model::SavedTensor::Y1].present();
  const double of_norm = weight(kNorm) / 2, of_both = weight(kNormInput) / 2;
  const double of_x = post_norm ? of_both - of_norm : of_both, of_gate_up = weight(.0585);
  return [=](int64_t /*layer*/, model::SavedTensor kept) {
    using enum model::SavedTensor;
    return kept == GateUp ? of_gate_up : kept == Y1 || kept == Y2 ? of_norm : of_x;
  };
}

std::vector<WidthItem> width_items(const model::LayerSpec& spec, const model::Recipe& recipe,
                                   std::span<const SlotPool> pools, int64_t tokens, const Weight& weight) {
  std::vector<WidthItem> items;
  for (const SlotPool& pool : pools)
    for (const std::vector<int64_t>& layers : parallel::layers_of_places(pool.chunks))
      for (const model::SavedTensorSpec& row : spec.kept) {
        if (!adjustable(row)) continue;
        WidthOptions options(spec, row, tokens, pool.slots);
        WidthItem item{layers, row.kept, {}};
        for (const int64_t layer : layers) options.add_layer(recipe.at(layer, row.kept), weight(layer, row.kept));
        item.options = options.all();
        items.push_back(std::move(item));
      }
  return items;
}

std::vector<Choice> choose_widths(std::span<const WidthItem> items, int64_t budget) {
  int64_t narrowest = 0, widest = 0;
  for (const WidthItem& item : items) {
    narrowest += item.options.front().bytes;
    widest += item.options.back().bytes;
  }
  std::vector<size_t> best(items.size(), 0);
  if (budget >= widest) {
    for (size_t i = 0; i < items.size(); ++i) best[i] = items[i].options.size() - 1;
  } else if (budget > narrowest) {
    const int64_t unit = unit_of(items);
    best = best_options(items, unit, (budget - narrowest) / unit);
  }
  std::vector<Choice> choices;
  for (size_t i = 0; i < items.size(); ++i)
    choices.push_back({items[i].layers, items[i].kept, items[i].options[best[i]]});
  return choices;
}

model::Recipe with_widths(model::Recipe recipe, std::span<const Choice> choices) {
  for (const Choice& choice : choices)
    for (const int64_t layer : choice.layers)
      recipe.set(layer, choice.kept, widened(recipe.at(layer, choice.kept), choice.option.codec));
  return recipe;
}

int64_t total_bytes(std::span<const Choice> choices) {
  int64_t bytes = 0;
  for (const Choice& choice : choices) bytes += choice.option.bytes;
  return bytes;
}

double total_error(std::span<const Choice> choices) {
  double error = 0;
  for (const Choice& choice : choices) error += choice.option.error;
  return error;
}

std::string width_histogram(const model::LayerSpec& spec, const model::Recipe& recipe,
                            std::span<const parallel::LayerRange> chunks) {
  std::string text;
  for (const model::SavedTensorSpec& row : spec.kept) {
    if (!adjustable(row)) continue;
    std::map<Codec, int64_t, std::greater<>> layers_with;  // narrow ones first
    for (const parallel::LayerRange& chunk : chunks)
      for (int64_t layer = chunk.begin; layer < chunk.end; ++layer) ++layers_with[recipe.at(layer, row.kept)];
    text += fmt::format("{}{}", text.empty() ? "" : "; ", row.name);
    for (const char* comma = ""; const auto& [codec, layers] : layers_with) {
      text += fmt::format("{} {} x {}", comma, codec::name_of(codec), layers);
      comma = ",";
    }
  }
  return text;
}

}  // namespace agoq::plan
