#include "model/model.h"

#include "comm/process_group.h"
#include "device/transfer.h"
#include "model/norm.h"
#include "ops/head/embedding.h"
#include "ops/linear/linear.h"
#include "ops/sequence_parallel.h"

namespace agoq::model {
namespace {

Tensor make_rope_table(Arena& arena, const ModelConfig& config, int64_t positions) {
  const Tensor table = arena.allocate(Owner::RopeTable, DType::F32, {positions, config.heads.dim});
  if (arena.device() == Device::Meta) return table;
  std::vector<float> values(static_cast<size_t>(table.count()));
  ops::fill_rope_table(config.rope, host_tensor(values.data(), table.shape));
  upload(Context(arena, arena.device(), DType::F32), values.data(), table);
  return table;
}

const SavedTensors& nothing_kept() {
  static const SavedTensors nothing;
  return nothing;
}

// Columns of a tensor of one row.
Tensor columns(const Tensor& row, const Range& range) {
  return row.view({row.cols(), 1}).row_range(range.begin, range.end).view({1, range.count()});
}

// Each rank's part of one row, of which the last may be larger than the first, to all ranks.
void gather_columns(const Context& ctx, const TensorShard& shard, const Tensor& row) {
  std::vector<comm::Message> sends, receives;
  for (int rank = 0; rank < shard.size; ++rank) {
    if (rank == shard.rank) continue;
    sends.push_back({rank, columns(row, part_of(row.cols(), shard))});
    receives.push_back({rank, columns(row, part_of(row.cols(), {shard.size, rank}))});
  }
  ctx.tensor->exchange(ctx, sends, receives);
}

}  // namespace

Model::Model(Arena& arena, const ModelConfig& config, const LayerSpec& spec, int64_t positions, Recompute recompute,
             const Fp8Layers& fp8, const DelayedScales* scales)
    : config_(config),
      spec_(spec),
      recompute_(recompute),
      fp8_(fp8),
      scales_(scales),
      layer_(config, spec, make_rope_table(arena, config, positions)) {}

void Model::embed(const Context& ctx, const Parameters& params, const Tensor& tokens, const Tensor& x) const {
  ops::embedding_into(ctx, tokens, params.whole(ctx, {-1, Param::Embedding}), x, spec_.vocabulary.begin);
}

void Model::forward(const Context& ctx, const Parameters& params, const Tensor& x, int64_t begin, int64_t end,
                    const std::vector<SavedTensors>& saved, int64_t then) const {
  for (int64_t l = begin; l < end; ++l) {
    const ProfilerRange range("layer forward", l);
    Scope scope(ctx);
    const bool training = !saved.empty();
    const Context layer_ctx = training ? of_layer(ctx, l) : ctx;
    const LayerWeights w = layer_weights(layer_ctx, params, l);
    prefetch(ctx, params, l + 1 < end ? l + 1 : then);
    layer_.forward(layer_ctx, x, w, training ? saved[static_cast<size_t>(l - begin)] : nothing_kept());
  }
}

void Model::backward(const Context& ctx, const Parameters& params, const Tensor& dx, int64_t begin, int64_t end,
                     const std::vector<SavedTensors>& saved, GradientSource& grads, int64_t then) const {
  Scope all_layers(ctx);
  StreamGradient d{dx, {}};
  const ops::Operand dx_rows = stream_rows(ctx, dx);
  for (int64_t l = end - 1; l >= begin; --l) {
    const ProfilerRange range("layer backward", l);
    Scope scope(ctx);
    const SavedTensors& kept = saved[static_cast<size_t>(l - begin)];
    const Context layer_ctx = of_layer(ctx, l);
    const LayerWeights w = layer_weights(layer_ctx, params, l);
    prefetch(ctx, params, l > begin ? l - 1 : then);
    const bool by_rows = layer_ctx.fp8 && dx_rows.data;
    if (by_rows && !d.dx_rows.data) ops::to_fp8_into(layer_ctx, dx, ops::counted(layer_ctx, dx_rows, ops::Fp8Role::Dy));
    d.dx_rows = by_rows ? dx_rows : ops::Operand{};
    if (recompute_ == Recompute::Full)
      layer_.backward_from_x1(layer_ctx, d, w, kept, layer_gradients(ctx, l, grads));
    else
      layer_.backward(layer_ctx, d, w, kept, layer_gradients(ctx, l, grads));
    for (const ParamRow& row : spec_.params)
      if (in_layer(row.param) && row.present()) grads.contributed(ctx, {l, row.param});
  }
}

void Model::loss(const Context& ctx, const Parameters& params, const Tensor& x, const ops::Targets& targets,
                 const Tensor& nll) const {
  Scope scope(ctx);
  const Tensor norm = params.acquire(ctx, {-1, Param::FinalNorm});
  const Tensor n = ops::all_gather_tokens(ctx, Norm(config_).forward(ctx, x, norm));  // [T, H]
  ops::head_loss(ctx, n, params.acquire(ctx, params.head_id()), of_vocabulary(targets), nll);
}

void Model::loss_backward(const Context& ctx, const Parameters& params, const Tensor& x, const ops::Targets& targets,
                          float scale, const Tensor& nll, GradientSource& grads) const {
  Scope scope(ctx);
  const Tensor norm = params.acquire(ctx, {-1, Param::FinalNorm});
  const Tensor rstd = ctx.empty(DType::F32, {x.rows()});
  const codec::Quantized kept_x =
      codec::push(ctx, codec::plain_codec(ctx.compute()), x.rows(), codec::RowBlocks(x.cols()));
  const Tensor n = ops::all_gather_tokens(ctx, Norm(config_).forward(ctx, x, norm, kept_x, rstd));  // [T, H]
  const Tensor head = params.acquire(ctx, params.head_id());
  const Tensor partial_sum =
      ops::head_loss_backward(ctx, n, head, of_vocabulary(targets), scale, nll, grads.acquire(ctx, params.head_id()));
  const Tensor dn = ops::reduce_scatter_tokens(ctx, partial_sum);  // [T / ranks, H]
  const ops::MainGrad d_norm = norm ? grads.acquire(ctx, {-1, Param::FinalNorm}) : ops::MainGrad{};
  Norm(config_).backward(ctx, dn, kept_x, rstd, norm, {}, x, d_norm);
  grads.contributed(ctx, params.head_id());
}

void Model::embed_backward(const Context& ctx, const Tensor& tokens, const Tensor& dx, GradientSource& grads) const {
  ops::embedding_backward(ctx, tokens, dx, grads.acquire(ctx, {-1, Param::Embedding}), spec_.vocabulary.begin);
  grads.contributed(ctx, {-1, Param::Embedding});
}

Tensor Model::logits(const Context& ctx, const Parameters& params, const Tensor& x, int64_t token) const {
  const Tensor out = ctx.empty(DType::F32, {1, config_.vocab_size});
  Scope scope(ctx);
  const Tensor n =
      Norm(config_).forward(ctx, ops::row_of_token(ctx, x, token), params.acquire(ctx, {-1, Param::FinalNorm}));
  const Tensor head = params.acquire(ctx, params.head_id());
  const Range own = spec_.vocabulary;
  ops::gemm(ctx, n, head, columns(out, own));
  if (!spec_.shard.whole()) gather_columns(ctx, spec_.shard, out);
  return out;
}

ops::Targets Model::of_vocabulary(ops::Targets targets) const {
  targets.first = spec_.vocabulary.begin;
  targets.vocabulary = config_.vocab_size;
  return targets;
}

Context Model::of_layer(const Context& ctx, int64_t layer) const {
  Context own = ctx;
  own.fp8 = fp8_.of(layer, config_.layers);
  return own;
}

// Where layers write the gradient of the residual stream as their products read it; none if those read numbers.
ops::Operand Model::stream_rows(const Context& ctx, const Tensor& dx) const {
  if (!fp8_.recipe || config_.post_norm) return {};
  Context own = ctx;
  own.fp8 = &*fp8_.recipe;
  own.fp8_counter = nullptr;  // it is written again and again, and counted then
  return ops::fp8_gradient_input(own, dx.rows(), dx.cols());
}

void Model::prefetch(const Context& ctx, const Parameters& params, int64_t layer) {
  if (layer >= 0) params.prefetch(ctx, layer);
}

LayerWeights Model::layer_weights(const Context& ctx, const Parameters& params, int64_t layer) const {
  LayerWeights w = params.acquire(ctx, layer);
  if (scales_)
    for (const Param p : kFp8Weights) w.set_sites(p, scales_->of({layer, p}));
  return w;
}

LayerGradients Model::layer_gradients(const Context& ctx, int64_t layer, GradientSource& grads) const {
  LayerGradients all;
  for (const ParamRow& row : spec_.params)
    if (in_layer(row.param) && row.present()) {
      ops::MainGrad& grad = all[static_cast<size_t>(row.param)];
      grad = grads.acquire(ctx, {layer, row.param});
      if (scales_) grad.sites = scales_->of({layer, row.param});
    }
  return all;
}

}  // namespace agoq::model
