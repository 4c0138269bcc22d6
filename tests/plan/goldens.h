// A golden case: a tiny Hugging Face model, one batch, and what PyTorch makes of it (tools/make_goldens.py).
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "base/safetensors.h"
#include "device/memory.h"
#include "device/transfer.h"
#include "model/hf_folder.h"
#include "parallel/training_state.h"
#include "plan/layout.h"

namespace agoq::test {

inline const char* const kGoldenCases[] = {"llama_gqa", "llama_tied", "llama3_rope", "mistral", "qwen2",
                                           "qwen3",     "olmo",       "olmo2",       "packed"};

class Golden {
 public:
  explicit Golden(const std::string& name)
      : folder_(std::filesystem::path(AGOQ_GOLDENS) / name), file_((folder_ / "golden.safetensors").string()) {}

  std::filesystem::path model_folder() const { return folder_ / "model"; }
  model::ModelConfig config() const { return model::find_config(model_folder().string()); }
  Tensor tensor(const std::string& name) const { return file_.tensor(file_.at(name)); }
  bool has(const std::string& name) const { return file_.find(name) != nullptr; }

  int64_t batch() const { return tensor("tokens").shape[0]; }
  int64_t sequence() const { return tensor("tokens").shape[1]; }
  // Sequences [first, first + count) as one micro-batch.
  parallel::MicroBatch micro_batch(int64_t first, int64_t count) const {
    const int64_t begin = first * sequence(), tokens = count * sequence();
    const auto rows = [&](const std::string& name) {
      return tensor(name).row_range(first, first + count).view({tokens});
    };
    // Document starts count from the first token of the micro-batch.
    const int32_t* starts = tensor("doc_start").as<int32_t>() + begin;
    document_start_.assign(starts, starts + tokens);
    for (int32_t& start : document_start_) start -= static_cast<int32_t>(begin);
    return {rows("tokens"), rows("targets"), rows("loss_weights"), rows("positions"),
            host_tensor(document_start_.data(), {tokens})};
  }
  double target_weight() const {
    const Tensor weights = tensor("loss_weights");
    double sum = 0;
    for (int64_t i = 0; i < weights.count(); ++i) sum += weights.as<float>()[i];
    return sum;
  }

 private:
  std::filesystem::path folder_;
  SafetensorsFile file_;
  mutable std::vector<int32_t> document_start_;  // of the micro-batch last made
};

// fp32 everywhere: compute, saved activations, gradients, moments.
inline parallel::RunSpec exact_run_spec(const Golden& golden, model::Policy policy = model::Policy::Fp32) {
  parallel::RunSpec run_spec;
  run_spec.model = golden.config();
  run_spec.recipe =
      model::make_recipe(run_spec.model, model::LayerSpec(run_spec.model), policy, model::Recompute::None, "");
  run_spec.precision.master = model::MasterForm::Fp32;
  run_spec.precision.main_grads = codec::Codec::Fp32;
  run_spec.precision.exp_avg = run_spec.precision.exp_avg_sq = codec::Codec::Fp32;
  run_spec.micro_batch_size = golden.batch();
  run_spec.sequence_length = golden.sequence();
  return run_spec;
}

// The golden tests are built twice: for the CPU, and for a GPU.
#if defined(AGOQ_TEST_ON_GPU)
inline constexpr Device kGoldenDevice = Device::Cuda;
#else
inline constexpr Device kGoldenDevice = Device::Cpu;
#endif

inline std::string why_no_golden_device() {
  if constexpr (kCudaBuild && kGoldenDevice == Device::Cuda) return why_no_gpu();
  return "";
}

// Memory of exactly the planned size, and the state in it, with the golden's weights.
class GoldenRun {
 public:
  GoldenRun(const Golden& golden, const parallel::RunSpec& run_spec)
      : layout(plan::plan_layout(run_spec, kGoldenDevice)),
        memory(kGoldenDevice),
        arena(memory.reserve(layout.total)),
        state(arena, kGoldenDevice, run_spec) {
    model::import_weights(state.context(), golden.model_folder(), state.run_spec().model, state.spec(), state.params());
  }
  // A copy in host memory.
  std::vector<float> on_host(const Tensor& numbers) {
    std::vector<float> copy(static_cast<size_t>(numbers.count()));
    download(state.context(), numbers, copy.data());
    return copy;
  }
  plan::Layout layout;
  DeviceMemory memory;
  Arena& arena;
  parallel::TrainingState state;
};

}  // namespace agoq::test
