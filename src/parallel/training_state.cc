#include "parallel/training_state.h"

#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

#include "device/transfer.h"
#include "ops/head/weighted_sum.h"
#include "parallel/documents.h"

namespace agoq::parallel {

using Channel = Groups::Channel;

namespace {

MicroBatch allocate_inputs(Arena& arena, int64_t tokens) {
  const auto ints = [&] { return arena.allocate(Owner::Batch, DType::I32, {tokens}); };
  MicroBatch batch;
  batch.tokens = ints();
  batch.targets = ints();
  batch.loss_weights = arena.allocate(Owner::Batch, DType::F32, {tokens});
  batch.positions = ints();
  batch.document_start = ints();
  return batch;
}

std::vector<Action> actions_of(const Parallelism& p, int micro_batches) {
  return schedule(p.stage(), p.stages(), p.chunks, micro_batches);
}

model::WeightSlices weight_slices(const ShardPlan& plan) {
  const auto group = [&plan](const model::ParamRow& row) -> const comm::ProcessGroup* {
    const comm::ProcessGroup& ranks = plan.group(row.param, Channel::Weights);
    return plan.sharded(row.param, Role::Weight) && !ranks.alone() ? &ranks : nullptr;
  };
  return {group, [&plan](const model::ParamRow& row, int rank) { return plan.rows(row.param, Role::Weight, rank); }};
}

model::Holding holding(const RunSpec& run_spec, const StageShard& part, const ShardPlan& plan) {
  model::Holding holding{part.ids, run_spec.precision.master, run_spec.precision.compute};
  if (run_spec.training) holding.fp8 = run_spec.precision.fp8.weights(run_spec.model.layers);
  holding.exact_rows = [&plan](const model::ParamRow& row) { return plan.rows(row.param, Role::Master); };
  if (run_spec.training && run_spec.parallelism.sharding == Sharding::Weights) holding.slices = weight_slices(plan);
  return holding;
}

std::optional<model::DelayedScales> delayed_scales(Arena& arena, const RunSpec& run_spec, const StageShard& part) {
  const model::Fp8Layers& fp8 = run_spec.precision.fp8;
  if (!run_spec.training || !fp8.recipe || !fp8.recipe->delayed) return {};
  std::vector<int64_t> layers;
  for (const LayerRange& chunk : part.chunks)
    for (int64_t l = chunk.begin; l < chunk.end; ++l)
      if (fp8.of(l, run_spec.model.layers)) layers.push_back(l);
  return model::DelayedScales(arena, *fp8.recipe, std::move(layers));
}

// The front of `whole`, as long as `part`.
Tensor front(const Tensor& whole, const Tensor& part) {
  require(whole.dtype == part.dtype && whole.count() >= part.count(), "micro-batch array {} does not fit {}",
          part.shape.text(), whole.shape.text());
  return whole.view({whole.count(), 1}).row_range(0, part.count()).view({part.count()});
}

// At least as many tokens, which the tensor group can divide.
int64_t divisible(int64_t tokens, int64_t ranks) {
  return (tokens + ranks - 1) / ranks * ranks;
}

size_t bytes_of(const MicroBatch& batch) {
  return batch.tokens.bytes() + batch.targets.bytes() + batch.loss_weights.bytes() + batch.positions.bytes() +
         batch.document_start.bytes();
}

// Any tokens, each sequence one document.
struct InventedBatch {
  explicit InventedBatch(const RunSpec& run_spec)
      : ints_(static_cast<size_t>(3 * run_spec.tokens())), weights_(ints_.size() / 3, 1.0f) {
    const int64_t tokens = run_spec.tokens();
    int32_t *ids = ints_.data(), *positions = ids + tokens, *starts = positions + tokens;
    for (int64_t t = 0; t < tokens; ++t) {
      ids[t] = static_cast<int32_t>(t * 7919 % run_spec.model.vocab_size);
      positions[t] = static_cast<int32_t>(t % run_spec.sequence_length);
      starts[t] = static_cast<int32_t>(t - t % run_spec.sequence_length);
    }
    const auto tensor = [&](auto* data) { return host_tensor(data, {tokens}); };
    arrays = {tensor(ids), tensor(ids), tensor(weights_.data()), tensor(positions), tensor(starts)};
  }
  MicroBatch arrays;

