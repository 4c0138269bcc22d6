#include "train/trainer.h"

#include <omp.h>

#include <chrono>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/text.h"
#include "model/hf_folder.h"
#include "train/checkpoint.h"
#include "train/inference.h"
#include "train/micro_batch.h"
#include "train/peak_flops.h"
#include "train/run_folder.h"
#include "train/run_metadata.h"
#include "train/settings.h"

namespace agoq::train {
namespace {

using Clock = std::chrono::steady_clock;
using Json = nlohmann::ordered_json;

constexpr int64_t kSkippedInARowLimit = 20;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

Json bytes_by_owner(const std::vector<OwnerBytes>& owners) {
  Json json = Json::object();
  for (const OwnerBytes& o : owners) json[o.owner] = o.bytes;
  return json;
}

}  // namespace

class Trainer::Run {
 public:
  Run(const TrainConfig& given, Observer watcher);
  Summary run(const std::atomic<bool>& stop);

  TrainConfig config;
  model::ModelConfig model;
  plan::Layout layout;
  std::optional<Arena> arena;
  std::unique_ptr<parallel::TrainingState> state;  // lives in the arena

 private:
  void reserve_memory();
  void resume_or_start();
  void take_over(const Checkpoint& checkpoint);
  StepMetrics train_step();
  std::vector<Batch> batches_of_step() const;
  void report(const StepMetrics& metrics);
  void record(const std::function<void()>& write);
  void write_memory() const;
  void validate();
  void save();
  void save_or_go_on();
  Summary summary(bool stopped) const;
  std::string sample() const;
  std::vector<NamedTensor> checkpoint_tensors() const;
  std::string metadata_json() const;
  void note(const std::string& text) const {
    if (observer_.on_note) observer_.on_note(text);
  }

