#include "model/saved.h"

#include <algorithm>

#include "ops/sequence_parallel.h"

namespace agoq::model {
namespace {

codec::Codec plain_codec(DType dtype) {
  return dtype == DType::BF16 ? codec::Codec::Bf16 : codec::Codec::Fp32;
}

// As it is stored, if that is the compute type; otherwise decoded into a temporary.
Tensor in_compute_type(const Context& ctx, const codec::Quantized& kept) {
  if (kept.codec == plain_codec(ctx.compute())) return kept.plain();
  const Tensor x = ctx.empty({kept.rows, kept.row.cols});
  codec::decode(ctx, kept, x);
  return x;
}

}  // namespace

Saved::Saved(Arena& arena, const LayerSpec& spec, const Recipe& recipe, int64_t layer, int64_t tokens) {
  for (const KeptRow& row : spec.kept) {
    const codec::Codec codec = recipe.at(layer, row.kept);
    if (codec == codec::Codec::None) continue;
    slots_[static_cast<size_t>(row.kept)] = codec::allocate(arena, fmt::format("saved {}", row.name), codec,
                                                            spec.kept_rows(row, tokens), {row.cols, row.segment});
  }
}

std::vector<Saved> Saved::sharing(Arena& arena, const LayerSpec& spec, const Recipe& recipe,
                                  std::span<const int64_t> layers, int64_t tokens) {
  if (layers.size() == 1) return {Saved(arena, spec, recipe, layers[0], tokens)};
  std::vector<Saved> all(layers.size());
  for (const KeptRow& row : spec.kept) {
    if (!row.present()) continue;
    const codec::RowBlocks blocks(row.cols, row.segment);
    const int64_t rows = spec.kept_rows(row, tokens);
    int64_t most = 0;
    for (const int64_t layer : layers)
      most = std::max(most, codec::bytes_in_view(recipe.at(layer, row.kept), rows, blocks));
    if (most == 0) continue;
    const Tensor bytes = arena.allocate(fmt::format("saved {}", row.name), DType::U8, {most});
    for (size_t i = 0; i < layers.size(); ++i)
      all[i].slots_[static_cast<size_t>(row.kept)] =
          codec::view_in(bytes, recipe.at(layers[i], row.kept), rows, blocks);
  }
  return all;
}

Saved::Saved(const Context& ctx, const LayerSpec& spec, int64_t tokens) {
  for (const KeptRow& row : spec.kept) {
    if (!row.present() || row.group == KeptGroup::GemmInput) continue;
    const codec::Codec codec = row.group == KeptGroup::Stat ? codec::Codec::Fp32 : plain_codec(ctx.compute());
    slots_[static_cast<size_t>(row.kept)] =
        codec::push(ctx, codec, spec.kept_rows(row, tokens), {row.cols, row.segment});
  }
}

Tensor Saved::stat(Kept k) const {
  if (!kept(k)) return {};
  const Tensor plain = (*this)[k].plain();
  if (k == Kept::Rstd1 || k == Kept::Rstd2) return plain.view({plain.count()});
  if (k == Kept::Lse) return plain.view({plain.cols(), plain.shape[0]});
  return plain;
}

Tensor Saved::room(const Context& ctx, Kept k, int64_t rows, int64_t cols) const {
  const codec::Quantized& slot = (*this)[k];
  return slot.codec == plain_codec(ctx.compute()) ? slot.plain() : ctx.empty({rows, cols});
}

void Saved::keep(const Context& ctx, Kept k, const Tensor& x) const {
  const codec::Quantized& slot = (*this)[k];
  const bool written_there = slot.codec == plain_codec(ctx.compute()) && slot.codes.data == x.data;
  if (slot.kept() && !written_there) codec::encode(ctx, x, slot);
}

Tensor Saved::load(const Context& ctx, Kept k) const {
  return in_compute_type(ctx, (*this)[k]);
}

Tensor Saved::gather(const Context& ctx, Kept k) const {
  return in_compute_type(ctx, ops::gather_tokens(ctx, (*this)[k]));
}

Tensor Saved::copy(const Context& ctx, Kept k) const {
  const codec::Quantized& slot = (*this)[k];
  const Tensor x = ctx.empty({slot.rows, slot.row.cols});
  codec::decode(ctx, slot, x);
  return x;
}

}  // namespace agoq::model
