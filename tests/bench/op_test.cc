// What ops are said to move and to multiply, against closed forms written here by hand.
#include "bench/op.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <tuple>

#include "bench/bench.h"

namespace agoq::bench {
namespace {

constexpr int64_t kTokens = 32, kHidden = 256, kFfn = 1024, kQueries = 4, kKeys = 2, kDim = 64;

parallel::RunSpec run_spec_of(DType compute = DType::BF16, model::Policy policy = model::Policy::Agoq,
                              model::Recompute recompute = model::Recompute::None) {
  parallel::RunSpec run_spec;
  run_spec.model.vocab_size = 100;
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

TEST(Ops, MoveEachInputAndOutputOnce) {
  const auto ops = works(run_spec_of(), layer_ops(run_spec_of()));
  constexpr double kStream = 2.0 * kTokens * kHidden, kRow = 2.0 * kHidden, kStat = 4.0 * kTokens;
  constexpr double kGateUp = 2.0 * kTokens * 2 * kFfn;
  EXPECT_EQ(ops.at("rms_norm x1").bytes, 2 * kStream + kRow + kStat + coded(kTokens * kHidden, 4));
  EXPECT_EQ(ops.at("recompute_rms_norm x2").bytes, kStream + kRow + kStat + coded(kTokens * kHidden, 4));
  EXPECT_EQ(ops.at("rms_norm_backward x1").bytes,
            3 * kStream + kRow + kStat + coded(kTokens * kHidden, 4) + 2 * 4.0 * kHidden);
  EXPECT_EQ(ops.at("swiglu").bytes, 1.5 * kGateUp + coded(kTokens * 2 * kFfn, 4));
  EXPECT_EQ(ops.at("swiglu_backward").bytes, 2 * kGateUp + coded(kTokens * 2 * kFfn, 4));
  EXPECT_EQ(ops.at("rope").bytes, 2 * 2.0 * kTokens * (kQueries + kKeys) * kDim + 4.0 * kTokens * kDim);
  EXPECT_FALSE(ops.contains("keep o")) << "in bf16 attention writes it where it stays";
  constexpr double kWeights = 2.0 * kFfn * kHidden;  // of gate_up
  EXPECT_EQ(ops.at("accumulate gate_up").bytes, 2 * kWeights + 2 * coded(kWeights, 8));
  EXPECT_EQ(ops.at("accumulate gate_up, fresh").bytes, 2 * kWeights + coded(kWeights, 8));
}

TEST(Ops, OptimizerMovesThirteenBytesOfAParameter) {
  const auto ops = works(run_spec_of(), layer_ops(run_spec_of()));
  const double parameters = kHidden * (kQueries + 2 * kKeys) * kDim + kHidden * kQueries * kDim + 3 * kHidden * kFfn;
  EXPECT_NEAR(ops.at("squared_norms").bytes / parameters, 1 + 2.0 / 128, 0.05);
  EXPECT_NEAR(ops.at("adamw").bytes / parameters, 2 * (2 + 2) + 1 + 2 * 2 + 5 * 2.0 / 128, 0.1);
}

// Forward and backward of a layer multiply what the model is said to multiply for a layer.
TEST(Ops, MultiplyWhatTheModelDoes) {
  for (const model::Policy policy : {model::Policy::Agoq, model::Policy::Paper, model::Policy::Bf16}) {
    parallel::RunSpec run_spec = run_spec_of(DType::BF16, policy);
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
    EXPECT_EQ(count(ops, OpPhase::Backward, "attention"), attentions + 1) << "its gradient, too";
    EXPECT_EQ(count(ops, OpPhase::Forward, "linear "), 4);
    EXPECT_EQ(count(ops, OpPhase::Backward, "linear "), products);
  }
}

TEST(Ops, ForwardKeepsOnlyWhatTheRecipeKeeps) {
  const parallel::RunSpec run_spec = run_spec_of(DType::BF16, model::Policy::Agoq, model::Recompute::Full);
  const std::vector<Op> all = layer_ops(run_spec);
  std::vector<Op> forward;
  for (const Op& op : all)
    if (op.part == OpPhase::Forward) forward.push_back(op);
  EXPECT_EQ(works(run_spec, forward).at("swiglu").bytes, 1.5 * 2.0 * kTokens * 2 * kFfn);
}

TEST(Ops, RunOnTheCpu) {
  for (const DType compute : {DType::F32, DType::BF16}) {
    const parallel::RunSpec run_spec = run_spec_of(compute);
    Bench bench(Device::Cpu, run_spec);
    const Ceilings ceilings{bench.copy_bandwidth(1e-3), bench.sustained_flops(1e-3)};
    EXPECT_GT(ceilings.bytes_per_second, 1e8);
    EXPECT_GT(ceilings.flops, 1e6);
    for (const std::vector<Op>& ops : {layer_ops(run_spec), end_ops(run_spec), codec_ops(run_spec)})
      for (const Measured& op : bench.measure(ops, 1e-4)) {
        EXPECT_GT(op.seconds, 0) << op.name;
        EXPECT_GT(floor_of(op, ceilings), 0) << op.name;
      }
    const LayerTimes layer = bench.measure_layer(1e-3);
    EXPECT_GT(layer.forward, 0);
    EXPECT_GT(layer.backward, 0);
    EXPECT_GT(layer.optimizer, 0);
  }
}

}  // namespace
}  // namespace agoq::bench
