// AGoQ as a library: everything that the program `agoq` does, in standard C++20 types.
//
//   agoq::Settings settings;
//   settings.set("model-config", "demo");
//   settings.set("data-path", "book.txt");
//   settings.set("train-iters", "100");
//   agoq::TrainingResult result = agoq::train_model(settings, [](const agoq::TrainingStep& s) {
//     std::printf("%lld: %.3f\n", (long long)s.step, s.loss);
//     return true;
//   });
//
// Errors: every function throws an exception derived from std::runtime_error whose text says what is wrong, which value
// caused it, and what to do about it. After a failed call nothing is half done: files appear complete or not at all.
// Threads: calls may not overlap in time; inside, all cores are used unless the setting `threads` says otherwise.
// Environment: the library never writes it; the program `agoq` does. Before CUDA starts, a job over several GPUs needs
// CUDA_DEVICE_MAX_CONNECTIONS of at least 16 (error otherwise). NCCL_NVLS_ENABLE=0 turns off NVLink multicast, which
// needs rights that containers often lack.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace agoq {

inline constexpr std::string_view kVersion = "0.1.0";

// The settings of a run: names, meanings and defaults are those of the flags in `agoq train --help`, without the
// dashes.
class Settings {
 public:
  Settings();
  Settings(const Settings& other);
  Settings& operator=(const Settings& other);
  Settings(Settings&& other) noexcept;
  Settings& operator=(Settings&& other) noexcept;
  ~Settings();

  // One value as text: set("seq-length", "512"), set("eod-mask-loss", "true"). Lists (data-path) take several words.
  // Throws on a name that does not exist (and tells the nearest one) and on text that is no value of its type.
  Settings& set(std::string_view name, const std::string& value);
  Settings& set(std::string_view name, const std::vector<std::string>& words);
  // Reads a flat TOML file; what it does not name keeps its value. Errors name file and line.
  Settings& load(const std::string& toml_file);

  std::string get(std::string_view name) const;  // as text, the words of a list joined by spaces
  std::string toml() const;                      // all of them, as a file that `load` reads

  static std::vector<std::string> names();

  struct Impl;
  const Impl& impl() const { return *impl_; }  // for the library itself

 private:
  std::unique_ptr<Impl> impl_;
};

struct OwnerMemory {
  std::string owner;  // "weights", "main gradients", "moments", "saved gate_up", "workspace", ...
  uint64_t bytes = 0;
  uint64_t reference_bytes = 0;  // in bf16/fp32 mixed-precision training of the same model and batch
};

// What one process holds.
struct MemoryPlan {
  std::vector<OwnerMemory> owners;
  uint64_t total = 0, reference_total = 0;  // bytes
  double bytes_per_parameter = 0;           // weights, corrections, gradients and moments; of its own parameters
  int rank = 0, stage = 0;                  // of the process, and of the pipeline
  int world_size = 1;                       // processes in all
};

enum class Target { Cpu, Cuda };

// Of which process among how many a plan is.
struct PlannedProcess {
  int world_size = 0;       // 0: as many as one copy of the model takes, tensor x pipeline parallel
  std::optional<int> rank;  // none: the one that holds the most
};

// What training will hold, without holding it: milliseconds, whatever the size of the model. Needs the model, sequence
// length and micro-batch among the settings. For Target::Cuda context and library workspaces come on top.
MemoryPlan plan_memory(const Settings& settings, Target target = Target::Cpu, const PlannedProcess& process = {});

struct TrainingStep {
  int64_t step = 0;  // steps done, this one included
  int64_t total_steps = 0;
  double loss = 0;  // mean over the step's target tokens, in nats
  double learning_rate = 0;
  double gradient_norm = 0;  // before clipping
  double milliseconds = 0;
  double tokens_per_second = 0;
};

struct TrainingResult {
  int64_t steps = 0;                 // done in all, also before a resume
  bool stopped = false;              // by the callback, after saving
  double loss = 0;                   // of the last step, nats per target token
  std::optional<double> valid_loss;  // the last held-out loss, if any was computed
  uint64_t tokens = 0;
  double tokens_per_second = 0;
  double bytes_per_parameter = 0;
  double saved_bytes_per_token_layer = 0;  // activations kept for backward
};

// Trains to `train-iters` steps. Where the setting `save` names a run folder, it goes on from the folder's last
// checkpoint. `on_step` is called after every step, in the calling thread; false ends the run, saved.
TrainingResult train_model(const Settings& settings, const std::function<bool(const TrainingStep&)>& on_step = {});

struct ModelLoss {
  double loss = 0;  // nats per counted token
  double perplexity = 0;
  double tokens = 0;
};

// `source` of the functions below: a run folder, a checkpoint folder or a Hugging Face folder. Of the settings only
// those of data, batch and device are read; `data-path` is what to evaluate on. At most `max_samples` sequences, 0:
// all.
ModelLoss evaluate_model(const std::string& source, const Settings& settings, int64_t max_samples = 0);

struct Sampling {
  int64_t max_new_tokens = 100;
  double temperature = 0.8;  // 0: always the likeliest token
  int64_t top_k = 0;         // 0: all
  double top_p = 1.0;
  uint64_t seed = 1;
  std::vector<int32_t> stop_tokens = {};  // each ends the text, and is not part of it
};

// Continues `prompt` (token ids, at least one) and returns the new ids; `on_token` sees each and may end it by false.
std::vector<int32_t> generate_tokens(const std::string& source, const std::vector<int32_t>& prompt,
                                     const Sampling& sampling = {}, const std::function<bool(int32_t)>& on_token = {});

// Writes a Hugging Face folder with weights in "bf16", "fp16" or "fp32".
void export_model(const std::string& source, const std::string& destination, const std::string& dtype = "bf16");

}  // namespace agoq
