#include "model/saved_tensors.h"

#include <algorithm>

#include "ops/sequence_parallel.h"

namespace agoq::model {
namespace {

// As it is stored, if that is the compute type; otherwise decoded into a temporary.
Tensor in_compute_type(const Context& ctx, const codec::Quantized& kept) {
  if (kept.codec == codec::plain_codec(ctx.compute())) return kept.plain();
  const Tensor x = ctx.empty({kept.rows, kept.row.cols});
  codec::decode(ctx, kept, x);
  return x;
}

}  // namespace

Owner owner_of(const SavedTensorSpec& row) {
  return Owner::saved(row.name);
}

SavedTensors::SavedTensors(Arena& arena, const LayerSpec& spec, const Recipe& recipe, int64_t layer, int64_t tokens) {
  for (const SavedTensorSpec& row : spec.kept) {
    const codec::Codec codec = recipe.at(layer, row.kept);
    if (codec == codec::Codec::None) continue;
    slots_[static_cast<size_t>(row.kept)] =
        codec::allocate(arena, owner_of(row), codec, spec.saved_rows(row, tokens), {row.cols, row.segment});
  }
}

std::vector<SavedTensors> SavedTensors::sharing(Arena& arena, const LayerSpec& spec, const Recipe& recipe,
                                                std::span<const int64_t> layers, int64_t tokens) {
  if (layers.size() == 1) return {SavedTensors(arena, spec, recipe, layers[0], tokens)};
  std::vector<SavedTensors> all(layers.size());
  for (const SavedTensorSpec& row : spec.kept) {
    if (!row.present()) continue;
    const codec::RowBlocks blocks(row.cols, row.segment);
    const int64_t rows = spec.saved_rows(row, tokens);
    std::vector<codec::Codec> codecs;
    for (const int64_t layer : layers) codecs.push_back(recipe.at(layer, row.kept));
    const int64_t shared = shared_bytes(spec, row, codecs, tokens);
    if (shared == 0) continue;
    const Tensor bytes = arena.allocate(owner_of(row), DType::U8, {shared});
    for (size_t i = 0; i < layers.size(); ++i)
      all[i].slots_[static_cast<size_t>(row.kept)] = codec::view_in(bytes, codecs[i], rows, blocks);
  }
  return all;
}

int64_t SavedTensors::shared_bytes(const LayerSpec& spec, const SavedTensorSpec& row,
                                   std::span<const codec::Codec> codecs, int64_t tokens) {
  int64_t most = 0;
  for (const codec::Codec codec : codecs)
    most = std::max(most, codec::bytes_in_view(codec, spec.saved_rows(row, tokens), {row.cols, row.segment}));
  return most;
}

SavedTensors::SavedTensors(const Context& ctx, const LayerSpec& spec, int64_t tokens) {
  for (const SavedTensorSpec& row : spec.kept) {
    if (!row.present() || row.group == SavedTensorGroup::GemmInput) continue;
    const codec::Codec codec =
        row.group == SavedTensorGroup::Stat ? codec::Codec::Fp32 : codec::plain_codec(ctx.compute());
    slots_[static_cast<size_t>(row.kept)] =
        codec::push(ctx, codec, spec.saved_rows(row, tokens), {row.cols, row.segment});
  }
}

Tensor SavedTensors::stat(SavedTensor k) const {
  if (!kept(k)) return {};
  const Tensor plain = (*this)[k].plain();
  if (k == SavedTensor::Rstd1 || k == SavedTensor::Rstd2) return plain.view({plain.count()});
  if (k == SavedTensor::Lse) return plain.view({plain.cols(), plain.shape[0]});
  return plain;
}

Tensor SavedTensors::out(const Context& ctx, SavedTensor k, int64_t rows, int64_t cols) const {
  const codec::Quantized& slot = (*this)[k];
  return slot.codec == codec::plain_codec(ctx.compute()) ? slot.plain() : ctx.empty({rows, cols});
}

void SavedTensors::keep(const Context& ctx, SavedTensor k, const Tensor& x) const {
  const codec::Quantized& slot = (*this)[k];
  const bool written_there = slot.codec == codec::plain_codec(ctx.compute()) && slot.codes.data == x.data;
  if (slot.kept() && !written_there) codec::encode(ctx, x, slot);
}

Tensor SavedTensors::load(const Context& ctx, SavedTensor k) const {
  return in_compute_type(ctx, (*this)[k]);
}

Tensor SavedTensors::gather(const Context& ctx, SavedTensor k) const {
  return in_compute_type(ctx, ops::all_gather_tokens(ctx, (*this)[k]));
}

Tensor SavedTensors::copy(const Context& ctx, SavedTensor k) const {
  const codec::Quantized& slot = (*this)[k];
  const Tensor x = ctx.empty({slot.rows, slot.row.cols});
  codec::decode(ctx, slot, x);
  return x;
}

}  // namespace agoq::model
