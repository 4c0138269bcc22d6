#include "bench/bench.h"

#include <algorithm>

#include "bench/measure.h"
#include "bench/one_layer.h"
#include "device/stopwatch.h"
#include "device/transfer.h"
#include "ops/linear/fp8_support.h"

namespace agoq::bench {
namespace {

constexpr size_t kMostCopies = 64;

// What one set of operands holds, and what a run pushes beside it.
struct Need {
  size_t owned = 0, stack = 0;
};

void run_in_scope(const PreparedOp& work, const Context& ctx) {
  Scope scope(ctx);
  work.run(ctx);
}

// `use` is called with a workbench on Meta.
template <class Use>
Need need_of(const parallel::RunSpec& run_spec, Device target, Use&& use) {
  Arena arena(Device::Meta, 0);
  Workbench bench(arena, target, run_spec);
  use(bench);
  return {arena.owned_bytes(), arena.peak_stack_bytes()};
}

// Copies bytes with all threads of a CPU.
void copy_all(const Context& ctx, const Tensor& from, const Tensor& to) {
  if (ctx.cuda()) return copy(ctx, from, to);
  constexpr int64_t kPieces = 64;
  const Tensor a = from.view({kPieces, from.count() / kPieces}), b = to.view(a.shape);
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < kPieces; ++i) copy(ctx, a.row_range(i, i + 1), b.row_range(i, i + 1));
}

// One layer on a stream of its own.
class LayerRun {
 public:
  LayerRun(const Workbench& bench, const parallel::RunSpec& run_spec)
      : layer_(bench, run_spec),
        saved_{model::SavedTensors(bench.arena(), layer_.spec, layer_.run_spec.recipe, 0, run_spec.tokens())},
        first_(bench.numbers({run_spec.tokens(), run_spec.model.hidden_size})),
        x_(bench.zeros(first_.dtype, first_.shape)) {}

  // `mark` is called before and after each of the three.
  void run(const Context& ctx, const std::function<void()>& mark) {
    layer_.params.begin_step();
    copy(ctx, first_, x_);
    mark();
    layer_.model.forward(ctx, layer_.params, x_, 0, 1, saved_);
    mark();
    copy(ctx, first_, x_);  // now it stands for the gradient
    mark();
    layer_.model.backward(ctx, layer_.params, x_, 0, 1, saved_, layer_.grads);
    mark();
    layer_.optimizer.step(ctx, 1e-6, {});
    mark();
  }
  static constexpr size_t kMarks = 5;

 private:
  OneLayer layer_;
  std::vector<model::SavedTensors> saved_;
  Tensor first_, x_;
};

}  // namespace

double floor_of(const Measured& op, const Ceilings& ceilings) {
  const double moving = op.bytes > 0 ? op.bytes / ceilings.bytes_per_second : 0;
  return moving + (op.flops > 0 ? op.flops / ceilings.flops : 0);
}

Bench::Bench(Device device, parallel::RunSpec run_spec, size_t working_set)
    : memory_(device), run_spec_(std::move(run_spec)), working_set_(working_set) {
  ops::require_fp8(memory_, run_spec_.precision.fp8.recipe);
}

Measured Bench::measure(const Op& op, double seconds) {
  const Need need =
      need_of(run_spec_, memory_.device(), [&](Workbench& bench) { run_in_scope(op.prepare(bench), bench.ctx()); });
  const size_t copies = std::clamp<size_t>(working_set_ / (need.owned + need.stack), 1, kMostCopies);
  Arena& arena = memory_.reserve(copies * (need.owned + need.stack));
  Workbench bench(arena, memory_.device(), run_spec_);
  std::vector<PreparedOp> works;
  for (size_t copy = 0; copy < copies; ++copy) works.push_back(op.prepare(bench));
  const double median = median_seconds(bench.ctx(), seconds, [&](int64_t run) {
    const size_t turn = static_cast<size_t>(run) % copies;
    Scope scope(arena);
    // Temporaries lie elsewhere in each turn, too.
    arena.push(DType::U8, {static_cast<int64_t>(turn * need.stack)});
    works[turn].run(bench.ctx());
  });
  return {op.name, op.part, median, works.front().bytes, works.front().flops};
}

std::vector<Measured> Bench::measure(const std::vector<Op>& ops, double seconds) {
  std::vector<Measured> all;
  for (const Op& op : ops) all.push_back(measure(op, seconds));
  return all;
}

LayerTimes Bench::measure_layer(double seconds) {
  const auto nothing = [] {};
  const Need need = need_of(run_spec_, memory_.device(),
                            [&](Workbench& bench) { LayerRun(bench, run_spec_).run(bench.ctx(), nothing); });
  Workbench bench(memory_.reserve(need.owned + need.stack), memory_.device(), run_spec_);
  LayerRun layer(bench, run_spec_);
  first_run(bench.ctx(), [&] { layer.run(bench.ctx(), nothing); });
  Stopwatch watch(bench.ctx());
  const int runs = bench.ctx().cuda() ? 8 : 1;  // before the host waits, so that a GPU has always work to do
  std::vector<double> forward, backward, optimizer;
  for (double total = 0; total < seconds || forward.size() < 3;) {
    for (int i = 0; i < runs; ++i) layer.run(bench.ctx(), [&] { watch.mark(); });
    const std::vector<double> times = watch.take();
    for (size_t i = 0; i < times.size(); i += LayerRun::kMarks) {
      forward.push_back(times[i]), backward.push_back(times[i + 2]), optimizer.push_back(times[i + 3]);
      total += times[i] + times[i + 2] + times[i + 3];
    }
  }
  return {median(forward), median(backward), median(optimizer)};
}

double Bench::copy_bandwidth(double seconds) {
  const auto bytes = static_cast<int64_t>(2 * working_set_);
  Arena& arena = memory_.reserve(2 * static_cast<size_t>(bytes));
  const Context ctx(arena, memory_.device(), DType::F32);
  const Tensor from = arena.allocate(Owner::Operands, DType::U8, {bytes}),
               to = arena.allocate(Owner::Operands, DType::U8, {bytes});
  zero(ctx, from);
  return 2.0 * static_cast<double>(bytes) / median_seconds(ctx, seconds, [&](int64_t) { copy_all(ctx, from, to); });
}

double Bench::sustained_flops(double seconds) {
  const std::vector<Op> ops = ceiling_ops(run_spec_);
  const Need need = need_of(run_spec_, memory_.device(), [&](Workbench& bench) {
    for (const Op& op : ops) run_in_scope(op.prepare(bench), bench.ctx());
  });
  Workbench bench(memory_.reserve(need.owned + need.stack), memory_.device(), run_spec_);
  std::vector<PreparedOp> works;
  double flops = 0;
  for (const Op& op : ops) flops += works.emplace_back(op.prepare(bench)).flops;
  const auto round = [&] {
    for (const PreparedOp& work : works) run_in_scope(work, bench.ctx());
  };
  first_run(bench.ctx(), round);
  Stopwatch watch(bench.ctx());
  double total = 0, rounds = 0;
  for (int64_t at_once = 1; total < seconds || rounds == 0; at_once = std::min<int64_t>(2 * at_once, 16)) {
    watch.mark();
    for (int64_t i = 0; i < at_once; ++i) round();
    watch.mark();
    total += watch.take().front();
    rounds += static_cast<double>(at_once);
  }
  return rounds * flops / total;
}

}  // namespace agoq::bench
