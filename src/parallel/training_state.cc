#include "parallel/training_state.h"

#include <cstring>

namespace agoq::parallel {
namespace {

MicroBatch allocate_inputs(Arena& arena, int64_t tokens) {
  const auto ints = [&] { return arena.allocate("batch", DType::I32, {tokens}); };
  MicroBatch batch;
  batch.tokens = ints();
  batch.targets = ints();
  batch.loss_weights = arena.allocate("batch", DType::F32, {tokens});
  batch.positions = ints();
  batch.document_start = ints();
  return batch;
}

std::vector<model::Saved> allocate_saved(Arena& arena, const model::LayerSpec& spec, const Job& job) {
  std::vector<model::Saved> saved;
  if (!job.training) return saved;
  for (int64_t layer = 0; layer < job.model.layers; ++layer)
    saved.emplace_back(arena, spec, job.recipe, layer, job.tokens());
  return saved;
}

// Copies to the front of a longer array; returns the part that was filled.
Tensor copy_to(const Tensor& to, const Tensor& from) {
  require(to.dtype == from.dtype && to.count() >= from.count(), "micro-batch array {} does not fit {}",
          from.shape.text(), to.shape.text());
  if (to.device != Device::Meta) std::memcpy(to.data, from.data, from.bytes());
  return to.view({to.count(), 1}).row_range(0, from.count()).view({from.count()});
}

void add_quantized(std::vector<std::pair<std::string, Tensor>>& all, const std::string& kind, const std::string& name,
                   const codec::Quantized& q) {
  all.emplace_back(kind + ".codes/" + name, q.codes);
  if (q.scales) all.emplace_back(kind + ".scales/" + name, q.scales);
}

}  // namespace

TrainingState::TrainingState(Arena& arena, Device target, const Job& job)
    : job_(job),
      spec_(job_.model),
      ctx_(arena, target, job.precision.compute),
      params_(arena, job_.model, spec_, job.precision.master, job.precision.compute),
      model_(arena, job_.model, spec_, job.sequence_length),
      saved_(allocate_saved(arena, spec_, job_)),
      inputs_(allocate_inputs(arena, job.tokens())),
      nll_(arena.allocate("batch", DType::F32, {job.tokens()})) {
  if (job_.training) {
    grads_.emplace(arena, job_.model, spec_, job.precision);
    optimizer_.emplace(arena, params_, *grads_, spec_, job.precision);
  }
  ctx_.positions = inputs_.positions;
  ctx_.document_start = inputs_.document_start;
}

double TrainingState::forward_backward(const MicroBatch& batch, uint32_t index, float scale) {
  load_whole(batch);
  ctx_.random.micro_batch = index;
  Scope scope(ctx_);
  const Tensor x = model_.embed(ctx_, params_, inputs_.tokens);
  model_.forward(ctx_, params_, x, 0, job_.model.layers, saved_);
  model_.loss_backward(ctx_, params_, x, {inputs_.targets, inputs_.loss_weights}, scale, nll_, grads());
  const Tensor dx = x;
  model_.backward(ctx_, params_, dx, 0, job_.model.layers, saved_, grads());
  model_.embed_backward(ctx_, inputs_.tokens, dx, grads());
  return weighted_nll();
}

double TrainingState::evaluate(const MicroBatch& batch) {
  load_whole(batch);
  Scope scope(ctx_);
  const Tensor x = model_.embed(ctx_, params_, inputs_.tokens);
  model_.forward(ctx_, params_, x, 0, job_.model.layers, {});
  model_.loss(ctx_, params_, x, {inputs_.targets, inputs_.loss_weights}, nll_);
  return weighted_nll();
}

void TrainingState::logits(const MicroBatch& batch, int64_t row,
                           const std::function<void(std::span<const float>)>& use) {
  const MicroBatch loaded = load(batch);
  Context ctx = ctx_;
  ctx.positions = loaded.positions;
  ctx.document_start = loaded.document_start;
  Scope scope(ctx);
  const Tensor x = model_.embed(ctx, params_, loaded.tokens);
  model_.forward(ctx, params_, x, 0, job_.model.layers, {});
  const Tensor logits = model_.logits(ctx, params_, x.row_range(row, row + 1));
  if (!ctx.meta()) use({logits.as<float>(), static_cast<size_t>(logits.count())});
}

void TrainingState::rehearse() {
  require(ctx_.meta(), "a rehearsal is for the Meta device; it would train on nothing");
  if (job_.training) {
    grads().zero(ctx_);
    forward_backward(inputs_, 0, 1.0f);
    optimizer().step(ctx_, 0.0, {});
  }
  evaluate(inputs_);
  logits(inputs_, 0, {});
}

std::vector<std::pair<std::string, Tensor>> TrainingState::named_tensors() {
  std::vector<std::pair<std::string, Tensor>> all;
  for (const model::ParamId& id : params_.ids()) {
    const std::string name = model::logical_name(spec_, id);
    const ops::Weight& weight = params_.at(id);
    all.emplace_back("weights/" + name, weight.value);
    if (weight.correction) all.emplace_back("corrections/" + name, weight.correction);
    if (weight.master) all.emplace_back("master/" + name, weight.master);
    if (!job_.training) continue;
    const ops::AdamWState& state = optimizer().state(id);
    add_quantized(all, "exp_avg", name, state.m);
    add_quantized(all, "exp_avg_sq", name, state.v);
  }
  return all;
}

MicroBatch TrainingState::load(const MicroBatch& batch) {
  return {copy_to(inputs_.tokens, batch.tokens), copy_to(inputs_.targets, batch.targets),
          copy_to(inputs_.loss_weights, batch.loss_weights), copy_to(inputs_.positions, batch.positions),
          copy_to(inputs_.document_start, batch.document_start)};
}

void TrainingState::load_whole(const MicroBatch& batch) {
  require(batch.tokens.count() == job_.tokens(), "a micro-batch has {} tokens, not {}", job_.tokens(),
          batch.tokens.count());
  load(batch);
}

double TrainingState::weighted_nll() const {
  if (ctx_.meta()) return 0;
  const float* nll = nll_.as<float>();
  const float* weight = inputs_.loss_weights.as<float>();
  double sum = 0;
  for (int64_t t = 0; t < nll_.count(); ++t) sum += static_cast<double>(weight[t]) * nll[t];
  return sum;
}

}  // namespace agoq::parallel
