#include "model/recipe.h"

#include <charconv>
#include <nlohmann/json.hpp>

#include "base/text.h"

namespace agoq::model {
namespace {

using codec::Codec;
using Codecs = std::array<Codec, kSavedTensors>;

// In the order of the enumeration.
constexpr std::array<std::string_view, 5> kPolicyNames = {"agoq", "paper", "fp8", "bf16", "fp32"};

Codec& slot(Codecs& codecs, SavedTensor kept) {
  return codecs[static_cast<size_t>(kept)];
}

Codec group_codec(Policy policy, SavedTensorGroup group) {
  using enum SavedTensorGroup;
  if (group == Stat || policy == Policy::Fp32) return Codec::Fp32;
  if (group == Attention || policy == Policy::Bf16) return Codec::Bf16;
  switch (policy) {
    case Policy::Paper:
      return Codec::Fp4;
    case Policy::Fp8:
      return Codec::Fp8;
    default:
      return group == GemmInput ? Codec::None : Codec::Fp4;
  }
}

Codecs policy_codecs(const LayerSpec& spec, Policy policy) {
  Codecs codecs{};
  for (const SavedTensorSpec& row : spec.kept)
    slot(codecs, row.kept) = row.present() ? group_codec(policy, row.group) : Codec::None;
  return codecs;
}

void drop_recomputed(Codecs& codecs, Recompute recompute) {
  if (recompute == Recompute::Full) {
    const Codec x1 = slot(codecs, SavedTensor::X1);
    codecs.fill(Codec::None);
    slot(codecs, SavedTensor::X1) = x1;
  } else if (recompute == Recompute::Selective) {
    slot(codecs, SavedTensor::O) = slot(codecs, SavedTensor::Lse) = Codec::None;
  }
}

struct LayerRange {
  int64_t begin = 0, end = 0;
};

LayerRange parse_layers(const std::string& value, int64_t layers) {
  const auto number = [&](const std::string& text) {
    int64_t n = -1;
    const auto [rest, error] = std::from_chars(text.data(), text.data() + text.size(), n);
    require(error == std::errc() && rest == text.data() + text.size() && n >= 0 && n < layers,
            "activation override: layers={} must name layers 0 to {}", value, layers - 1);
    return n;
  };
  const size_t dash = value.find('-');
  const int64_t first = number(value.substr(0, dash));
  const int64_t last = dash == std::string::npos ? first : number(value.substr(dash + 1));
  require(first <= last, "activation override: layers={} counts backwards", value);
  return {first, last + 1};
}

std::string_view group_name(SavedTensorGroup group) {
  switch (group) {
    case SavedTensorGroup::Norm:
      return "norm";
    case SavedTensorGroup::Attention:
      return "attention";
    case SavedTensorGroup::Mlp:
      return "mlp";
    case SavedTensorGroup::GemmInput:
      return "input";
    default:
      return "";
  }
}

std::vector<SavedTensor> matching(const LayerSpec& spec, const std::string& key) {
  std::vector<SavedTensor> found;
  std::vector<std::string> names = {"layers", "norm", "attention", "mlp", "input"};
  for (const SavedTensorSpec& row : spec.kept) {
    if (row.group == SavedTensorGroup::Stat || !row.present()) continue;
    names.emplace_back(row.name);
    if (row.name == key || group_name(row.group) == key) found.push_back(row.kept);
  }
  require(!found.empty(), "activation override: unknown name '{}'{} (names: {})", key, did_you_mean(key, names),
          join(names, ", "));
  return found;
}

Codec parse_codec(const std::string& key, const std::string& value) {
  if (value == "none") return Codec::None;
  const auto parsed = codec::codec_from_name(value);
  const bool usable = parsed && *parsed != Codec::Dyn8 && *parsed != Codec::Dyn8Unsigned;
  require(
      usable,
      "activation override: {}={} is no activation codec; use fp32, bf16, fp8, int8, fp6, fp5, fp4, nf4, int4 or none",
      key, value);
  return *parsed;
}

void apply_clause(std::vector<Codecs>& layers, const LayerSpec& spec, const std::string& clause) {
  LayerRange range{0, static_cast<int64_t>(layers.size())};
  std::vector<std::pair<std::string, std::string>> choices;
  for (const std::string& item : split(clause, ',')) {
    const size_t equals = item.find('=');
    require(equals != std::string::npos, "activation override: '{}' is not KEY=VALUE", item);
    const std::string key(trim(item.substr(0, equals))), value(trim(item.substr(equals + 1)));
    if (key == "layers")
      range = parse_layers(value, static_cast<int64_t>(layers.size()));
    else
      choices.emplace_back(key, value);
  }
  require(!choices.empty(), "activation override: '{}' chooses nothing; add for example mlp=fp8", clause);
  for (const auto& [key, value] : choices) {
    const Codec codec = parse_codec(key, value);
    for (const SavedTensor kept : matching(spec, key))
      for (int64_t l = range.begin; l < range.end; ++l) slot(layers[static_cast<size_t>(l)], kept) = codec;
  }
}

// What backward cannot make again must be kept.
void check(const Codecs& codecs, const LayerSpec& spec, int64_t layer, Recompute recompute) {
  using enum SavedTensor;
  for (const SavedTensor kept : {X1, Qkv, Y1, X2, GateUp, Y2}) {
    const bool needed = spec[kept].present() && (kept == X1 || recompute != Recompute::Full);
    require(!needed || codecs[static_cast<size_t>(kept)] != Codec::None,
            "layer {}: {} cannot be recomputed by itself; keep it in some codec, or use --recompute-granularity full",
            layer, spec[kept].name);
  }
}

}  // namespace

Policy policy_from_name(const std::string& name) {
  for (size_t i = 0; i < kPolicyNames.size(); ++i)
    if (kPolicyNames[i] == name) return static_cast<Policy>(i);
  fail("unknown activation policy '{}'; use agoq, paper, fp8, bf16 or fp32", name);
}

std::string_view name_of(Policy policy) {
  return kPolicyNames[static_cast<size_t>(policy)];
}

Recompute recompute_from_name(const std::string& name) {
  if (name.empty() || name == "none") return Recompute::None;
  if (name == "selective") return Recompute::Selective;
  if (name == "full") return Recompute::Full;
  fail("unknown recompute granularity '{}'; use none, selective or full", name);
}

Recipe make_recipe(const ModelConfig& config, const LayerSpec& spec, Policy policy, Recompute recompute,
                   const std::string& overrides) {
  Recipe recipe;
  recipe.recompute = recompute;
  recipe.layers.assign(static_cast<size_t>(config.layers), policy_codecs(spec, policy));
  for (const std::string& clause : split(overrides, ';'))
    if (!trim(clause).empty()) apply_clause(recipe.layers, spec, clause);
  for (size_t layer = 0; layer < recipe.layers.size(); ++layer) {
    Codecs& codecs = recipe.layers[layer];
    drop_recomputed(codecs, recompute);
    // Attention's output and its log-sum-exp are made again together or not at all.
    if (slot(codecs, SavedTensor::O) == Codec::None) slot(codecs, SavedTensor::Lse) = Codec::None;
    check(codecs, spec, static_cast<int64_t>(layer), recompute);
  }
  return recipe;
}

double Recipe::bytes_per_token(const LayerSpec& spec, int64_t layer) const {
  double bytes = 0;
  for (const SavedTensorSpec& row : spec.kept) {
    const Codec codec = at(layer, row.kept);
    if (codec == Codec::None) continue;
    const codec::RowBlocks blocks(row.cols, row.segment);
    const int64_t of_row = codec::row_bytes(codec, blocks) + (codec::has_scales(codec) ? 2 * blocks.blocks() : 0);
    bytes += static_cast<double>(of_row) / (row.own_tokens ? spec.shard.size : 1);
  }
  return bytes;
}

std::string Recipe::to_json(const LayerSpec& spec) const {
  nlohmann::ordered_json json;
  json["recompute_granularity"] = recompute == Recompute::Full        ? "full"
                                  : recompute == Recompute::Selective ? "selective"
                                                                      : "none";
  for (size_t layer = 0; layer < layers.size(); ++layer) {
    nlohmann::ordered_json row;
    for (const SavedTensorSpec& kept : spec.kept)
      if (kept.present()) row[std::string(kept.name)] = codec::name_of(at(static_cast<int64_t>(layer), kept.kept));
    json["layers"].push_back(row);
  }
  return json.dump(1) + "\n";
}

}  // namespace agoq::model
