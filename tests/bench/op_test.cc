// What ops are said to move and to multiply, against closed forms written here by hand.
#include "bench/op.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>
#include <set>
#include <tuple>

#include "bench/bench.h"

namespace agoq::bench {
namespace {

constexpr int64_t kTokens = 32, kHidden = 256, kFfn = 1024, kQueries = 4, kKeys = 2, kDim = 64, kVocab = 100;

parallel::RunSpec run_spec_of(DType compute = DType::BF16, model::Policy policy = model::Policy::Agoq,
                              model::Recompute recompute = model::Recompute::None) {
  parallel::RunSpec run_spec;
  run_spec.model.vocab_size = kVocab;
  run_spec.model.hidden_size = kHidden;
  run_spec.model.ffn_size = kFfn;
  run_spec.model.layers = 3;
  run_spec.model.heads = {kQueries, kKeys, kDim};
  run_spec.model.rope.dim = kDim;
  run_spec.model.max_positions = kTokens;
  run_spec.recipe = model::make_recipe(run_spec.model, model::LayerSpec(run_spec.model), policy, recompute, "");
  run_spec.precision.compute = compute;
  run_spec.sequence_length = kTokens;
  return run_spec;
}

ops::Fp8Recipe fp8_recipe(ops::Granularity activations, ops::Granularity weights, ops::Granularity dw,
                          DType gradients = DType::E4M3) {
  ops::Fp8Recipe recipe{
      {DType::E4M3, activations}, {DType::E4M3, weights}, {gradients, activations}, {gradients, dw}, {DType::E4M3, dw}};
  recipe.forward = ops::Accumulation::Fast;
  return recipe;
}

// Those of --fp8-recipe rowwise (with --fp8-format hybrid, too), tensorwise and blockwise, and one whose dW is in bf16.
std::vector<ops::Fp8Recipe> fp8_recipes() {
  using enum ops::Granularity;
  std::vector<ops::Fp8Recipe> all = {fp8_recipe(Row, Row, Tensor), fp8_recipe(Row, Row, Tensor, DType::E5M2),
                                     fp8_recipe(Tensor, Tensor, Tensor),
                                     fp8_recipe(Block1x128, Block128x128, Block1x128)};
  all.back().forward = ops::Accumulation::Fp32;
  all.push_back(fp8_recipe(Tensor, Tensor, None, DType::BF16));
  all.back().dy.dtype = DType::E4M3, all.back().dw_x.dtype = DType::BF16;
  return all;
}

parallel::RunSpec with_fp8(parallel::RunSpec run_spec, const ops::Fp8Recipe& recipe) {
  run_spec.precision.fp8.recipe = recipe;
  return run_spec;
}

// Ops by name, with what they move and multiply; nothing is computed.
std::map<std::string, Measured> works(const parallel::RunSpec& run_spec, const std::vector<Op>& ops) {
  std::map<std::string, Measured> all;
  for (const Op& op : ops) {
    Arena arena(Device::Meta, 0);
    Workbench bench(arena, Device::Cpu, run_spec);
    const PreparedOp work = op.prepare(bench);
    work.run(bench.ctx());
    all[op.name] = {op.name, op.part, 0, work.bytes, work.flops};
  }
  return all;
}

// Codes of `bits`, and a bf16 scale for every 128.
double coded(double numbers, double bits) {
  return numbers * bits / 8 + numbers / 128 * 2;
}

struct Costs {
  double bytes = 0, flops = 0;
};

// Bytes and FLOPs of every op, from the shapes: `e` bytes an element, policy agoq, gradients in int8.
std::map<std::string, Costs> expected_layer_costs(double e) {
  constexpr double kQueryCols = kQueries * kDim, kQkvCols = (kQueries + 2 * kKeys) * kDim;
  constexpr double kQkv = kQkvCols * kHidden, kOut = kQueryCols * kHidden, kGateUp = 2.0 * kFfn * kHidden,
                   kDown = 1.0 * kFfn * kHidden;
  // Of a gradient or moment: a scale for 128 numbers, in rows of Wo for 32, an eighth of the row.
  constexpr double kScales = (kQkv + kGateUp + kDown) / 128 + kOut / 32;
  constexpr double kMatrices = kQkv + kOut + kGateUp + kDown, kNorms = 2 * kHidden;
  const double stream = e * kTokens * kHidden, row = e * kHidden, rstd = 4.0 * kTokens;
  const double x = coded(kTokens * kHidden, 4), gate_up = e * kTokens * 2 * kFfn, kept = coded(kTokens * 2 * kFfn, 4);
  const double rope = 2 * e * kTokens * (kQueries + kKeys) * kDim + 4.0 * kTokens * kDim;
  const double grads = kMatrices + 2 * kScales + 4 * kNorms;
  std::map<std::string, Costs> costs = {
      {"swiglu", {1.5 * gate_up + kept}},
      {"swiglu_backward", {2 * gate_up + kept}},
      {"rope", {rope}},
      {"rope_backward", {rope}},
      // Token t has t + 1 keys; a score and its share of the output are 2 FLOPs each, for every element of a head.
      {"attention", {0, 4 * kQueryCols * kTokens * (kTokens + 1) / 2}},
      {"attention_backward", {0, 8 * kQueryCols * kTokens * (kTokens + 1) / 2}},
      {"squared_norms", {grads}},
      // Weights and corrections of 2 bytes, two moments; what changes is read and written.
      {"adamw", {grads + 2 * (2 + 2) * (kMatrices + kNorms) + 2 * 2 * (kMatrices + 2 * kScales + 4 * kNorms)}},
      {"accumulate gate_up", {e * kGateUp + 2 * coded(kGateUp, 8)}},
      {"accumulate gate_up, fresh", {e * kGateUp + coded(kGateUp, 8)}},
  };
  for (const std::string norm : {"x1", "x2"}) {
    costs["rms_norm " + norm] = {2 * stream + row + rstd + x};
    costs["recompute_rms_norm " + norm] = {stream + row + rstd + x};
    costs["rms_norm_backward " + norm] = {3 * stream + row + rstd + x + 2 * 4.0 * kHidden};
  }
  for (const auto& [name, weights] :
       std::map<std::string, double>{{"qkv", kQkv}, {"out", kOut}, {"gate_up", kGateUp}, {"down", kDown}})
    for (const char* product : {"linear ", "linear_dx ", "accumulate_dw ", "dw "})
      costs[product + name] = {0, 2 * kTokens * weights};
  return costs;
}

// The same with --fp8-format e4m3 --fp8-recipe rowwise: a scale for a row of what norms and SwiGLU write, one for the
// whole of what is transposed.
std::map<std::string, Costs> expected_fp8_layer_costs(double e) {
  constexpr double kQueryCols = kQueries * kDim, kQkvCols = (kQueries + 2 * kKeys) * kDim, kGateUp = 2.0 * kFfn;
  const auto rows = [](double rows, double cols) { return rows * cols + 4 * rows; };
  const auto whole = [](double rows, double cols) { return rows * cols + 4; };
  const double stream = e * kTokens * kHidden, row = e * kHidden, rstd = 4.0 * kTokens;
  const double x = coded(kTokens * kHidden, 4), kept = coded(kTokens * kGateUp, 4);
  std::map<std::string, Costs> costs = expected_layer_costs(e);
  for (const std::string norm : {"x1", "x2"}) {
    costs["rms_norm " + norm] = {stream + rows(kTokens, kHidden) + row + rstd + x};
    costs["recompute_rms_norm " + norm] = {whole(kHidden, kTokens) + row + rstd + x};
    costs["rms_norm_backward " + norm].bytes += rows(kTokens, kHidden);
  }
  costs["swiglu"] = {e * kTokens * kGateUp + rows(kTokens, kFfn) + kept};
  costs["swiglu_backward"] = {e * kTokens * kFfn + kept + rows(kTokens, kGateUp) + whole(kFfn, kTokens)};
  costs["rope_backward"] = {e * kTokens * kQkvCols + 4.0 * kTokens * kDim + rows(kTokens, kQkvCols)};
  // Attention is in bf16, so that o becomes an operand in a pass of its own.
  costs["to_fp8 x out"] = {e * kTokens * kQueryCols + rows(kTokens, kQueryCols)};
  costs["to_fp8_transposed x out"] = {e * kTokens * kQueryCols + whole(kQueryCols, kTokens)};
  for (const auto& [name, out, in] : {std::tuple{"qkv", kQkvCols, 1.0 * kHidden},
                                      {"out", 1.0 * kHidden, kQueryCols},
                                      {"gate_up", kGateUp, 1.0 * kHidden},
                                      {"down", 1.0 * kHidden, 1.0 * kFfn}}) {
    costs[std::string("to_fp8 w ") + name] = {e * out * in + rows(out, in) + 4 * in};  // and the scales of wᵀ
    costs[std::string("to_fp8_transposed w ") + name] = {e * out * in + rows(in, out)};
    costs[std::string("to_fp8_transposed dy ") + name] = {rows(kTokens, out) + whole(out, kTokens)};
  }
  return costs;
}

std::map<std::string, Costs> expected_end_costs(double e) {
  const double stream = e * kTokens * kHidden, ids = 4.0 * kTokens;
  const double touched = 1 - std::pow(1 - 1.0 / kVocab, kTokens);  // rows that random tokens meet
  return {{"embedding", {ids + 2 * stream}},
          {"embedding_backward", {ids + stream + 2 * touched * coded(kVocab * kHidden, 8)}},
          {"head_loss_backward", {0, 3 * 2.0 * kTokens * kHidden * kVocab}}};
}

std::map<std::string, Costs> expected_codec_costs(double e) {
  constexpr double kNumbers = kTokens * kHidden;
  std::map<std::string, Costs> costs;
  for (const auto& [codec, bits] : std::map<std::string, double>{{"fp8", 8},
                                                                 {"int8", 8},
                                                                 {"fp6", 6},
                                                                 {"fp5", 5},
                                                                 {"fp4", 4},
                                                                 {"nf4", 4},
                                                                 {"int4", 4},
                                                                 {"dyn8", 8},
                                                                 {"dyn8_unsigned", 8},
                                                                 {"bf16", 16}})
    for (const std::string& op : {"encode " + codec, "encode " + codec + ", stochastic", "decode " + codec})
      costs[op] = {e * kNumbers + (codec == "bf16" ? 2 * kNumbers : coded(kNumbers, bits))};
  return costs;
}

void expect_costs(const std::map<std::string, Measured>& ops, const std::map<std::string, Costs>& expected) {
  for (const auto& [name, op] : ops) {
    ASSERT_TRUE(expected.contains(name)) << name;
    EXPECT_DOUBLE_EQ(op.bytes, expected.at(name).bytes) << name;
    EXPECT_DOUBLE_EQ(op.flops, expected.at(name).flops) << name;
  }
  EXPECT_EQ(ops.size(), expected.size());
}

TEST(Ops, MoveAndMultiplyWhatTheirShapesSay) {
  for (const DType compute : {DType::F32, DType::BF16}) {
    const parallel::RunSpec run_spec = run_spec_of(compute);
    const auto e = static_cast<double>(size_of(compute));
    expect_costs(works(run_spec, layer_ops(run_spec)), expected_layer_costs(e));
    expect_costs(works(run_spec, end_ops(run_spec)), expected_end_costs(e));
    expect_costs(works(run_spec, codec_ops(run_spec)), expected_codec_costs(e));
    const parallel::RunSpec fp8 = with_fp8(run_spec, fp8_recipes().front());
    expect_costs(works(fp8, layer_ops(fp8)), expected_fp8_layer_costs(e));
    std::map<std::string, Costs> ends = expected_end_costs(e);
    ends["to_fp8 dx"] = {e * kTokens * kHidden + kTokens * kHidden + 4.0 * kTokens};
    expect_costs(works(fp8, end_ops(fp8)), ends);
  }
}

TEST(Ops, OptimizerMovesThirteenBytesOfAParameter) {
  const auto ops = works(run_spec_of(), layer_ops(run_spec_of()));
  const double parameters = kHidden * (kQueries + 2 * kKeys) * kDim + kHidden * kQueries * kDim + 3 * kHidden * kFfn;
  EXPECT_NEAR(ops.at("squared_norms").bytes / parameters, 1 + 2.0 / 128, 0.05);
  EXPECT_NEAR(ops.at("adamw").bytes / parameters, 2 * (2 + 2) + 1 + 2 * 2 + 5 * 2.0 / 128, 0.1);
}

// Forward and backward of a layer multiply what the model is said to multiply for a layer.
TEST(Ops, MultiplyWhatTheModelDoes) {
  std::vector<parallel::RunSpec> run_specs;
  for (const model::Policy policy : {model::Policy::Agoq, model::Policy::Paper, model::Policy::Bf16})
    run_specs.push_back(run_spec_of(DType::BF16, policy));
  for (const ops::Fp8Recipe& recipe : fp8_recipes()) run_specs.push_back(with_fp8(run_spec_of(), recipe));
  for (parallel::RunSpec& run_spec : run_specs) {
    double flops = 0, ceiling = 0;
    for (const auto& [name, op] : works(run_spec, layer_ops(run_spec)))
      if (op.part != OpPhase::Alone) flops += op.flops;
    run_spec.model.layers = 1;
    const double with = run_spec.model.flops_per_token(kTokens);
    run_spec.model.layers = 0;
    const double layer = kTokens * (with - run_spec.model.flops_per_token(kTokens));
    EXPECT_NEAR(flops, layer, 1e-9 * layer);
    for (const Op& op : ceiling_ops(run_spec)) ceiling += works(run_spec, {op}).begin()->second.flops;
    EXPECT_NEAR(ceiling, layer, 1e-9 * layer);
  }
}

// Each of the three products of a matrix is there in four ways.
TEST(Ops, Fp8ProductsMultiplyWhatTheLayerDoes) {
  const parallel::RunSpec run_spec = run_spec_of();
  double flops = 0, layer = 0;
  for (const auto& [name, op] : works(run_spec, fp8_ops(run_spec))) flops += op.flops;
  for (const auto& [name, op] : works(run_spec, layer_ops(run_spec)))
    if (op.part != OpPhase::Alone && !name.starts_with("attention")) layer += op.flops;
  EXPECT_DOUBLE_EQ(flops, 4 * layer);
}

// How often an op of this name begins in a part.
int count(const std::vector<Op>& ops, OpPhase part, const std::string& name) {
  return static_cast<int>(std::count_if(ops.begin(), ops.end(),
                                        [&](const Op& op) { return op.part == part && op.name.starts_with(name); }));
}

TEST(Ops, RecomputationRunsForwardAgain) {
  for (const auto& [recompute, attentions, products] :
       {std::tuple{model::Recompute::None, 0, 0}, std::tuple{model::Recompute::Selective, 1, 0},
        std::tuple{model::Recompute::Full, 1, 4}}) {
    const std::vector<Op> ops = layer_ops(run_spec_of(DType::BF16, model::Policy::Agoq, recompute));
    EXPECT_EQ(count(ops, OpPhase::Forward, "attention"), 1);
    EXPECT_EQ(count(ops, OpPhase::Backward, "attention") + count(ops, OpPhase::Backward, "recompute attention"),
              attentions + 1)
        << "its gradient, too";
    EXPECT_EQ(count(ops, OpPhase::Forward, "linear "), 4);
    EXPECT_EQ(count(ops, OpPhase::Backward, "linear "), products);
  }
}

TEST(Ops, OfALayerWithItsNormsElsewhereAreRefused) {
  parallel::RunSpec run_spec = run_spec_of();
  run_spec.model.post_norm = true;
  EXPECT_THROW(layer_ops(run_spec), Error);
}

TEST(Ops, ForwardKeepsOnlyWhatTheRecipeKeeps) {
  const parallel::RunSpec run_spec = run_spec_of(DType::BF16, model::Policy::Agoq, model::Recompute::Full);
  const std::vector<Op> all = layer_ops(run_spec);
  std::vector<Op> forward;
  for (const Op& op : all)
    if (op.part == OpPhase::Forward) forward.push_back(op);
  EXPECT_EQ(works(run_spec, forward).at("swiglu").bytes, 1.5 * 2.0 * kTokens * 2 * kFfn);
}

std::vector<Op> all_ops(const parallel::RunSpec& run_spec) {
  std::vector<Op> all;
  for (const std::vector<Op>& ops : {layer_ops(run_spec), end_ops(run_spec), codec_ops(run_spec)})
    all.insert(all.end(), ops.begin(), ops.end());
  return all;
}

// In exactly the memory that running on Meta says.
void run_on_the_cpu(const Op& op, const parallel::RunSpec& run_spec) {
  Arena planned(Device::Meta, 0);
  Workbench dry(planned, Device::Cpu, run_spec);
  const auto run = [&](Workbench& bench) {
    const PreparedOp work = op.prepare(bench);
    Scope scope(bench.ctx());
    work.run(bench.ctx());
  };
  run(dry);
  Arena arena(Device::Cpu, planned.total_bytes());
  Workbench bench(arena, Device::Cpu, run_spec);
  EXPECT_NO_THROW(run(bench)) << op.name;
  EXPECT_EQ(arena.owned_bytes(), planned.owned_bytes()) << op.name;
  EXPECT_EQ(arena.peak_stack_bytes(), planned.peak_stack_bytes()) << op.name;
}

void expect_runs_under_names_of_their_own(const std::vector<Op>& ops, const parallel::RunSpec& run_spec) {
  std::set<std::pair<OpPhase, std::string>> names;
  for (const Op& op : ops) {
    EXPECT_TRUE(names.emplace(op.part, op.name).second) << op.name << " is there twice";
    run_on_the_cpu(op, run_spec);
  }
}

TEST(Ops, AllRunOnTheCpuUnderNamesOfTheirOwn) {
  for (const DType compute : {DType::F32, DType::BF16})
    for (const model::Policy policy : {model::Policy::Agoq, model::Policy::Paper, model::Policy::Bf16})
      for (const model::Recompute recompute : {model::Recompute::None, model::Recompute::Full}) {
        const parallel::RunSpec run_spec = run_spec_of(compute, policy, recompute);
        expect_runs_under_names_of_their_own(all_ops(run_spec), run_spec);
      }
}

TEST(Ops, AllRunOnTheCpuWithProductsOf8BitFloats) {
  std::vector<parallel::RunSpec> run_specs;
  for (const ops::Fp8Recipe& recipe : fp8_recipes()) run_specs.push_back(with_fp8(run_spec_of(), recipe));
  for (const auto& [policy, recompute] : {std::pair{model::Policy::Bf16, model::Recompute::None},
                                          {model::Policy::Paper, model::Recompute::None},
                                          {model::Policy::Agoq, model::Recompute::Full}})
    run_specs.push_back(with_fp8(run_spec_of(DType::BF16, policy, recompute), fp8_recipes().front()));
  for (const parallel::RunSpec& run_spec : run_specs) {
    expect_runs_under_names_of_their_own(layer_ops(run_spec), run_spec);
    expect_runs_under_names_of_their_own(end_ops(run_spec), run_spec);
    for (const Op& op : ceiling_ops(run_spec)) run_on_the_cpu(op, run_spec);
  }
}

TEST(Ops, OfTheCeilingAreNamedByWhatTheyMultiply) {
  EXPECT_EQ(ceiling_name(run_spec_of()), "matrix products and attention of a layer");
  EXPECT_EQ(ceiling_name(with_fp8(run_spec_of(), fp8_recipes().front())),
            "products in 8-bit floats and attention of a layer");
}

// They don't depend on what is kept.
TEST(Ops, ThoseOf8BitFloatsRunOnTheCpu) {
  const parallel::RunSpec run_spec = run_spec_of(DType::BF16);
  expect_runs_under_names_of_their_own(fp8_ops(run_spec), run_spec);
}

// Runs `measure` and returns the seconds that it took.
template <class Measure>
double seconds_of(Measure&& measure) {
  const auto begin = std::chrono::steady_clock::now();
  measure();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// Of three or more runs two took at least the median, and all lie within the time of the measurement.
void expect_median_within(double median, double elapsed, const std::string& name) {
  EXPECT_GT(median, 0) << name;
  EXPECT_LE(2 * median, elapsed) << name;
}

TEST(Ops, AreTimed) {
  constexpr size_t kSmall = 1 << 16;  // bytes; one set of operands an op
  const parallel::RunSpec run_spec = run_spec_of(DType::F32);
  Bench bench(Device::Cpu, run_spec, kSmall);
  for (const Op& op : all_ops(run_spec)) {
    Measured measured;
    const double elapsed = seconds_of([&] { measured = bench.measure(op, 1e-4); });
    expect_median_within(measured.seconds, elapsed, op.name);
    const Measured expected = works(run_spec, {op}).at(op.name);
    EXPECT_EQ(measured.name, op.name);
    EXPECT_EQ(measured.part, op.part);
    EXPECT_EQ(measured.bytes, expected.bytes) << op.name;
    EXPECT_EQ(measured.flops, expected.flops) << op.name;
  }
  LayerTimes layer;
  const double elapsed = seconds_of([&] { layer = bench.measure_layer(1e-3); });
  for (const auto& [name, median] : {std::pair{"forward", layer.forward}, {"backward", layer.backward}})
    expect_median_within(median, elapsed, name);
  expect_median_within(layer.optimizer, elapsed, "optimizer");
}

// No rate is below that of the whole measurement.
TEST(Ops, CeilingsAreThoseOfWorkThatWasDone) {
  constexpr size_t kSmall = 1 << 20;
  const parallel::RunSpec run_spec = run_spec_of(DType::F32);
  Bench bench(Device::Cpu, run_spec, kSmall);
  double bandwidth = 0, rate = 0, flops = 0;
  const double copying = seconds_of([&] { bandwidth = bench.copy_bandwidth(1e-3); });
  const double multiplying = seconds_of([&] { rate = bench.sustained_flops(1e-3); });
  for (const Op& op : ceiling_ops(run_spec)) flops += works(run_spec, {op}).begin()->second.flops;
  EXPECT_TRUE(std::isfinite(bandwidth) && bandwidth > 1e8) << bandwidth;
  EXPECT_TRUE(std::isfinite(rate) && rate > 1e6) << rate;
  EXPECT_GE(bandwidth * copying, 2 * 4.0 * kSmall) << "two copies, each reads and writes twice the working set";
  EXPECT_GE(rate * multiplying, flops);
}

TEST(Ops, FloorIsTheTimeOfMovingAndOfMultiplying) {
  const Ceilings ceilings{.bytes_per_second = 100, .flops = 1000};
  const auto floor = [&](double bytes, double flops) {
    return floor_of({"op", OpPhase::Alone, 0, bytes, flops}, ceilings);
  };
  EXPECT_DOUBLE_EQ(floor(50, 0), 0.5);
  EXPECT_DOUBLE_EQ(floor(0, 4000), 4);
  EXPECT_DOUBLE_EQ(floor(50, 4000), 4.5);
}

}  // namespace
}  // namespace agoq::bench
