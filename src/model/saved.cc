#include "model/saved.h"

namespace agoq::model {
namespace {

codec::Codec plain_codec(DType dtype) {
  return dtype == DType::BF16 ? codec::Codec::Bf16 : codec::Codec::Fp32;
}

}  // namespace

Saved::Saved(Arena& arena, const LayerSpec& spec, const Recipe& recipe, int64_t layer, int64_t tokens)
    : tokens_(tokens) {
  for (const KeptRow& row : spec.kept) {
    const codec::Codec codec = recipe.at(layer, row.kept);
    if (codec == codec::Codec::None) continue;
    slots_[static_cast<size_t>(row.kept)] =
        codec::allocate(arena, fmt::format("saved {}", row.name), codec, tokens, {row.cols, row.segment});
  }
}

Saved::Saved(const Context& ctx, const LayerSpec& spec, int64_t tokens) : tokens_(tokens) {
  for (const KeptRow& row : spec.kept) {
    if (!row.present() || row.group == KeptGroup::GemmInput) continue;
    const codec::Codec codec = row.group == KeptGroup::Stat ? codec::Codec::Fp32 : plain_codec(ctx.compute());
    slots_[static_cast<size_t>(row.kept)] = codec::push(ctx, codec, tokens, {row.cols, row.segment});
  }
}

Tensor Saved::stat(Kept k) const {
  if (!kept(k)) return {};
  const Tensor plain = (*this)[k].plain();
  if (k == Kept::Rstd1 || k == Kept::Rstd2) return plain.view({tokens_});
  if (k == Kept::Lse) return plain.view({plain.cols(), tokens_});
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
  const codec::Quantized& slot = (*this)[k];
  return slot.codec == plain_codec(ctx.compute()) ? slot.plain() : copy(ctx, k);
}

Tensor Saved::copy(const Context& ctx, Kept k) const {
  const codec::Quantized& slot = (*this)[k];
  const Tensor x = ctx.empty({slot.rows, slot.row.cols});
  codec::decode(ctx, slot, x);
  return x;
}

}  // namespace agoq::model
