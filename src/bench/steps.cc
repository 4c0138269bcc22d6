#include "bench/steps.h"

#include <chrono>

#include "bench/kernel_trace_cuda.h"
#include "bench/measure.h"
#include "device/memory.h"
#include "ops/linear/fp8_support.h"
#include "train/warm_up.h"

namespace agoq::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kFewestSteps = 3;
constexpr int kWarmUpSteps = 2;
constexpr int kProfiledSteps = 3;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

class BenchRun {
 public:
  BenchRun(const train::TrainConfig& config, const model::ModelConfig& model, Device device)
      : config_(config),
        run_spec_(train::planned_run_spec(config, model, device)),
        layout_(plan::plan_layout(run_spec_, device)),
        memory_(device),
        state_(reserve(), device, run_spec_) {
    state_.params().initialize(state_.context(), config_.seed);
    const train::BatchSpec spec = train::batch_spec(config_, model);
    for (int64_t sample = 0; sample < config_.global_batch_size; sample += config_.micro_batch_size)
      batches_.push_back(random_batch(spec, static_cast<uint32_t>(sample)));
    train::warm_up(state_, train::Coordinator());
  }

  // As the trainer does it, the numbers of its log line included.
  void step() {
    Context& ctx = state_.context();
    ctx.random.step = step_++;
    state_.begin_step();
    const float scale = 1.0f / static_cast<float>(tokens());
    for (size_t i = 0; i < batches_.size(); ++i)
      state_.forward_backward(train::view(batches_[i]), static_cast<uint32_t>(i), scale);
    state_.optimizer().step(ctx, config_.lr, {});
    state_.end_step();
    loss_ = state_.take_loss() / static_cast<double>(tokens());
  }

  int64_t tokens() const { return config_.global_batch_size * config_.seq_length; }  // of a step
  double loss() const { return loss_; }
  Context& ctx() { return state_.context(); }
  void synchronize() const { memory_.synchronize(); }
  size_t planned_bytes() const { return layout_.total; }
  size_t driver_bytes() const {
    if constexpr (kCudaBuild)
      if (memory_.gpu()) return memory_.gpu()->total_memory() - memory_.gpu()->free_memory();
    return 0;
  }

 private:
  Arena& reserve() {
    ops::require_fp8(memory_, run_spec_.precision.fp8.recipe);
    return memory_.reserve(layout_.total);
  }

  const train::TrainConfig& config_;
  parallel::RunSpec run_spec_;
  plan::Layout layout_;
  DeviceMemory memory_;
  parallel::TrainingState state_;
  std::vector<train::Batch> batches_;
  uint32_t step_ = 0;
  double loss_ = 0;
};

// A step ends when its loss is here, so all its kernels have run.
double seconds_of_profiled_steps(BenchRun& run) {
  const Clock::time_point start = Clock::now();
  for (int i = 0; i < kProfiledSteps; ++i) run.step();
  return seconds_since(start);
}

StepProfile profile_steps(BenchRun& run) {
  if constexpr (kCudaBuild) {
    if (run.ctx().cuda()) {
      KernelTrace trace;
      run.step();  // the first records cost milliseconds, in which the GPU waits
      run.synchronize();
      trace.forget();
      const double seconds = seconds_of_profiled_steps(run);
      run.synchronize();
      return profile_of(trace.take(), seconds, kProfiledSteps);
    }
  }
  Profile work;
  run.ctx().profile = &work;
  const double seconds = seconds_of_profiled_steps(run);
  run.ctx().profile = nullptr;
  return profile_of(work, seconds, kProfiledSteps);
}

}  // namespace

train::Batch random_batch(const train::BatchSpec& spec, uint32_t number) {
  train::Batch batch(spec);
  const RandomKey key{1, RngStream::Sampling, 0, number, 0};
  const auto vocabulary = static_cast<uint32_t>(spec.vocab_size);
  for (size_t t = 0; t < batch.tokens.size(); ++t) {
    const Philox4 words = key.draw(t);
    const size_t place = t % static_cast<size_t>(spec.sequence_length);
    batch.tokens[t] = static_cast<int32_t>(words[0] % vocabulary);
    batch.targets[t] = static_cast<int32_t>(words[1] % vocabulary);
    batch.loss_weights[t] = 1;
    batch.positions[t] = static_cast<int32_t>(place);
    batch.document_start[t] = static_cast<int32_t>(t - place);
  }
  return batch;
}

StepTimes measure_steps(const train::TrainConfig& config, const model::ModelConfig& model, Device device,
                        double seconds, Profiled profiled) {
  BenchRun run(config, model, device);
  for (int i = 0; i < kWarmUpSteps; ++i) run.step();
  std::vector<double> times;
  const Clock::time_point start = Clock::now();
  while (seconds_since(start) < seconds || times.size() < kFewestSteps) {
    const Clock::time_point begin = Clock::now();
    run.step();
    times.push_back(seconds_since(begin));
  }
  const double total = seconds_since(start);
  StepTimes result;
  result.layers = model.layers;
  result.steps = static_cast<int64_t>(times.size());
  result.seconds = median(times);
  result.tokens_per_second = static_cast<double>(run.tokens() * result.steps) / total;
  result.flops = model.flops_per_token(config.seq_length) * result.tokens_per_second;
  result.loss = run.loss();
  result.planned_bytes = run.planned_bytes();
  result.driver_bytes = run.driver_bytes();
  if (profiled == Profiled::Yes) result.profile = profile_steps(run);
  return result;
}

}  // namespace agoq::bench
