#include "parallel/gradients.h"

#include <algorithm>
#include <map>

namespace agoq::parallel {
namespace {

using model::Param;

constexpr int64_t kVectorAlignment = 64;  // numbers

// Of the largest that a gradient asks for.
StagingBytes staging_bytes(const ShardPlan& plan, const std::vector<model::ParamId>& ids, const model::LayerSpec& spec,
                           codec::Codec wire, bool wire_differs) {
  StagingBytes bytes;
  for (const model::ParamId& id : ids) {
    const model::ParamRow& row = spec[id.param];
    const int ranks = plan.group(id.param).size();
    if (row.one_dimensional() || ranks == 1) continue;
    const int64_t needed = GradientExchange::usual_staging_bytes(wire, row.rows, ranks, row.blocks());
    const bool at_once = plan.sharded(id.param, Role::Gradient);
    if (!at_once) bytes.out = std::max(bytes.out, needed);
    if (at_once || wire_differs) bytes.in = std::max(bytes.in, needed);
  }
  const int replicas = plan.replicas().size();
  for (const model::ParamId& id : ids) {
    const model::ParamRow& row = spec[id.param];
    if (row.one_dimensional() || replicas == 1) continue;
    const int64_t of_slice = GradientExchange::usual_staging_bytes(wire, plan.slice(id.param), replicas, row.blocks());
    bytes.out = std::max(bytes.out, of_slice);
    if (wire_differs) bytes.in = std::max(bytes.in, of_slice);
  }
  return bytes;
}

}  // namespace

Gradients::Gradients(Arena& arena, const model::LayerSpec& spec, const StageShard& part, const Precision& precision,
                     const Parallelism& parallelism, const ShardPlan& plan)
    : spec_(spec),
      plan_(plan),
      parallelism_(parallelism),
      stochastic_(precision.stochastic),
      ids_(part.ids),
      exchange_(arena, parallelism.grad_reduce, parallelism.grad_reduce != precision.main_grads,
                staging_bytes(plan, part.ids, spec, parallelism.grad_reduce,
                              parallelism.grad_reduce != precision.main_grads)),
      of_micro_batch_(arena, spec, plan, part.ids, parallelism.grad_reduce) {
  size_t tensors = 0;
  for (const model::ParamId& id : ids_) tensors = std::max(tensors, id.index() + 1);
  grads_.resize(tensors);
  for (const model::ParamId& id : ids_)
    if (!spec[id.param].one_dimensional()) grads_[id.index()] = allocate(arena, id, precision);
  allocate_vectors(arena);
  for (const model::ParamId& id : ids_)  // groups are opened together, before step 0
    if (of_micro_batch_.holds(id.param)) plan_.group(id.param, Groups::Channel::Gradients);
  const bool tied = !spec[Param::Head].present();
  tied_here_ = part.embedding && part.head && tied;
  head_alone_ = !part.embedding && part.head && tied;
  Grad& embedding = grads_[model::ParamId{-1, Param::Embedding}.index()];
  if (tied_here_) embedding.per_micro_batch = 2;
  // The last stage would wait for the first one's partial sum, which needs what the last stage still has to send
  // backward.
  if (tied && part.embedding != part.head) embedding.per_micro_batch = 0;
}

Gradients::Grad Gradients::allocate(Arena& arena, const model::ParamId& id, const Precision& precision) {
  const model::ParamRow& row = spec_[id.param];
  const int slices = plan_.sharded(id.param, Role::Gradient) ? 1 : plan_.group(id.param).size();
  Grad grad;
  grad.main.data =
      codec::allocate(arena, Owner::MainGradients, precision.main_grads, slices * plan_.slice(id.param), row.blocks());
  grad.main.tensor = id.tensor();
  grad.main.stochastic = precision.stochastic;
  grad.main.global_offset = row.global_offset();
  grad.rows = row.rows;
  return grad;
}

void Gradients::allocate_vectors(Arena& arena) {
  std::vector<const comm::ProcessGroup*> groups;  // in the order of forward, which is that of all their ranks
  std::map<const comm::ProcessGroup*, std::vector<model::ParamId>> by_group;
  for (const model::ParamId& id : ids_) {
    if (!spec_[id.param].one_dimensional()) continue;
    std::vector<model::ParamId>& of_group = by_group[&plan_.all(id.param)];
    if (of_group.empty()) groups.push_back(&plan_.all(id.param));
    of_group.push_back(id);
  }
  const auto padded = [](int64_t n) { return (n + kVectorAlignment - 1) / kVectorAlignment * kVectorAlignment; };
  for (const comm::ProcessGroup* group : groups) {
    int64_t numbers = 0;
    for (const model::ParamId& id : by_group[group]) numbers += padded(spec_[id.param].cols);
    const codec::Quantized all =
        codec::allocate(arena, Owner::MainGradients, codec::Codec::Fp32, numbers, codec::RowBlocks(1));
    vectors_.push_back({group, all.plain().view({numbers})});
    int64_t at = 0;
    for (const model::ParamId& id : by_group[group]) {
      const model::ParamRow& row = spec_[id.param];
      Grad& grad = grads_[id.index()];
      codec::Quantized& data = grad.main.data;
      data = all.row_range(at, at + row.cols);
      data.rows = 1;
      data.row = row.blocks();
      data.codes = data.codes.view({1, data.codes.count()});
      grad.main.tensor = id.tensor();
      grad.rows = 1;
      at += padded(row.cols);
    }
  }
}

void Gradients::begin_step(const Context& ctx, int micro_batches) {
  for (const model::ParamId& id : ids_) {
    Grad& grad = grads_[id.index()];
    grad.folded = 0;
    // A tied embedding is written whole by the head, which comes first.
    grad.main.fresh = id.param != Param::Embedding || tied_here_ || head_alone_ || of_micro_batch_.holds(id.param);
    grad.contributions = micro_batches * grad.per_micro_batch;
    grad.exchanged = false;
    if (!grad.main.fresh) codec::zero(ctx, grad.main.data);
  }
}

ops::MainGrad Gradients::acquire(const Context& ctx, const model::ParamId& id) {
  Grad& grad = grads_[id.index()];
  ops::MainGrad main = grad.main;
  if (of_micro_batch_.holds(id.param)) {
    main.data = of_micro_batch_.take(ctx, exchange_, id).row_range(0, grad.rows);
    main.fresh = id.param != Param::Embedding;  // to whose rows the tokens add
    if (!main.fresh) codec::zero(ctx, main.data);
    return main;
  }
  main.data = data(id);
  grad.main.fresh = false;
  return main;
}

void Gradients::contributed(const Context& ctx, const model::ParamId& id) {
  if (of_micro_batch_.holds(id.param))
    fold(ctx, id);
  else if (--grads_[id.index()].contributions == 0)
    exchange(ctx, id);
  exchange_.advance();
}

// Sums a micro-batch's gradient over the ranks into the slices.
void Gradients::fold(const Context& ctx, const model::ParamId& id) {
  Grad& grad = grads_[id.index()];
  SlicedGradient gradient = sliced(grad, id);
  gradient.storage = of_micro_batch_.taken(id);
  gradient.running_sum = {grad.main.data, grad.main.fresh, parallelism_.replica_index(grad.folded++)};
  grad.main.fresh = false;
  of_micro_batch_.sent(id, exchange_.start(ctx, plan_.group(id.param, Groups::Channel::Gradients), gradient));
}

void Gradients::exchange(const Context& ctx, const model::ParamId& id) {
  Grad& grad = grads_[id.index()];
  if (grad.exchanged || spec_[id.param].one_dimensional() || of_micro_batch_.holds(id.param)) return;
  grad.exchanged = true;
  exchange_.start(ctx, plan_.group(id.param), sliced(grad, id));
}

SlicedGradient Gradients::sliced(const Grad& grad, const model::ParamId& id) const {
  const auto replica = static_cast<uint32_t>(plan_.replicas().rank());
  const auto ranks = static_cast<uint32_t>(plan_.group(id.param).size());
  return {grad.main.data,          grad.rows,   plan_.slice(id.param), id.tensor(),
          grad.main.global_offset, stochastic_, 2 * replica * ranks};
}

void Gradients::end_step(const Context& ctx) {
  for (const model::ParamId& id : ids_) {
    ops::MainGrad& main = grads_[id.index()].main;
    ops::zero_if_fresh(ctx, main);
    main.fresh = false;
  }
  for (size_t i = ids_.size(); i-- > 0;) exchange(ctx, ids_[i]);
  expose(ctx, Exposed::Gradients, [&] { exchange_.finish(ctx); });
  for (const Vectors& v : vectors_) v.group->all_reduce_sum(ctx, v.numbers);
  for (const model::ParamId& id : ids_)
    if (!spec_[id.param].one_dimensional() && !plan_.sharded(id.param, Role::Sum))
      exchange_.gather_sums(ctx, plan_.group(id.param), sliced(grads_[id.index()], id));
  if (!plan_.replicas().alone()) sum_over_replicas(ctx);
}

// Each replica's sum of a slice -> the sum of those, on all of them.
void Gradients::sum_over_replicas(const Context& ctx) {
  std::vector<SlicedGradient> slices;
  for (const model::ParamId& id : ids_) {
    if (spec_[id.param].one_dimensional()) continue;
    const Grad& grad = grads_[id.index()];
    if (!of_micro_batch_.holds(id.param)) exchange_.sum_slice(ctx, plan_.group(id.param), sliced(grad, id));
    slices.push_back(slice_of_replica(id));
    exchange_.start(ctx, plan_.replicas(), slices.back());
  }
  expose(ctx, Exposed::Gradients, [&] { exchange_.finish(ctx); });
  for (const SlicedGradient& slice : slices) exchange_.gather_sums(ctx, plan_.replicas(), slice);
}

// This rank's slice, cut once more.
SlicedGradient Gradients::slice_of_replica(const model::ParamId& id) const {
  constexpr uint32_t kOfReplicas = 1 << 30;  // draws, of which those of one replica are fewer
  const Grad& grad = grads_[id.index()];
  const int64_t slice = plan_.slice(id.param);
  const model::Range rows = plan_.rows(id.param, Role::Sum);
  const int64_t begin = of_micro_batch_.holds(id.param) ? 0 : slice * plan_.group(id.param).rank();
  return {grad.main.data.row_range(begin, begin + slice),
          rows.count(),
          slice / plan_.replicas().size(),
          id.tensor(),
          grad.main.global_offset.from_row(rows.begin),
          stochastic_,
          kOfReplicas};
}

ops::GradientSum Gradients::sum(const model::ParamId& id) const {
  const Grad& grad = grads_[id.index()];
  const comm::ProcessGroup& group = plan_.group(id.param);
  if (group.alone() || !plan_.sharded(id.param, Role::Sum)) return {data(id)};
  const model::Range rows = plan_.rows(id.param, Role::Sum);
  if (of_micro_batch_.holds(id.param)) return {grad.main.data.row_range(0, rows.count())};
  if (exchange_.stores_sums() || !plan_.replicas().alone()) return {grad.main.data.row_range(rows.begin, rows.end)};
  return {grad.main.data.row_range(0, rows.count()), group.size(), plan_.slice(id.param)};
}

}  // namespace agoq::parallel
