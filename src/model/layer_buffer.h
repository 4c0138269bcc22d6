// Memory for something of the matrices of two layers, so that one is used while the other is filled, or for that of an
// end of the model (embedding, head).
#pragma once

#include <array>
#include <functional>
#include <vector>

#include "model/layer_spec.h"

namespace agoq::model {

// A layer's matrices, or one of an end of the model.
struct MatrixSet {
  int64_t layer = -1;
  Param end = Param::Count;  // of a layer: none
  bool operator==(const MatrixSet&) const = default;
};
inline MatrixSet set_of(const ParamId& id) {
  return in_layer(id.param) ? MatrixSet{id.layer, Param::Count} : MatrixSet{-1, id.param};
}

class LayerBuffer {
 public:
  LayerBuffer() = default;
  // `bytes`: of a parameter, aligned; 0 if it needs none. Only what `ids` need is allocated.
  LayerBuffer(Arena& arena, Owner owner, const LayerSpec& spec, const std::vector<ParamId>& ids,
              const std::function<int64_t(Param)>& bytes);

  explicit operator bool() const { return static_cast<bool>(bytes_); }
  bool has(Param param) const { return sizes_[static_cast<size_t>(param)] > 0; }
  // Whether an end of the model takes both halves.
  bool wide(const MatrixSet& set) const;
  // A parameter's bytes [n] where its set lies in this half, 0 or 1; a wide set lies in both.
  Tensor of(Param param, size_t half) const;

 private:
  std::array<int64_t, kParams> offsets_{}, sizes_{};  // within a half
  int64_t half_ = 0;                                  // bytes that a layer takes
  Tensor bytes_;
};

}  // namespace agoq::model