 private:
  std::vector<int32_t> ints_;
  std::vector<float> weights_;
};

}  // namespace

int peak_in_flight(const RunSpec& run_spec) {
  return run_spec.training ? peak_in_flight(actions_of(run_spec.parallelism, run_spec.parallelism.micro_batches)) : 0;
}

TrainingState::TrainingState(Arena& arena, Device target, const RunSpec& run_spec, comm::Transport* transport)
    : run_spec_(run_spec),
      groups_(transport ? Groups(*transport, run_spec.parallelism) : Groups::planned(run_spec.parallelism)),
      spec_(run_spec_.model, run_spec.parallelism.tensor()),
      stage_shard_(run_spec_.model, spec_, run_spec.parallelism),
      ctx_(arena, target, run_spec.precision.compute),
      shard_plan_(spec_, groups_, run_spec.training ? run_spec.parallelism.sharding : Sharding::None,
                  run_spec.precision.compute),
      params_(arena, run_spec_.model, spec_, holding(run_spec_, stage_shard_, shard_plan_)),
      scales_(delayed_scales(arena, run_spec_, stage_shard_)),
      model_(arena, run_spec_.model, spec_, run_spec.sequence_length, run_spec_.recipe.recompute,
             run_spec.precision.fp8, scales()),
      saved_(arena, spec_, run_spec_.recipe, stage_shard_, run_spec.tokens(), peak_in_flight(run_spec_)),
      inputs_(allocate_inputs(arena, run_spec.tokens())),
      staging_(arena, bytes_of(inputs_)),
      nll_(arena.allocate(Owner::Batch, DType::F32, {run_spec.tokens()})),
      loss_(arena.allocate(Owner::Batch, DType::F64, {1})) {
  if (run_spec_.training) {
    if (run_spec.precision.fp8.recipe) fp8_counter_.emplace(arena);
    grads_.emplace(arena, spec_, stage_shard_, run_spec.precision, run_spec_.parallelism, shard_plan_);
    optimizer_.emplace(arena, params_, *grads_, spec_, run_spec.precision, groups_, shard_plan_,
                       all_params(run_spec_.model, spec_));
  }
  allocate_streams(arena);
  if (target == Device::Cuda) document_offsets_ = arena.allocate(Owner::Batch, DType::I32, {run_spec.tokens() + 1});
  ctx_.tensor = &groups_.tensor();
  ctx_.positions = inputs_.positions;
  ctx_.document_start = inputs_.document_start;
  ctx_.documents.sequence_length = run_spec.sequence_length;
  ctx_.deterministic = run_spec.deterministic;
  // Groups that nobody has asked for yet; they are opened together, before step 0.
  if (scales_) groups_.of(model::Reduction::DataAndTensor);
  for (int stage = 0; stage < run_spec.parallelism.stages(); ++stage)
    for (const Step step : {Step::Forward, Step::Backward}) link(step, stage);
  if (transport) groups_.open(ctx_);
}

TrainingState::~TrainingState() {
  if constexpr (kCudaBuild)
    if (ctx_.cuda() && std::uncaught_exceptions() > exceptions_) ctx_.gpu().abandon();
}

// The residual stream of the last chunk stays from its forward to its backward step, while another may arrive. Those of
// the other chunks take turns: one is computed in, one is on its way out, and one on its way in where any comes in.
void TrainingState::allocate_streams(Arena& arena) {
  const Shape shape = {spec_.own_tokens(run_spec_.tokens()), run_spec_.model.hidden_size};
  const auto stream = [&] { return arena.allocate(Owner::ResidualStream, ctx_.compute(), shape); };
  if (stage_shard_.head) {
    const int last_chunk = run_spec_.parallelism.chunks - 1;
    const int in_flight =
        peak_in_flight(actions_of(run_spec_.parallelism, run_spec_.parallelism.micro_batches), last_chunk);
    const int arriving = run_spec_.parallelism.stages() > 1 ? 1 : 0;
    for (int i = 0; i < (run_spec_.training ? in_flight + arriving : 1); ++i) outputs_.push_back({stream(), nullptr});
  }
  if (run_spec_.parallelism.stages() == 1) return;
  int in_turn = 0;
  for (int chunk = 0; chunk < run_spec_.parallelism.chunks; ++chunk)
    if (!stage_shard_.last(chunk)) in_turn = std::max(in_turn, stage_shard_.first(chunk) ? 2 : 3);
  for (int i = 0; i < in_turn; ++i) {
    forward_.add(stream());
    if (run_spec_.training) backward_.add(stream());
  }
}

void TrainingState::begin_step(int micro_batches) {
  params_.begin_step();
  grads().begin_step(ctx_, micro_batches);
}

void TrainingState::forward_backward(std::span<const MicroBatch> batches, float scale) {
  loaded_ = nullptr;
  // Packed documents may need a library's plan that no step has needed before. Making one can wait for the GPU, where
  // what has been expected ahead may wait for a stage that does the same.
  may_look_ahead_ = !document_offsets_ || std::all_of(batches.begin(), batches.end(),
                                                      [&](const MicroBatch& batch) { return whole_sequences(batch); });
  const std::vector<Action> actions = actions_of(run_spec_.parallelism, static_cast<int>(batches.size()));
  for (size_t i = 0; i < actions.size(); ++i)
    run(actions[i], i + 1 < actions.size() ? &actions[i + 1] : nullptr,
        batches[static_cast<size_t>(actions[i].micro_batch)], scale);
}

void TrainingState::forward_backward(const MicroBatch& batch, int index, float scale) {
  require(run_spec_.parallelism.stages() == 1, "a pipeline takes all micro-batches of a step together");
  loaded_ = nullptr;
  for (const Step step : {Step::Forward, Step::Backward}) run({step, 0, index}, nullptr, batch, scale);
}

void TrainingState::run(const Action& action, const Action* next, const MicroBatch& batch, float scale) {
  if (loaded_ != batch.tokens.data) load_whole(batch);
  loaded_ = batch.tokens.data;
  ctx_.random.micro_batch = run_spec_.parallelism.global_index(action.micro_batch);
  Scope scope(ctx_);
  if (action.step == Step::Forward)
    forward(action, next);
  else
    backward(action, next, scale);
}

void TrainingState::forward(const Action& action, const Action* next) {
  const int chunk = action.chunk;
  const LayerRange& layers = stage_shard_.chunks[static_cast<size_t>(chunk)];
  PipelineBuffer& out = receives(action) ? input(action) : buffer(action);
  const Tensor& x = out.free(ctx_);
  look_ahead(action, next);
  if (stage_shard_.first(chunk)) model_.embed(ctx_, params_, inputs_.tokens, x);
  model_.forward(ctx_, params_, x, layers.begin, layers.end, saved_.take(chunk, action.micro_batch), first_layer(next));
  if (!stage_shard_.last(chunk)) out.send(ctx_, link(Step::Forward, run_spec_.parallelism.stage()), next_stage(), x);
}

void TrainingState::backward(const Action& action, const Action* next, float scale) {
  const int chunk = action.chunk;
  const LayerRange& layers = stage_shard_.chunks[static_cast<size_t>(chunk)];
  PipelineBuffer& out = receives(action) ? input(action) : buffer(action);
  const Tensor& dx = out.x;
  look_ahead(action, next);
  if (stage_shard_.last(chunk)) {
    model_.loss_backward(ctx_, params_, dx, {inputs_.targets, inputs_.loss_weights}, scale, nll_, grads());
    ops::add_weighted_sum(ctx_, nll_, inputs_.loss_weights, loss_);
  }
  model_.backward(ctx_, params_, dx, layers.begin, layers.end, saved_.find(chunk, action.micro_batch), grads(),
                  first_layer(next));
  saved_.release(chunk, action.micro_batch);
  if (stage_shard_.first(chunk))
    model_.embed_backward(ctx_, inputs_.tokens, dx, grads());
  else
    out.send(ctx_, link(Step::Backward, run_spec_.parallelism.stage()), previous_stage(), dx);
}

// The layer whose weights an action reads first; -1: none, or an end of the model's.
int64_t TrainingState::first_layer(const Action* action) const {
  if (!action) return -1;
  const LayerRange& layers = stage_shard_.chunks[static_cast<size_t>(action->chunk)];
  if (action->step == Step::Forward) return stage_shard_.first(action->chunk) ? -1 : layers.begin;
  return stage_shard_.last(action->chunk) ? -1 : layers.end - 1;
}

bool TrainingState::receives(const Action& action) const {
  return action.step == Step::Forward ? !stage_shard_.first(action.chunk) : !stage_shard_.last(action.chunk);
}

void TrainingState::expect(const Action& action) {
  const bool forward = action.step == Step::Forward;
  expected_.to = &buffer(action);
  const int from = forward ? previous_stage() : next_stage();
  const comm::Message message{from, expected_.to->free(ctx_)};
  expected_.arrival = link(action.step, from).start(ctx_, {}, {&message, 1});
}

PipelineBuffer& TrainingState::input(const Action& action) {
  if (!expected_.to) expect(action);
  expose(ctx_, Exposed::Pipeline, [&] { expected_.arrival->wait(); });
  expected_.arrival.reset();
  return *std::exchange(expected_.to, nullptr);
}

// What the next action reads arrives while this one computes. Where both are of the same kind this one's output goes
// first: a channel does one after the other, and the next input may depend on that output.
void TrainingState::look_ahead(const Action& action, const Action* next) {
  if (may_look_ahead_ && next && next->step != action.step && receives(*next)) expect(*next);
}

// Each is one document.
bool TrainingState::whole_sequences(const MicroBatch& batch) const {
  const auto tokens = static_cast<size_t>(batch.document_start.count());
  const size_t sequences = tokens / static_cast<size_t>(run_spec_.sequence_length);
  return document_offsets({batch.document_start.as<int32_t>(), tokens}, run_spec_.sequence_length).size() ==
         sequences + 1;
}

Tensor TrainingState::forward_only(const Context& ctx, const Tensor& tokens) {
  Tensor x;
  for (int chunk = 0; chunk < static_cast<int>(stage_shard_.chunks.size()); ++chunk) {
    const LayerRange& layers = stage_shard_.chunks[static_cast<size_t>(chunk)];
    PipelineBuffer& out = stage_shard_.last(chunk) ? outputs_.front() : forward_.next();
    x = out.free(ctx).row_range(0, spec_.own_tokens(tokens.count()));
    if (stage_shard_.first(chunk))
      model_.embed(ctx, params_, tokens, x);
    else
      link(Step::Forward, previous_stage()).receive(ctx, previous_stage(), x);
    model_.forward(ctx, params_, x, layers.begin, layers.end, {});
    if (!stage_shard_.last(chunk)) out.send(ctx, link(Step::Forward, run_spec_.parallelism.stage()), next_stage(), x);
  }
  return x;
}

UpdateResult TrainingState::end_step() {
  UpdateResult result = optimizer().result(ctx_);
  if (scales_) scales_->end_step(ctx_, groups_.of(model::Reduction::DataAndTensor), !result.skipped);
  return result;
}

void TrainingState::reset_scales() {
  if (scales_) scales_->end_step(ctx_, {}, false);
}

void TrainingState::evaluate(const MicroBatch& batch) {
  load_whole(batch);
  Scope scope(ctx_);
  const Tensor x = forward_only(ctx_, inputs_.tokens);
  if (!stage_shard_.head) return;
  model_.loss(ctx_, params_, x, {inputs_.targets, inputs_.loss_weights}, nll_);
  ops::add_weighted_sum(ctx_, nll_, inputs_.loss_weights, loss_);
}

double TrainingState::take_loss() {
  double own = 0;
  download(ctx_, loss_, &own);
  zero(ctx_, loss_);
  if (groups_.tensor().rank() != 0) own = 0;  // the ranks of a tensor group have it alike
  const std::vector<double> all = groups_.world().values(own);
  return std::accumulate(all.begin(), all.end(), 0.0);
}

std::optional<ops::Fp8Counts> TrainingState::take_fp8_counts() {
  if (!ctx_.fp8_counter) return std::nullopt;
  ops::Fp8Counts all{};
  for (const ops::Fp8Counts& of_rank : groups_.world().values(ctx_.fp8_counter->take(ctx_)))
    for (size_t i = 0; i < all.size(); ++i) all[i] += of_rank[i];
  return all;
}

void TrainingState::logits(const MicroBatch& batch, int64_t row,
                           const std::function<void(std::span<const float>)>& use) {
  const MicroBatch loaded = padded(load(batch));
  Context ctx = ctx_;
  ctx.positions = loaded.positions;
  ctx.document_start = loaded.document_start;
  Scope scope(ctx);
  const Tensor x = forward_only(ctx, loaded.tokens);
  const Tensor logits =
      stage_shard_.head ? model_.logits(ctx, params_, x, row) : ctx.empty(DType::F32, {1, run_spec_.model.vocab_size});
  share_from_last_stage(ctx, logits);
  if (ctx.meta()) return;
  std::vector<float> on_host(static_cast<size_t>(logits.count()));
  download(ctx, logits, on_host.data());
  use(on_host);
}

void TrainingState::share_from_last_stage(const Context& ctx, const Tensor& x) const {
  const int last = run_spec_.parallelism.stages() - 1;
  if (!stage_shard_.head) return groups_.pipeline(Channel::Forward).receive(ctx, last, x);
  std::vector<comm::Message> sends;
  for (int stage = 0; stage < last; ++stage) sends.push_back({stage, x});
  groups_.pipeline(Channel::Forward).exchange(ctx, sends, {});
}

// Nothing is received ahead: to load a kernel may wait for all that the GPU does, and that would be for this step.
void TrainingState::dry_step(const MicroBatch& batch, int micro_batches) {
  begin_step(micro_batches);
  loaded_ = nullptr;
  const std::vector<Action> actions = actions_of(run_spec_.parallelism, micro_batches);
  for (size_t i = 0; i < actions.size(); ++i)
    run(actions[i], ctx_.meta() && i + 1 < actions.size() ? &actions[i + 1] : nullptr, batch, 1.0f);
}

// Steps that count, and steps that know their scales, have kernels of their own.
void TrainingState::finish_dry_steps(const MicroBatch& batch) {
  if (fp8_counter_) {
    grads().end_step(ctx_);
    count_fp8(true);
    if (scales_) scales_->assume_known();
    dry_step(batch);
    take_fp8_counts();
    count_fp8(false);
  }
  grads().end_step(ctx_);  // or what is still to arrive would damage the gradients of step 0
  reset_scales();
}

void TrainingState::dry_run() {
  const InventedBatch batch(run_spec_);
  if (run_spec_.training) {
    dry_step(batch.arrays);
    ctx_.meta() ? end_dry_step() : finish_dry_steps(batch.arrays);
  }
  evaluate(batch.arrays);
  logits(batch.arrays, 0, [](std::span<const float>) {});
  take_loss();
}

Traffic TrainingState::whole_dry_step(const MicroBatch& batch, int micro_batches) {
  const Traffic before = groups_.sent();
  dry_step(batch, micro_batches);
  end_dry_step();
  return groups_.sent() - before;
}

void TrainingState::end_dry_step() {
  optimizer().step(ctx_, 0.0, {});
  end_step();
}

// Every micro-batch passes layers and stages. With ZeRO-2 its gradients travel, too; with ZeRO-3 also weights, but for
// those that are still here: how many, the schedule decides, and repeats itself.
Traffic TrainingState::dry_traffic() {
  if (!run_spec_.training) return {};
  require(ctx_.meta(), "traffic is planned on Meta");
  const InventedBatch batch(run_spec_);
  const Parallelism& p = run_spec_.parallelism;
  if (p.sharding < Sharding::Gradients) {
    const Traffic one = whole_dry_step(batch.arrays, 1);
    return one + Traffic{one.tensor, 0, one.pipeline} * static_cast<uint64_t>(p.micro_batches - 1);
  }
  const int period = p.stages(), settled = 2 * period * p.chunks;
  if (p.micro_batches <= settled + period) return whole_dry_step(batch.arrays, p.micro_batches);
  const int first = settled + (p.micro_batches - settled) % period;
  const Traffic some = whole_dry_step(batch.arrays, first), more = whole_dry_step(batch.arrays, first + period);
  return some + (more - some) * static_cast<uint64_t>((p.micro_batches - first) / period);
}

// What an action computes in, and sends. The last chunk's backward step finds there what its forward step has left.
PipelineBuffer& TrainingState::buffer(const Action& action) {
  if (stage_shard_.last(action.chunk)) return outputs_[static_cast<size_t>(action.micro_batch) % outputs_.size()];
  return (action.step == Step::Forward ? forward_ : backward_).next();
}

const comm::ProcessGroup& TrainingState::link(Step step, int from) const {
  const int stages = run_spec_.parallelism.stages();
  const bool interleaved = run_spec_.parallelism.chunks > 1;
  if (step == Step::Forward)
    return groups_.pipeline(interleaved && from == stages - 1 ? Channel::ForwardAround : Channel::Forward);
  return groups_.pipeline(interleaved && from == 0 ? Channel::BackwardAround : Channel::Backward);
}

int TrainingState::next_stage() const {
  return (run_spec_.parallelism.stage() + 1) % run_spec_.parallelism.stages();
}
int TrainingState::previous_stage() const {
  return (run_spec_.parallelism.stage() + run_spec_.parallelism.stages() - 1) % run_spec_.parallelism.stages();
}

std::vector<StoredTensor> TrainingState::named_tensors() {
  params_.wait_for_all();
  params_.begin_step();  // who asked may change them
  std::vector<StoredTensor> all;
  for (const model::ParamId& id : params_.ids())
    add_stored(all, model::logical_name(spec_, id), spec_[id.param], held(id));
  if (scales_) add_stored(all, *scales_, groups_.of(model::Reduction::DataAndTensor).rank() > 0);
  return all;
}

HeldParameter TrainingState::held(const model::ParamId& id) {
  HeldParameter held;
  held.weight = params_.at(id);
  held.rows = params_.rows(id);
  held.exact = params_.exact(id);
  held.saved = {0, spec_[id.param].rows};
  if (!run_spec_.training) return held;
  held.updated = shard_plan_.rows(id.param, Role::Moments);
  held.saved = shard_plan_.answers_for(id.param, Role::Moments) ? held.updated : model::Range{0, 0};
  held.state = optimizer().state(id);
  return held;
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

// With what lies behind the batch, up to a number of tokens that the tensor group can divide. No token of the batch
// attends to those behind it.
MicroBatch TrainingState::padded(const MicroBatch& loaded) const {
  const int64_t tokens = divisible(loaded.tokens.count(), spec_.shard.size);
  const auto longer = [&](const Tensor& whole) {
    return whole.view({whole.count(), 1}).row_range(0, tokens).view({tokens});
  };
  return {longer(inputs_.tokens), longer(inputs_.targets), longer(inputs_.loss_weights), longer(inputs_.positions),
          longer(inputs_.document_start)};
}

// What padded() adds is a document of its own.
Documents TrainingState::load_documents(const Tensor& document_start) {
  std::vector<int32_t> offsets = document_offsets(
      {document_start.as<int32_t>(), static_cast<size_t>(document_start.count())}, run_spec_.sequence_length);
  Documents documents{run_spec_.sequence_length, 0, 0, document_offsets_};
  if (offsets.empty()) return documents;
  const int64_t tokens = divisible(document_start.count(), spec_.shard.size);
  if (tokens > document_start.count()) offsets.push_back(static_cast<int32_t>(tokens));
  documents.count = static_cast<int64_t>(offsets.size()) - 1;
  for (size_t i = 1; i < offsets.size(); ++i)
    documents.longest = std::max<int64_t>(documents.longest, offsets[i] - offsets[i - 1]);
  const Tensor column = document_offsets_.view({document_offsets_.count(), 1});
  staging_.load(ctx_,
                {{host_tensor(offsets.data(), {documents.count + 1, 1}), column.row_range(0, documents.count + 1)}});
  return documents;
}

void TrainingState::load_whole(const MicroBatch& batch) {
  require(batch.tokens.count() == run_spec_.tokens(), "a micro-batch has {} tokens, not {}", run_spec_.tokens(),
          batch.tokens.count());
  load(batch);
}

}  // namespace agoq::parallel
