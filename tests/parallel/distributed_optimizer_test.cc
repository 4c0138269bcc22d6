// One decision of all ranks: the global norm, clipping, and steps that are skipped; against scalar loops over all
// gradients.
#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <limits>
#include <map>

#include "parallel/rank_of_world.h"

namespace agoq::parallel {
namespace {

using codec::Codec;

using model::ParamId;
using model::Reduction;

constexpr const char* kSharding[] = {"whole", "zero1", "zero2", "zero3"};

struct Case {
  int tensor = 1, data = 1, pipeline = 1;
  bool tied = false;
  Sharding sharding = Sharding::Optimizer;
  Codec main = Codec::Fp32;
  int64_t vocabulary = 257;
  int replicas = 1;
  int ranks() const { return tensor * data * pipeline * replicas; }
  std::string text() const {
    return fmt::format("tp{}_dp{}_pp{}_r{}_{}_{}_{}_{}", tensor, data, pipeline, replicas, tied ? "tied" : "untied",
                       kSharding[static_cast<size_t>(sharding)], codec::name_of(main), vocabulary);
  }
};

RunSpec run_spec_of(const Case& c, int rank) {
  model::ModelConfig model = test::tiny_model();
  model.layers = 4;
  model.vocab_size = c.vocabulary;
  model.tied_embeddings = c.tied;
  model.qk_norm = model::QkNorm::Head;
  RunSpec run_spec = test::tiny_run_spec(model);
  run_spec.precision.master = model::MasterForm::Fp32;
  run_spec.precision.main_grads = run_spec.parallelism.grad_reduce = c.main;
  run_spec.precision.exp_avg = run_spec.precision.exp_avg_sq = Codec::Fp32;
  run_spec.parallelism.mesh = training_mesh({c.tensor, c.data, c.pipeline, c.replicas});
  run_spec.parallelism.rank = rank;
  run_spec.parallelism.sharding = c.sharding;
  return run_spec;
}

// A rank with a model and gradients that no model has made.
class Rank {
 public:
  Rank(comm::Transport& transport, const Case& c)
      : rank_(transport.rank()),
        arena_(Device::Cpu, size_t{32} << 20),
        state_(arena_, Device::Cpu, run_spec_of(c, transport.rank()), &transport) {
    omp_set_num_threads(1);
    state_.params().initialize(state_.context(), 3);
  }
  TrainingState* operator->() { return &state_; }
  const std::vector<ParamId>& ids() const { return state_.stage_shard().ids; }
  const Parallelism& parallelism() const { return state_.run_spec().parallelism; }

  void fill() {
    state_.begin_step();
    for (const ParamId& id : ids()) {
      const codec::Quantized to = state_.grads().acquire(state_.context(), id).data;
      const std::vector<float> values = test::invented(rank_, id.tensor(), to.rows * to.row.cols);
      codec::encode(state_.context(), host_tensor(values.data(), {to.rows, to.row.cols}), to);
      partial_sums_[id.tensor()] = test::decoded(to);
      if (summed_at_once(id)) state_.grads().contributed(state_.context(), id);
    }
  }
  // What this rank has contributed.
  const std::vector<float>& partial_sum(const ParamId& id) const { return partial_sums_.at(id.tensor()); }
  bool summed_at_once(const ParamId& id) const {
    return state_.shard_plan().sharded(id.param, Role::Gradient) && !state_.shard_plan().group(id.param).alone();
  }
  UpdateResult update(const AdamWConfig& config) {
    state_.optimizer().step(state_.context(), 1e-2, config);
    return state_.optimizer().result(state_.context());
  }
  // The lowest rank of those that hold partial sums of the same gradient.
  int group_of(const ParamId& id) const {
    const comm::Mesh& mesh = parallelism().mesh;
    switch (state_.spec()[id.param].reduction) {
      case Reduction::Data:
        return mesh.group(rank_, {kReplica, kData}).front();
      case Reduction::DataAndTensor:
        return mesh.group(rank_, {kReplica, kData, kTensor}).front();
      default:
        return mesh.group(rank_, {kReplica, kData, kPipeline}).front();
    }
  }
  std::vector<uint8_t> stored() {
    std::vector<uint8_t> bytes;
    for (const StoredTensor& tensor : state_.named_tensors())
      for (const StoredPiece& piece : tensor.pieces)
        bytes.insert(bytes.end(), piece.data.raw(), piece.data.raw() + piece.data.bytes());
    return bytes;
  }

