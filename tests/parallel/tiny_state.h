// A training state small enough for a test, and a batch for it.
#pragma once

#include <cstdint>
#include <vector>

#include "parallel/training_state.h"

namespace agoq::test {

inline model::ModelConfig tiny_model() {
  model::ModelConfig model;
  model.vocab_size = 257;
  model.hidden_size = 64;
  model.ffn_size = 160;
  model.layers = 2;
  model.heads = {4, 2, 16};
  model.max_positions = 128;
  model.rope.dim = 16;
  return model;
}

inline parallel::RunSpec tiny_run_spec(const model::ModelConfig& model = tiny_model()) {
  parallel::RunSpec run_spec;
  run_spec.model = model;
  run_spec.recipe = model::make_recipe(run_spec.model, model::LayerSpec(run_spec.model), model::Policy::Agoq,
                                       model::Recompute::None, "");
  run_spec.micro_batch_size = 2;
  run_spec.sequence_length = 16;
  return run_spec;
}

class TinyState {
 public:
  explicit TinyState(const parallel::RunSpec& run_spec)
      : arena_(Device::Cpu, kPlenty), state_(arena_, Device::Cpu, run_spec) {
    const auto tokens = static_cast<size_t>(run_spec.tokens());
    ids_.resize(tokens);
    positions_.resize(tokens);
    starts_.resize(tokens);
    weights_.assign(tokens, 1.0f);
    for (int64_t t = 0; t < run_spec.tokens(); ++t) {
      const auto at = static_cast<size_t>(t);
      ids_[at] = static_cast<int32_t>(t * t * 7 % 257);
      positions_[at] = static_cast<int32_t>(t % run_spec.sequence_length);
      starts_[at] = static_cast<int32_t>(t - t % run_spec.sequence_length);
    }
  }

  parallel::TrainingState& operator*() { return state_; }
  parallel::TrainingState* operator->() { return &state_; }

  parallel::MicroBatch batch() {
    const auto tensor = [](auto& v) { return host_tensor(v.data(), {static_cast<int64_t>(v.size())}); };
    return {tensor(ids_), tensor(ids_), tensor(weights_), tensor(positions_), tensor(starts_)};
  }
  // One micro-batch's gradients, from zero. Returns its summed loss.
  double gradients() {
    state_.begin_step();
    state_.forward_backward(batch(), 0, 1.0f / static_cast<float>(ids_.size()));
    return state_.take_loss();
  }
  double step(double lr = 1e-3) {
    const double loss = gradients();
    update(lr);
    return loss;
  }
  parallel::UpdateResult update(double lr, const parallel::AdamWConfig& config = {}) {
    state_.optimizer().step(state_.context(), lr, config);
    return state_.end_step();
  }
  // Every weight, exactly.
  std::vector<float> weights() {
    std::vector<float> all;
    for (const model::ParamId& id : state_.params().ids()) {
      const ops::Weight& weight = state_.params().at(id);
      const size_t at = all.size();
      all.resize(at + static_cast<size_t>(weight.value.count()));
      ops::load_fp32(state_.context(), weight, all.data() + at);
    }
    return all;
  }

 private:
  static constexpr size_t kPlenty = size_t{64} << 20;
  Arena arena_;
  parallel::TrainingState state_;
  std::vector<int32_t> ids_, positions_, starts_;
  std::vector<float> weights_;
};

}  // namespace agoq::test
