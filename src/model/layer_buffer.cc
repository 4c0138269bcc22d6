#include "model/layer_buffer.h"

#include <algorithm>

namespace agoq::model {

LayerBuffer::LayerBuffer(Arena& arena, Owner owner, const LayerSpec& spec, const std::vector<ParamId>& ids,
                         const std::function<int64_t(Param)>& bytes) {
  for (const ParamRow& row : spec.params) {
    const auto i = static_cast<size_t>(row.param);
    if (!row.present()) continue;
    sizes_[i] = bytes(row.param);
    if (!in_layer(row.param)) continue;
    offsets_[i] = half_;
    half_ += sizes_[i];
  }
  int64_t most = 0;
  for (const ParamId& id : ids)
    most = std::max(most, in_layer(id.param) ? 2 * half_ : sizes_[static_cast<size_t>(id.param)]);
  if (most > 0) bytes_ = arena.allocate(owner, DType::U8, {most});
}

bool LayerBuffer::wide(const MatrixSet& set) const {
  return set.end != Param::Count && sizes_[static_cast<size_t>(set.end)] > half_;
}

Tensor LayerBuffer::of(Param param, size_t half) const {
  const auto i = static_cast<size_t>(param);
  const MatrixSet set = in_layer(param) ? MatrixSet{0} : MatrixSet{-1, param};
  const int64_t begin = (wide(set) ? 0 : static_cast<int64_t>(half) * half_) + offsets_[i];
  return bytes_.view({bytes_.count(), 1}).row_range(begin, begin + sizes_[i]).view({sizes_[i]});
}

}  // namespace agoq::model
