#include "parallel/training_state.h"

#include <algorithm>
#include <vector>

#include "device/transfer.h"
#include "ops/weighted_sum.h"
#include "parallel/documents.h"

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

// The front of `whole`, as long as `part`.
Tensor front(const Tensor& whole, const Tensor& part) {
  require(whole.dtype == part.dtype && whole.count() >= part.count(), "micro-batch array {} does not fit {}",
          part.shape.text(), whole.shape.text());
  return whole.view({whole.count(), 1}).row_range(0, part.count()).view({part.count()});
}

size_t bytes_of(const MicroBatch& batch) {
  return batch.tokens.bytes() + batch.targets.bytes() + batch.loss_weights.bytes() + batch.positions.bytes() +
         batch.document_start.bytes();
}

// Any tokens, each sequence one document.
struct InventedBatch {
  explicit InventedBatch(const Job& job)
      : ints_(static_cast<size_t>(3 * job.tokens())), weights_(ints_.size() / 3, 1.0f) {
    const int64_t tokens = job.tokens();
    int32_t *ids = ints_.data(), *positions = ids + tokens, *starts = positions + tokens;
    for (int64_t t = 0; t < tokens; ++t) {
      ids[t] = static_cast<int32_t>(t * 7919 % job.model.vocab_size);
      positions[t] = static_cast<int32_t>(t % job.sequence_length);
      starts[t] = static_cast<int32_t>(t - t % job.sequence_length);
    }
    const auto tensor = [&](auto* data) { return host_tensor(data, {tokens}); };
    arrays = {tensor(ids), tensor(ids), tensor(weights_.data()), tensor(positions), tensor(starts)};
  }
  MicroBatch arrays;

 private:
  std::vector<int32_t> ints_;
  std::vector<float> weights_;
};

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
      staging_(arena, bytes_of(inputs_)),
      nll_(arena.allocate("batch", DType::F32, {job.tokens()})),
      loss_(arena.allocate("batch", DType::F64, {1})) {
  if (job_.training) {
    grads_.emplace(arena, job_.model, spec_, job.precision);
    optimizer_.emplace(arena, params_, *grads_, spec_, job.precision);
  }
  if (target == Device::Cuda) document_offsets_ = arena.allocate("batch", DType::I32, {job.tokens() + 1});
  ctx_.positions = inputs_.positions;
  ctx_.document_start = inputs_.document_start;
  ctx_.documents.sequence_length = job.sequence_length;
  ctx_.deterministic = job.deterministic;
}

void TrainingState::forward_backward(const MicroBatch& batch, uint32_t index, float scale) {
  load_whole(batch);
  ctx_.random.micro_batch = index;
  Scope scope(ctx_);
  const Tensor x = model_.embed(ctx_, params_, inputs_.tokens);
  model_.forward(ctx_, params_, x, 0, job_.model.layers, saved_);
  model_.loss_backward(ctx_, params_, x, {inputs_.targets, inputs_.loss_weights}, scale, nll_, grads());
  const Tensor dx = x;
  model_.backward(ctx_, params_, dx, 0, job_.model.layers, saved_, grads());
  model_.embed_backward(ctx_, inputs_.tokens, dx, grads());
  ops::add_weighted_sum(ctx_, nll_, inputs_.loss_weights, loss_);
}

void TrainingState::evaluate(const MicroBatch& batch) {
  load_whole(batch);
  Scope scope(ctx_);
  const Tensor x = model_.embed(ctx_, params_, inputs_.tokens);
  model_.forward(ctx_, params_, x, 0, job_.model.layers, {});
  model_.loss(ctx_, params_, x, {inputs_.targets, inputs_.loss_weights}, nll_);
  ops::add_weighted_sum(ctx_, nll_, inputs_.loss_weights, loss_);
}

double TrainingState::take_loss() {
  double sum = 0;
  download(ctx_, loss_, &sum);
  zero(ctx_, loss_);
  return sum;
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
  if (ctx.meta()) return;
  std::vector<float> on_host(static_cast<size_t>(logits.count()));
  download(ctx, logits, on_host.data());
  use(on_host);
}

void TrainingState::rehearse() {
  const InventedBatch batch(job_);
  if (job_.training) {
    grads().begin_step(ctx_);
    forward_backward(batch.arrays, 0, 1.0f);
    if (ctx_.meta()) optimizer().step(ctx_, 0.0, {});
  }
  evaluate(batch.arrays);
  logits(batch.arrays, 0, [](std::span<const float>) {});
  take_loss();
}

std::vector<std::pair<std::string, Tensor>> TrainingState::named_tensors() {
  std::vector<std::pair<std::string, Tensor>> all;
  for (const model::ParamId& id : params_.ids()) {
    const std::string name = model::logical_name(spec_, id);
    const ops::Weight& weight = params_.at(id);
    // An fp32 master stands for itself and for the bf16 that GEMMs read: that is rounded again on loading.
    all.emplace_back("weights/" + name, weight.master ? weight.master : weight.value);
    if (weight.correction) all.emplace_back("corrections/" + name, weight.correction);
    if (!job_.training) continue;
    const ops::AdamWState& state = optimizer().state(id);
    add_quantized(all, "exp_avg", name, state.m);
    add_quantized(all, "exp_avg_sq", name, state.v);
  }
  return all;
}

MicroBatch TrainingState::load(const MicroBatch& batch) {
  const MicroBatch to = {front(inputs_.tokens, batch.tokens), front(inputs_.targets, batch.targets),
                         front(inputs_.loss_weights, batch.loss_weights), front(inputs_.positions, batch.positions),
                         front(inputs_.document_start, batch.document_start)};
  if (ctx_.meta()) return to;
  staging_.load(ctx_, {{batch.tokens, to.tokens},
                       {batch.targets, to.targets},
                       {batch.loss_weights, to.loss_weights},
                       {batch.positions, to.positions},
                       {batch.document_start, to.document_start}});
  if (document_offsets_) ctx_.documents = load_documents(batch.document_start);
  return to;
}

Documents TrainingState::load_documents(const Tensor& document_start) {
  const std::vector<int32_t> offsets = document_offsets(
      {document_start.as<int32_t>(), static_cast<size_t>(document_start.count())}, job_.sequence_length);
  Documents documents{job_.sequence_length, 0, 0, document_offsets_};
  if (offsets.empty()) return documents;
  documents.count = static_cast<int64_t>(offsets.size()) - 1;
  for (size_t i = 1; i < offsets.size(); ++i)
    documents.longest = std::max<int64_t>(documents.longest, offsets[i] - offsets[i - 1]);
  const Tensor column = document_offsets_.view({document_offsets_.count(), 1});
  staging_.load(ctx_,
                {{host_tensor(offsets.data(), {documents.count + 1, 1}), column.row_range(0, documents.count + 1)}});
  return documents;
}

void TrainingState::load_whole(const MicroBatch& batch) {
  require(batch.tokens.count() == job_.tokens(), "a micro-batch has {} tokens, not {}", job_.tokens(),
          batch.tokens.count());
  load(batch);
}

}  // namespace agoq::parallel
