// What one layer's forward leaves for backward. Layer code keeps and loads; whether a tensor is stored as codes, as it
// is, or not at all is the recipe's business.
#pragma once

#include <array>
#include <span>
#include <vector>

#include "codec/codec.h"
#include "model/recipe.h"

namespace agoq::model {

// Of the slots for a saved tensor: "saved x1".
Owner owner_of(const SavedTensorSpec& row);

class SavedTensors {
 public:
  SavedTensors() = default;  // keeps nothing (evaluation)
  // Slots for T tokens of layer `layer`, or for a rank's part of them, owned by owner_of its row.
  SavedTensors(Arena& arena, const LayerSpec& spec, const Recipe& recipe, int64_t layer, int64_t tokens);
  // The same memory for layers that never keep anything at the same time, one of them each: of each saved tensor
  // shared_bytes.
  static std::vector<SavedTensors> sharing(Arena& arena, const LayerSpec& spec, const Recipe& recipe,
                                           std::span<const int64_t> layers, int64_t tokens);
  // What a saved tensor takes of the arena where layers that keep it in these codecs share the memory.
  static int64_t shared_bytes(const LayerSpec& spec, const SavedTensorSpec& row, std::span<const codec::Codec> codecs,
                              int64_t tokens);
  // Exact temporaries in the compute type for a layer whose forward is run again inside its backward.
  SavedTensors(const Context& ctx, const LayerSpec& spec, int64_t tokens);

  const codec::Quantized& operator[](SavedTensor k) const { return slots_[static_cast<size_t>(k)]; }
  bool kept(SavedTensor k) const { return (*this)[k].kept(); }
  // rstd [T / ranks], lse [Hq, T], qk_rstd [T, Hq + Hkv] or [T, 2]; an empty tensor if not kept.
  Tensor stat(SavedTensor k) const;

  // Where forward may write a tensor of [rows, cols] that it keeps: the slot itself if it stores the compute type, so
  // that keeping it costs nothing, otherwise a temporary.
  Tensor out(const Context& ctx, SavedTensor k, int64_t rows, int64_t cols) const;
  void keep(const Context& ctx, SavedTensor k, const Tensor& x) const;
  // The tensor in the compute type: the slot itself if it is stored so, otherwise decoded into a temporary. Read only.
  Tensor load(const Context& ctx, SavedTensor k) const;
  // Of a tensor whose tokens are divided over the tensor group: of all of them.
  Tensor gather(const Context& ctx, SavedTensor k) const;
  // As load, but always a temporary that may be changed in place.
  Tensor copy(const Context& ctx, SavedTensor k) const;

 private:
  std::array<codec::Quantized, kSavedTensors> slots_{};
};

}  // namespace agoq::model
