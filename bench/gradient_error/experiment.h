// The gradient of a trained model over the same micro-batches, made in different ways.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "gradient_error/outliers.h"
#include "gradient_error/products.h"
#include "train/data/micro_batch.h"
#include "train/inference.h"

namespace agoq::bench {

// How a gradient is made; the default is the exact one.
struct Way {
  model::Policy policy = model::Policy::Fp32;
  std::string overrides;  // of the policy
  Products products;
};

// Of all parameters, in the order of Experiment::ids().
using GradientVectors = std::vector<std::vector<float>>;

class Experiment {
 public:
  // The model at `source`, in the arithmetic of `config`, and `micro_batches` of samples spread evenly over `data`.
  Experiment(const std::string& source, const train::TrainConfig& config, const std::string& data,
             int64_t micro_batches);

  const model::ModelConfig& model() const { return loaded_->model(); }
  const model::LayerSpec& spec() { return loaded_->state().spec(); }
  const std::vector<model::ParamId>& ids() { return loaded_->state().params().ids(); }
  int64_t micro_batches() const { return static_cast<int64_t>(batches_.size()); }
  int64_t tokens() const { return run_spec_.tokens(); }  // of a micro-batch

  parallel::TrainingState& weights() { return loaded_->state(); }
  ModelChannels channels();  // of the first micro-batch
  double loss();             // of all micro-batches, in the arithmetic of `config`
  // Rescales the model. Gradients are still those by the weights as they were, so that an error is weighed as before.
  void rescale(const std::vector<Rescaling>& all);
  // The weights as they are now as a Hugging Face folder, in fp32.
  void write(const std::string& folder) { loaded_->export_folder(folder, DType::F32); }

  // Mean over the tokens of all micro-batches. An error if that of a parameter is zero.
  GradientVectors gradients(const Way& way);

 private:
  void read_batches(const std::string& data, int64_t micro_batches);
  void copy_weights(parallel::TrainingState& state);
  double target_weight() const;

  std::optional<train::LoadedModel> loaded_;
  parallel::RunSpec run_spec_;
  std::vector<train::Batch> batches_;
  std::vector<Rescaling> rescalings_;
};

}  // namespace agoq::bench
