#include "gradient_error/experiment.h"

#include <algorithm>

#include "plan/layout.h"

namespace agoq::bench {

Experiment::Experiment(const std::string& source, const train::TrainConfig& config, const std::string& data,
                       int64_t micro_batches) {
  loaded_.emplace(source, config);
  train::TrainConfig resolved = loaded_->config();
  resolved.main_grads_dtype = "fp32";
  run_spec_ = train::make_run_spec(resolved, loaded_->model());
  read_batches(data, micro_batches);
}

ModelChannels Experiment::channels() {
  return channels_of(weights(), train::view(batches_.front()));
}

double Experiment::loss() {
  for (train::Batch& batch : batches_) weights().evaluate(train::view(batch));
  return weights().take_loss() / target_weight();
}

double Experiment::target_weight() const {
  double weight = 0;
  for (const train::Batch& batch : batches_) weight += batch.target_weight();
  return weight;
}

void Experiment::rescale(const std::vector<Rescaling>& all) {
  bench::rescale(weights(), all);
  rescalings_.insert(rescalings_.end(), all.begin(), all.end());
}

GradientVectors Experiment::gradients(const Way& way) {
  parallel::RunSpec run_spec = run_spec_;
  if (way.products.compute == DType::BF16) run_spec.precision.compute = DType::BF16;
  run_spec.precision.fp8 = way.products.fp8;
  run_spec.recipe = model::make_recipe(run_spec.model, spec(), way.policy, model::Recompute::None, way.overrides);
  Arena arena(Device::Cpu, plan::plan_layout(run_spec, Device::Cpu).total);
  parallel::TrainingState state(arena, Device::Cpu, run_spec);
  copy_weights(state);
  const float scale = static_cast<float>(1 / target_weight());
  for (size_t i = 0; i < batches_.size(); ++i)
    state.forward_backward(train::view(batches_[i]), static_cast<int>(i), scale);
  GradientVectors all;
  for (const model::ParamId& id : ids()) {
    const Tensor grad = state.grads().data(id).plain();
    all.emplace_back(grad.as<float>(), grad.as<float>() + grad.count());
    require(std::any_of(all.back().begin(), all.back().end(), [](float g) { return g != 0; }),
            "the gradient of parameter {} of layer {} is zero: nothing can be measured by it", spec()[id.param].name,
            id.layer);
    for (const Rescaling& by : rescalings_)
      if (by.id == id) bench::rescale(by, all.back());
  }
  return all;
}

void Experiment::read_batches(const std::string& path, int64_t micro_batches) {
  const train::BatchSpec spec = train::batch_spec(loaded_->config(), loaded_->model());
  train::DataConfig data = train::data_config(loaded_->config());
  data.data_path = {path};
  const train::Dataset dataset = train::open_evaluation_dataset(data, spec);
  const uint64_t needed = static_cast<uint64_t>(micro_batches * spec.micro_batch_size);
  require(dataset.samples() >= needed, "{} has {} sequences of {} tokens, {} are needed", path, dataset.samples(),
          spec.sequence_length, needed);
  for (uint64_t sample = 0; sample < needed; ++sample) {
    const int64_t slot = static_cast<int64_t>(sample) % spec.micro_batch_size;
    if (slot == 0) batches_.emplace_back(spec);
    dataset.fill(sample * (dataset.samples() / needed), slot, batches_.back());
  }
}

// Exactly, in whatever forms the two hold them.
void Experiment::copy_weights(parallel::TrainingState& state) {
  for (const model::ParamId& id : ids()) {
    const model::ParamRow& row = spec()[id.param];
    std::vector<float> values(static_cast<size_t>(row.count()));
    ops::load_fp32(weights().context(), weights().params().at(id), values.data());
    state.params().store_rows(state.context(), id, {0, row.rows}, values.data());
  }
}

}  // namespace agoq::bench
