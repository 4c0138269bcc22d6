// The recipe: for every layer and saved tensor its codec, or None (recomputed in backward). LAAQ, design 2 and 3.
#pragma once

#include <string>
#include <vector>

#include "model/layer_spec.h"

namespace agoq::model {

// agoq   norm and MLP inputs fp4, attention bf16; n1, n2, h recomputed
// paper  as the paper: norm, GEMM and SiLU inputs fp4, each stored; attention bf16
// fp8    as COAT: fp8 everywhere outside attention, each stored
// bf16   everything in bf16, nothing recomputed: the fastest
// fp32   everything in fp32, nothing recomputed: exact on the CPU
enum class Policy : uint8_t { Agoq, Paper, Fp8, Bf16, Fp32 };
// What of the layer's saved set is dropped and computed again: nothing beyond the policy; attention's output and lse
// (Selective); everything but x1 (Full).
enum class Recompute : uint8_t { None, Selective, Full };

Policy policy_from_name(const std::string& name);
std::string_view name_of(Policy policy);  // the inverse
Recompute recompute_from_name(const std::string& name);

struct Recipe {
  std::vector<std::array<codec::Codec, kSavedTensors>> layers;
  Recompute recompute = Recompute::None;

  codec::Codec at(int64_t layer, SavedTensor kept) const {
    return layers[static_cast<size_t>(layer)][static_cast<size_t>(kept)];
  }
  void set(int64_t layer, SavedTensor kept, codec::Codec codec) {
    layers[static_cast<size_t>(layer)][static_cast<size_t>(kept)] = codec;
  }
  std::string to_json(const LayerSpec& spec) const;  // recipe.json of a run folder
  // Bytes that one token leaves in one layer, on one rank.
  double bytes_per_token(const LayerSpec& spec, int64_t layer) const;
};

// `overrides`: clauses separated by ';', each a list of KEY=VALUE separated by ','. layers=A-B (or layers=A) limits the
// clause; other keys are a saved tensor (x1, n1, qkv, o, y1, x2, n2, gate_up, h, y2) or a group (norm, attention, mlp,
// input); values are codecs or `none` (recompute). Example: "layers=0-1,mlp=fp8;norm=fp5".
Recipe make_recipe(const ModelConfig& config, const LayerSpec& spec, Policy policy, Recompute recompute,
                   const std::string& overrides);

}  // namespace agoq::model
