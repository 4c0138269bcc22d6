// A run as it is settled before its first step: settings, model, and the memory that it takes.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "plan/layout.h"
#include "train/config/config.h"

namespace agoq::train {

struct RunPlan {
  TrainConfig config;  // resolved
  model::ModelConfig model;
  std::vector<int32_t> stop_tokens;  // that end a generated text
  std::string device;                // "cpu", or the GPU's name
  parallel::Parallelism parallelism;
  int64_t parameters = 0;   // of this process's part of the model
  int64_t kept_layers = 0;  // whose activations it keeps, each micro-batch in flight counted
  plan::Layout layout;      // what this process holds
  plan::Layout reference;   // what unquantized training of the same micro-batch would hold

  // Of either layout.
  double bytes_per_parameter(const plan::Layout& of) const;  // weights, corrections, gradients, moments
  double saved_bytes_per_token_layer(const plan::Layout& of) const;
};

}  // namespace agoq::train
