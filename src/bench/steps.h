// Whole training steps, one after another, on random tokens.
#pragma once

#include <optional>

#include "bench/step_profile.h"
#include "plan/layout.h"
#include "train/data/micro_batch.h"

namespace agoq::bench {

// Tokens and targets drawn at random, every one counted, sequences that are one document each. `number` tells batches
// apart.
train::Batch random_batch(const train::BatchSpec& spec, uint32_t number);

struct StepTimes {
  int64_t layers = 0, steps = 0;
  double seconds = 0;            // median of a step
  double tokens_per_second = 0;  // of all steps together, at the pace that the device sustains
  double flops = 0;              // of the model, per second (ModelConfig::flops_per_token)
  double loss = 0;               // of the last step: random tokens can not be learned, but must give a number
  size_t planned_bytes = 0;      // of the arena
  size_t driver_bytes = 0;       // that the GPU's driver has given to all processes; 0 on the CPU
  std::optional<StepProfile> profile;
};

// Whether a few more steps, behind those that are measured, are profiled: on a GPU by CUPTI, and an error if it is not
// here; on the CPU by kind of work.
enum class Profiled : uint8_t { No, Yes };

// `config` is resolved for the device and the model.
StepTimes measure_steps(const train::TrainConfig& config, const model::ModelConfig& model, Device device,
                        double seconds, Profiled profiled = Profiled::No);

}  // namespace agoq::bench