  Observer observer_;
  std::optional<RunFolder> folder_;
  std::optional<Datasets> data_;
  std::optional<MetricsWriter> metrics_;
  std::string identity_;
  int64_t step_ = 0;  // steps done
  int64_t saved_step_ = -1;
  int64_t skipped_ = 0, skipped_in_a_row_ = 0;
  uint64_t tokens_ = 0;
  double train_loss_ = 0, training_seconds_ = 0;
  int64_t timed_steps_ = 0;
  double peak_ = 0;  // FLOP/s of this machine's fp32 GEMM, the denominator of MFU
  std::optional<double> valid_loss_;
};

Trainer::Run::Run(const TrainConfig& given, Observer watcher) : observer_(std::move(watcher)) {
  model = resolve_model(given);
  config = resolved(given, model, resolve_device(given.device));
  if (config.threads > 0) omp_set_num_threads(static_cast<int>(config.threads));
  require(!config.data_path.empty(),
          "no training data: give --data-path FILE (text, flat .bin, or Megatron-LM prefix)");
  const parallel::Job job = make_job(config, model);
  layout = plan::plan_layout(job, Device::Cpu);
  if (observer_.on_layout) observer_.on_layout(layout);
  reserve_memory();
  if (!config.save.empty()) folder_.emplace(config.save);
  data_.emplace(open_datasets(data_config(config), batch_spec(config, model)));
  identity_ = identity_json(config, model, data_->train.identity());
  state = std::make_unique<parallel::TrainingState>(*arena, Device::Cpu, job);
  state->context().random.seed = config.seed;
  resume_or_start();
  peak_ = measure_peak_flops();
}

void Trainer::Run::reserve_memory() {
  const uint64_t cap = config.gpu_memory.empty() ? 0 : parse_bytes(config.gpu_memory);
  require(
      cap == 0 || layout.total <= cap,
      "this run needs {}, more than --gpu-memory {}; `agoq plan` with the same settings ranks what would make it fit",
      human_bytes(layout.total), config.gpu_memory);
  arena.emplace(Device::Cpu, layout.total);
}

void Trainer::Run::resume_or_start() {
  const auto latest = folder_ ? find_latest_checkpoint(folder_->checkpoints()) : std::nullopt;
  if (latest) {
    take_over(Checkpoint(*latest));
    note(fmt::format("{} {} at step {}", config.finetune ? "weights from" : "resumed from", *latest, step_));
  } else if (config.model.empty()) {
    require(!config.finetune,
            "--finetune: {} has no checkpoint to take weights from; give its run folder with --save, or a model with "
            "--model",
            config.save.empty() ? "a run without --save" : config.save);
    state->params().initialize(config.seed);
  } else {
    model::import_weights(config.model, state->job().model, state->spec(), state->params());
  }
  if (!folder_) return;
  folder_->write("config.toml", to_toml(config));
  folder_->write_json("recipe.json", state->job().recipe.to_json(state->spec()));
  if (step_ < config.train_iters) std::filesystem::remove(folder_->summary());  // of an earlier, shorter run
  metrics_.emplace(folder_->metrics(), step_);
}

void Trainer::Run::take_over(const Checkpoint& checkpoint) {
  const RunMetadata metadata = metadata_from_json(checkpoint.manifest().metadata, checkpoint.path());
  const std::vector<std::string> changed = differences(metadata.identity, identity_);
  if (config.finetune && !changed.empty()) {
    std::vector<NamedTensor> weights;
    for (const NamedTensor& t : checkpoint_tensors())
      if (!t.name.starts_with("exp_avg")) weights.push_back(t);
    return load_checkpoint(checkpoint, weights, {.subset = true});
  }
  require(changed.empty(),
          "{} is another run's; what differs:\n  {}\nUse the same settings, another --save folder, or --finetune to "
          "take only its weights",
          checkpoint.path(), fmt::join(changed, "\n  "));
  load_checkpoint(checkpoint, checkpoint_tensors());
  step_ = saved_step_ = checkpoint.manifest().step;
  skipped_ = metadata.skipped;
  skipped_in_a_row_ = metadata.skipped_in_a_row;
  tokens_ = metadata.tokens;
  state->optimizer().updates = metadata.updates;
}

// What was planned beside what is held; the stack's peak is known after a step.
void Trainer::Run::write_memory() const {
  if (!folder_) return;
  Json memory;
  memory["rank"] = 0;
  memory["predicted"] = bytes_by_owner(layout.owners);
  memory["allocated"] = bytes_by_owner(arena->by_owner());
  memory["reference_bytes"] = bytes_by_owner(plan::plan_layout(plan::reference_job(state->job()), Device::Cpu).owners);
  folder_->write_json("memory.json", memory.dump());
}

Summary Trainer::Run::run(const std::atomic<bool>& stop) {
  while (step_ < config.train_iters && !stop) {
    report(train_step());
    if (timed_steps_ == 1) write_memory();
    const bool last = step_ == config.train_iters;
    if (last || (config.eval_interval > 0 && step_ % config.eval_interval == 0)) validate();
    if (!last && config.save_interval > 0 && step_ % config.save_interval == 0) save_or_go_on();
  }
  if (step_ != saved_step_) save();
  const bool ended = step_ >= config.train_iters;
  if (!ended || !folder_ || (timed_steps_ == 0 && std::filesystem::exists(folder_->summary()))) return summary(!ended);
  if (!valid_loss_) validate();  // killed between the last step and its summary
  Summary result = summary(false);
  Json json;
  json["valid_loss"] = result.valid_loss ? Json(*result.valid_loss) : Json();
  json["tokens"] = result.tokens;
  json["tokens_per_second"] = result.tokens_per_second;
  json["bytes_per_parameter"] = result.bytes_per_parameter;
  json["saved_bytes_per_token_layer"] = result.saved_bytes_per_token_layer;
  folder_->write_json("summary.json", json.dump());
  return result;
}

std::vector<Batch> Trainer::Run::batches_of_step() const {
  const BatchSpec& spec = data_->train.spec();
  std::vector<Batch> batches;
  const uint64_t first = static_cast<uint64_t>(step_) * static_cast<uint64_t>(config.global_batch_size);
  for (int64_t sample = 0; sample < config.global_batch_size; sample += spec.micro_batch_size)
    data_->train.fill(first + static_cast<uint64_t>(sample), batches.emplace_back(spec));
  return batches;
}

StepMetrics Trainer::Run::train_step() {
  const Clock::time_point start = Clock::now();
  std::vector<Batch> batches = batches_of_step();
  double target_weight = 0;
  for (const Batch& batch : batches) target_weight += batch.target_weight();

  Context& ctx = state->context();
  ctx.random.step = static_cast<uint32_t>(step_);
  state->grads().zero(ctx);
  const float scale = target_weight > 0 ? static_cast<float>(1 / target_weight) : 0.0f;
  double loss_sum = 0;
  for (size_t i = 0; i < batches.size(); ++i)
    loss_sum += state->forward_backward(view(batches[i]), static_cast<uint32_t>(i), scale);
  const double lr = learning_rate(config, step_);
  const parallel::UpdateResult update = state->optimizer().step(
      ctx, lr, {config.adam_beta1, config.adam_beta2, config.adam_eps, config.weight_decay, config.clip_grad});

  skipped_ += update.skipped;
  skipped_in_a_row_ = update.skipped ? skipped_in_a_row_ + 1 : 0;
  require(skipped_in_a_row_ < kSkippedInARowLimit,
          "{} steps in a row had non-finite gradients, first in {}; lower --lr or look at the data around step {}",
          skipped_in_a_row_, update.non_finite, step_);
  ++step_;
  const uint64_t step_tokens = static_cast<uint64_t>(config.global_batch_size * config.seq_length);
  tokens_ += step_tokens;
  train_loss_ = target_weight > 0 ? loss_sum / target_weight : 0;

  const double seconds = seconds_since(start);
  training_seconds_ += seconds;
  ++timed_steps_;
  StepMetrics m;
  m.step = step_;
  m.loss = train_loss_;
  m.lr = lr;
  m.grad_norm = update.grad_norm;
  m.step_ms = seconds * 1e3;
  m.tokens_per_second = static_cast<double>(step_tokens) / seconds;
  const double flops = model.flops_per_token(config.seq_length) * m.tokens_per_second;
  m.tflops = flops / 1e12;
  m.mfu = flops / peak_;
  m.memory_bytes = layout.total;
  m.skipped = skipped_;
  return m;
}

void Trainer::Run::report(const StepMetrics& m) {
  record([&] { metrics_->step(m); });
  if (observer_.on_step) observer_.on_step(m);
}

// History that cannot be written (a full disk) is told once; it does not end the run.
void Trainer::Run::record(const std::function<void()>& write) {
  if (!metrics_) return;
  try {
    write();
  } catch (const Error& error) {
    note(fmt::format("metrics.jsonl ends before step {}: {}; training goes on", step_, error.what()));
    metrics_.reset();
  }
}

void Trainer::Run::validate() {
  if (!data_->valid) return;
  const int64_t per_batch = config.micro_batch_size;
  const int64_t samples = std::min(config.eval_iters * per_batch, static_cast<int64_t>(data_->valid->samples()));
  valid_loss_ = held_out_loss(*state, *data_->valid, (samples + per_batch - 1) / per_batch, samples);
  record([&] { metrics_->valid(step_, *valid_loss_); });
  if (observer_.on_valid) observer_.on_valid(step_, *valid_loss_);
}

void Trainer::Run::save() {
  if (!folder_) return;
  const std::string path = save_checkpoint(folder_->checkpoints(), step_, checkpoint_tensors(), metadata_json(),
                                           {.keep_last = config.keep_checkpoints});
  saved_step_ = step_;
  note("saved " + path);
}

// While steps are left, a save that fails (a full disk) is told loudly, the last checkpoint stays, and training goes
// on.
void Trainer::Run::save_or_go_on() {
  try {
    save();
  } catch (const Error& error) {
    note(fmt::format("NOT SAVED at step {}: {}; training goes on, the last checkpoint is {}", step_, error.what(),
                     saved_step_ < 0 ? "none" : fmt::format("of step {}", saved_step_)));
  }
}

std::vector<NamedTensor> Trainer::Run::checkpoint_tensors() const {
  std::vector<NamedTensor> tensors;
  for (auto& [name, tensor] : state->named_tensors()) tensors.push_back({name, tensor});
  return tensors;
}

std::string Trainer::Run::metadata_json() const {
  RunMetadata metadata;
  metadata.updates = state->optimizer().updates;
  metadata.skipped = skipped_;
  metadata.skipped_in_a_row = skipped_in_a_row_;
  metadata.tokens = tokens_;
  metadata.identity = identity_;
  metadata.model = model::config_to_json(model);
  metadata.settings = settings_json(config);
  return to_json(metadata);
}

Summary Trainer::Run::summary(bool stopped) const {
  Summary s;
  s.step = step_;
  s.stopped_early = stopped;
  s.valid_loss = valid_loss_;
  s.train_loss = train_loss_;
  s.tokens = tokens_;
  const double run_tokens = static_cast<double>(timed_steps_ * config.global_batch_size * config.seq_length);
  s.tokens_per_second = training_seconds_ > 0 ? run_tokens / training_seconds_ : 0;
  s.bytes_per_parameter = static_cast<double>(layout.model_state()) / static_cast<double>(model.parameters());
  s.saved_bytes_per_token_layer =
      static_cast<double>(layout.starting_with("saved ")) / static_cast<double>(state->job().tokens() * model.layers);
  s.skipped = skipped_;
  if (!stopped && config.sample_tokens > 0 && model.vocab_size == kByteTokenizerVocab) s.sample = sample();
  return s;
}

// Text of the byte tokenizer, from the prompt.
std::string Trainer::Run::sample() const {
  const std::string prompt = config.sample_prompt.empty() ? "\n" : config.sample_prompt;
  std::vector<int32_t> ids;
  for (const char c : prompt) ids.push_back(static_cast<uint8_t>(c));
  SamplingOptions options;
  options.max_new_tokens = config.sample_tokens;
  options.seed = config.seed;
  options.stop_token = kByteTokenizerEod;
  std::string text = prompt;
  for (const int32_t id : generate(*state, ids, options)) text += static_cast<char>(id);
  return text;
}

Trainer::Trainer(const TrainConfig& config, Observer observer)
    : run_(std::make_unique<Run>(config, std::move(observer))) {}
Trainer::~Trainer() = default;
Summary Trainer::run(const std::atomic<bool>& stop) {
  return run_->run(stop);
}
const TrainConfig& Trainer::config() const {
  return run_->config;
}
const plan::Layout& Trainer::layout() const {
  return run_->layout;
}
parallel::TrainingState& Trainer::state() {
  return *run_->state;
}

}  // namespace agoq::train
