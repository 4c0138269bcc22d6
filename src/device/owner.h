// Who holds bytes of an arena: the only list of them. Owners are no text, so a misspelt one does not compile.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>

namespace agoq {

struct Owner {
  enum Kind : uint8_t {
    Weights,
    GatheredWeights,  // of other ranks, where products read them
    Fp8Weights,       // the same in 8-bit floats, or scales for them
    Corrections,
    Fp32Master,
    RopeTable,
    Saved,  // one owner for each tensor that layers save: model::owner_of
    Batch,
    MainGradients,
    Moments,
    NormWorkspace,
    AmaxHistory,
    ResidualStream,
    Communication,
    Workspace,  // the most that temporaries take at a time
    Operands,   // of a benchmark or a test
  };
  static constexpr size_t kKinds = Operands + 1;

  // Not explicit, so that Owner::Moments is an owner.
  constexpr Owner(Kind kind) : kind_(kind) {  // NOLINT(google-explicit-constructor)
    if (kind == Saved) throw std::logic_error("a saved tensor's owner has a name: Owner::saved(tensor)");
  }
  // The tensor's name in the table of a layer, which outlives the owner.
  static constexpr Owner saved(std::string_view tensor) { return {Saved, tensor}; }

  Kind kind() const { return kind_; }
  // As plans, memory.json and errors call it: "main gradients", "saved x1".
  std::string text() const { return std::string(kNames[kind_]).append(tensor_); }
  bool operator==(const Owner&) const = default;

 private:
  // In the order of the enumeration.
  static constexpr std::array<std::string_view, kKinds> kNames = {"weights",
                                                                  "gathered weights",
                                                                  "weights in 8-bit floats",
                                                                  "corrections",
                                                                  "fp32 master",
                                                                  "rope table",
                                                                  "saved ",
                                                                  "batch",
                                                                  "main gradients",
                                                                  "moments",
                                                                  "workspace of the norm",
                                                                  "amax history",
                                                                  "residual stream",
                                                                  "communication",
                                                                  "workspace",
                                                                  "operands"};
  constexpr Owner(Kind kind, std::string_view tensor) : kind_(kind), tensor_(tensor) {}

  Kind kind_;
  std::string_view tensor_;
};

}  // namespace agoq