 private:
  int rank_;
  Arena arena_;
  TrainingState state_;
  std::map<uint32_t, std::vector<float>> partial_sums_;
};

// Σ of all partial sums of every gradient of the model's shards, in double.
class Sums {
 public:
  explicit Sums(int ranks) : partial_sums_(static_cast<size_t>(ranks)) {}
  // All ranks give theirs.
  void add(Rank& rank) {
    auto& mine = partial_sums_[static_cast<size_t>(rank->groups().world().rank())];
    for (const ParamId& id : rank.ids()) mine[{id.tensor(), rank.group_of(id)}] = rank.partial_sum(id);
    rank->groups().world().barrier();
  }
  std::vector<double> of(const Rank& rank, const ParamId& id) const { return sum({id.tensor(), rank.group_of(id)}); }
  double norm() const {
    std::map<Key, bool> keys;
    for (const auto& partial_sums : partial_sums_)
      for (const auto& [key, values] : partial_sums) keys[key] = true;
    double squares = 0;
    for (const auto& [key, held] : keys)
      for (const double x : sum(key)) squares += x * x;
    return std::sqrt(squares);
  }

 private:
  using Key = std::pair<uint32_t, int>;
  std::vector<double> sum(const Key& key) const {
    std::vector<double> total;
    for (const auto& partial_sums : partial_sums_) {
      const auto at = partial_sums.find(key);
      if (at == partial_sums.end()) continue;
      total.resize(at->second.size());
      for (size_t i = 0; i < total.size(); ++i) total[i] += at->second[i];
    }
    return total;
  }
  std::vector<std::map<Key, std::vector<float>>> partial_sums_;
};

class DistributedOptimizer : public testing::TestWithParam<Case> {};

// The first moments after one update are the clipped gradients, times 1 - beta1.
TEST_P(DistributedOptimizer, ClipsByTheNormOfAllGradientsOnce) {
  const Case& c = GetParam();
  const int ranks = c.ranks();
  // Of the largest element: what a sum that is encoded again may be off by.
  const double of_format = c.main == Codec::Int8 ? 1.02 / 127 : c.main == Codec::Fp8 ? 0.125 : 1.0 / 128;
  const bool once = c.sharding == Sharding::Optimizer && c.replicas == 1;
  const double step = once || c.main == Codec::Fp32 ? 0 : (c.replicas == 1 ? 1 : 2.5) * of_format;
  Sums sums(ranks);
  test::ThreadWorld(ranks).run([&](comm::Transport& transport) {
    Rank rank(transport, c);
    rank.fill();
    sums.add(rank);
    const double norm = sums.norm(), clip = norm / 3;
    const AdamWConfig config{0.9, 0.95, 1e-8, 0.0, clip};
    const UpdateResult result = rank.update(config);
    EXPECT_FALSE(result.skipped) << result.non_finite;
    EXPECT_NEAR(result.grad_norm, norm, (1e-6 + 0.1 * step) * norm);
    for (const double other : rank->groups().world().values(result.grad_norm)) EXPECT_EQ(other, result.grad_norm);
    for (const ParamId& id : rank.ids()) {
      const ops::AdamWState* state = rank->optimizer().state(id);
      const model::Range rows = rank->shard_plan().rows(id.param, Role::Moments);
      ASSERT_EQ(state != nullptr, rows.count() > 0);
      if (!state) continue;
      const std::vector<double> sum = sums.of(rank, id);
      const std::vector<float> m = test::decoded(state->m);
      ASSERT_EQ(static_cast<int64_t>(m.size()), rows.count() * state->m.row.cols);
      double worst = 0, largest = 0;
      for (size_t i = 0; i < m.size(); ++i) {
        const double want = (1 - config.beta1) * sum[i + static_cast<size_t>(rows.begin * state->m.row.cols)] / 3;
        worst = std::max(worst, std::abs(m[i] - want));
        largest = std::max(largest, std::abs(want));
      }
      EXPECT_LE(worst, (2e-6 + step) * largest) << model::logical_name(rank->spec(), id);
    }
  });
}

// As damage looks in each format, in the first or the last row.
void damage(const codec::Quantized& grad, bool last_row) {
  const int64_t row = last_row ? grad.rows - 1 : 0;
  if (grad.scales)
    grad.row_scales(row)[0] = Bf16{codec::reference::nan_scale()};
  else if (grad.codec == Codec::Fp32)
    grad.plain().as<float>()[row * grad.row.cols] = std::numeric_limits<float>::infinity();
  else
    grad.plain().as<Bf16>()[row * grad.row.cols] = to_bf16(std::numeric_limits<float>::quiet_NaN());
}

// Damages a tensor on the rank `first` of the world, or on the next that has it: its partial sum, or another
// micro-batch's gradient, to which all contribute.
void damage_one(Rank& rank, const ParamId& id, int first, bool last_row) {
  const std::vector<char> holds = rank->groups().world().values<char>(rank->params().holds(id));
  const int ranks = static_cast<int>(holds.size());
  int victim = first % ranks;
  while (!holds[static_cast<size_t>(victim)]) victim = (victim + 1) % ranks;
  const bool damages = rank->groups().world().rank() == victim;
  if (!rank->params().holds(id) || !rank.summed_at_once(id)) {
    if (damages) damage(rank->grads().data(id), last_row);
    return;
  }
  const codec::Quantized next = rank->grads().acquire(rank->context(), id).data;
  codec::zero(rank->context(), next);
  if (damages) damage(next, last_row);
  rank->grads().contributed(rank->context(), id);
}

TEST_P(DistributedOptimizer, DamageOnOneRankSkipsTheStepOnAllAndIsNamed) {
  const Case& c = GetParam();
  const int ranks = c.ranks();
  test::ThreadWorld(ranks).run([&](comm::Transport& transport) {
    Rank rank(transport, c);
    rank.fill();
    EXPECT_FALSE(rank.update({}).skipped);
    const std::vector<uint8_t> before = rank.stored();
    const std::vector<ParamId> all = model::all_params(rank->run_spec().model, rank->spec());
    for (size_t i = 0; i < all.size(); i += 5) {
      const ParamId id = all[i];
      rank.fill();
      damage_one(rank, id, static_cast<int>(i), i % 2 == 0);
      const UpdateResult result = rank.update({});
      EXPECT_TRUE(result.skipped);
      EXPECT_FALSE(std::isfinite(result.grad_norm));
      EXPECT_EQ(result.non_finite, model::logical_name(rank->spec(), id)) << "rank " << transport.rank();
      EXPECT_EQ(rank->optimizer().updates(rank->context()), 1) << "skipped steps are no updates";
      EXPECT_EQ(rank.stored(), before);
    }
    rank.fill();
    EXPECT_FALSE(rank.update({}).skipped);
    EXPECT_NE(rank.stored(), before);
  });
}

// Whichever ranks have them, and whichever rows are the damaged ones.
TEST_P(DistributedOptimizer, OfSeveralDamagedTensorsTheFirstOfTheModelIsNamed) {
  const Case& c = GetParam();
  const int ranks = c.ranks();
  test::ThreadWorld(ranks).run([&](comm::Transport& transport) {
    Rank rank(transport, c);
    const std::vector<ParamId> all = model::all_params(rank->run_spec().model, rank->spec());
    for (size_t i = 0; i < all.size(); i += 6) {
      rank.fill();
      damage_one(rank, all[i], ranks - 1, true);
      for (size_t later = i + 1; later < all.size(); later += 3)
        damage_one(rank, all[later], static_cast<int>(later), later % 2 == 0);
      EXPECT_EQ(rank.update({}).non_finite, model::logical_name(rank->spec(), all[i])) << "rank " << transport.rank();
    }
  });
}

std::vector<Case> cases() {
  std::vector<Case> all;
  using enum Sharding;
  for (const Codec main : {Codec::Fp8, Codec::Bf16})
    for (const Sharding sharding : {Optimizer, Gradients}) all.push_back({1, 3, 1, false, sharding, main});
  for (const Sharding shard : {None, Optimizer, Gradients, Weights}) {
    for (const int data : {2, 3, 4, 8}) all.push_back({1, data, 1, false, shard, Codec::Fp32});
    all.push_back({1, 3, 1, false, shard, Codec::Int8});
    all.push_back({1, 2, 1, true, shard, Codec::Fp32});
    all.push_back({1, 2, 2, true, shard, Codec::Fp32});
    all.push_back({1, 1, 4, true, shard, Codec::Fp32});
    all.push_back({2, 1, 1, false, shard, Codec::Fp32});
    all.push_back({2, 2, 2, false, shard, Codec::Fp32});
    all.push_back({2, 2, 2, true, shard, Codec::Fp32});
    all.push_back({2, 2, 1, false, shard, Codec::Fp32, 2});  // shards of a single row
    if (shard == None) continue;
    all.push_back({1, 2, 1, false, shard, Codec::Fp32, 257, 2});
    all.push_back({1, 3, 1, false, shard, Codec::Int8, 257, 2});
    all.push_back({1, 1, 2, true, shard, Codec::Fp32, 257, 3});
    all.push_back({2, 2, 1, true, shard, Codec::Fp32, 2, 2});
  }
  return all;
}
INSTANTIATE_TEST_SUITE_P(All, DistributedOptimizer, testing::ValuesIn(cases()),
                         [](const auto& info) { return info.param.text(); });

}  // namespace
}  // namespace agoq::parallel
