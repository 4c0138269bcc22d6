// A trained model for evaluation, generation and export: a Hugging Face folder, a checkpoint folder or a run folder.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "parallel/training_state.h"
#include "train/config/config.h"

namespace agoq::train {

struct SamplingOptions {
  int64_t max_new_tokens = 100;
  double temperature = 0.8;  // 0: the most likely token
  int64_t top_k = 0;         // 0: all
  double top_p = 1.0;
  uint64_t seed = 1;
  std::vector<int32_t> stop_tokens = {};  // each ends the text
};

// Continues `prompt` (token ids); `on_token` sees each new token and may return false to stop.
std::vector<int32_t> generate(parallel::TrainingState& state, std::vector<int32_t> prompt,
                              const SamplingOptions& options, const std::function<bool(int32_t)>& on_token = {});

struct Evaluation {
  double loss = 0;  // nats per counted token
  double perplexity = 0;
  double tokens = 0;  // counted
};

class LoadedModel {
 public:
  // `source`: Hugging Face folder, run folder, or checkpoint folder. Weights are read, moments are not.
  // `config` brings sequence length, micro-batch, compute type and data; what it leaves open is the run's.
  LoadedModel(const std::string& source, TrainConfig config);
  ~LoadedModel();
  parallel::TrainingState& state();
  const model::ModelConfig& model() const;
  const TrainConfig& config() const;
  std::string source_folder() const;         // Hugging Face folder with tokenizer etc., or empty
  std::vector<int32_t> stop_tokens() const;  // that end a generated text
  Evaluation evaluate(int64_t max_samples);  // on the config's data path
  // Writes a Hugging Face folder; which files came along that hold no weights: "tokenizer.json, LICENSE".
  std::string export_folder(const std::string& destination, DType dtype);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace agoq::train
