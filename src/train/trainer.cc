#include "train/trainer.h"

#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <numeric>

#include "agoq/agoq.h"
#include "base/log.h"
#include "base/text.h"
#include "device/memory.h"
#include "ops/linear/fp8_support.h"
#include "ops/linear/gemm_algorithms.h"
#include "plan/stage_plan.h"
#include "train/async_checkpointer.h"
#include "train/checkpoint/run_metadata.h"
#include "train/checkpoint/state_io.h"
#include "train/config/fitted_schedule.h"
#include "train/config/settings.h"
#include "train/data/micro_batch.h"
#include "train/data/run_data.h"
#include "train/data/tokenizer_choice.h"
#include "train/held_out.h"
#include "train/init_source.h"
#include "train/peak_flops.h"
#include "train/resume.h"
#include "train/run_clock.h"
#include "train/run_companions.h"
#include "train/run_folder.h"
#include "train/run_records.h"
#include "train/warm_up.h"

namespace agoq::train {
namespace {

using Clock = std::chrono::steady_clock;
using Json = nlohmann::ordered_json;

constexpr int64_t kSkippedInARowLimit = 20;

// Whether step `step`, counted from 1, counts what 8-bit floats do not hold: the first that is logged at or after each
// multiple of ten, and the last. Kernels that count are a little slower.
bool counts_fp8(int64_t step, const TrainConfig& config) {
  constexpr int64_t kEvery = 10;
  const int64_t interval = config.log_interval;
  return step == config.train_iters || (step % interval == 0 && step / kEvery > (step - interval) / kEvery);
}

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Ranks that do not run the same thing would wait for each other for ever, or spoil each other's numbers.
comm::ConsistencyCheck settings_of(const TrainConfig& config) {
  comm::ConsistencyCheck items = {{"the version", std::string(kVersion)}};
  for (const Setting& setting : all_settings())
    items.push_back({"--" + std::string(setting.name), text_of(config, setting)});
  return items;
}

Json bytes_by_owner(const std::vector<OwnerBytes>& owners) {
  Json json = Json::object();
  for (const OwnerBytes& o : owners) json[o.owner.text()] = o.bytes;
  return json;
}

}  // namespace

class Trainer::Run : public RunPlan {
 public:
  Run(const TrainConfig& given, Observer watcher, const Processes& processes);
  Summary run(const std::atomic<bool>& stop);
  int64_t step() const { return step_; }

  std::optional<DeviceMemory> memory;
  std::unique_ptr<parallel::TrainingState> state;  // lives in the memory

 private:
  void reserve_memory();
  void tell_memory_in_use() const;
  void open_data(int local_rank);
  void resume_or_start();
  void take_over(const Checkpoint& checkpoint);
  void fit_schedule(double step_seconds);
  StepMetrics train_step();
  parallel::UpdateResult update(std::span<Batch> batches, double weight, double lr);
  void report(const StepMetrics& metrics);
  void write_memory() const;
  struct StepDecision {
    bool stop = false, time_is_up = false, save = false;
  };
  StepDecision step_decision(const std::atomic<bool>& stop) const;
  void validate();
  void begin_save();
  void agree() const;
  double target_weight(std::span<const Batch> own) const;
  ExposedSeconds highest(const ExposedSeconds& own) const;
  void tell_saved(const std::optional<SavedCheckpoint>& saved);
  void save_last();
  Summary summary() const;
  std::string metadata_json() const;
  void note(const std::string& text) const {
    if (!text.empty() && coordinator_.is_rank0() && observer_.on_note) observer_.on_note(text);
  }

  Coordinator coordinator_;
  RunClock clock_;
  Observer observer_;
  std::optional<RunFolder> folder_;    // rank 0's
  std::optional<RunRecords> records_;  // likewise
  std::optional<AsyncCheckpointer> saver_;
  std::optional<Checkpoint> latest_;  // that the run goes on from, until it does
  std::optional<Datasets> data_;
  std::optional<StepBatches> batches_;
  std::string identity_;
  std::string model_folder_;  // of the InitSource
  std::string vocabulary_;    // hash
  int64_t step_ = 0;          // steps done
  int64_t saved_step_ = -1;
  int64_t begun_step_ = -1;  // of the last save
  int64_t skipped_ = 0, skipped_in_a_row_ = 0, without_targets_ = 0;
  uint64_t tokens_ = 0;
  size_t highest_total_ = 0;  // bytes planned, over ranks
  double train_loss_ = 0, training_seconds_ = 0;
  int64_t timed_steps_ = 0;
  double peak_ = 0;  // FLOP/s that the GPUs' datasheets state, the denominator of MFU; 0 on CPUs, and if unknown
  std::optional<SpeedMeter> speed_;  // while --train-minutes has not chosen the number of steps
  int64_t iters_before_fit_ = 0;
  Clock::time_point start_ = Clock::now();  // of run()
  std::optional<double> valid_loss_;
  std::string evaluation_error_;  // why there is none
  bool decay_given_;
  std::optional<ExposedTimes> exposed_;  // of several processes
};

Trainer::Run::Run(const TrainConfig& given, Observer watcher, const Processes& processes)
    : coordinator_(processes.transport),
      clock_(given.save_interval_minutes, given.exit_duration_in_mins),
      observer_(std::move(watcher)),
      decay_given_(given.lr_decay_iters > 0) {
  require_recordable(given);
  coordinator_.agree(settings_of(given));
  const InitSource source = find_init_source(given);
  const Device target = resolve_device(given.device);
  model = source.model;
  model_folder_ = source.model_folder;
  config = resolved(given, model, target, coordinator_.size());
  require_recordable(config);  // with the folder that this process runs in
  if (config.threads > 0) omp_set_num_threads(static_cast<int>(config.threads));
  require(!config.data_path.empty(),
          "no training data: give --data-path FILE (text, flat .bin, or Megatron-LM prefix)");
  const SettledTokenizer settled = settle_tokenizer(config, model, source.tokens);
  if (coordinator_.is_rank0() && !settled.warning.empty()) log_warning("{}", settled.warning);
  vocabulary_ = settled.vocabulary;
  if (!settled.own_tokens) model = ending_with(model, config.eod_token);
  stop_tokens = common_stop_tokens(coordinator_, config, model, settled.own_tokens ? model_folder_ : "");
  const parallel::RunSpec run_spec = planned_run_spec(config, model, target, coordinator_.place());
  parallelism = run_spec.parallelism;
  const plan::RankPlan own = plan::plan_rank(run_spec, target);
  layout = own.layout;
  parameters = own.parameters;
  for (const parallel::LayerRange& chunk : own.chunks)
    kept_layers = std::max(kept_layers, own.in_flight * chunk.count());
  reference = plan::plan_layout(plan::reference_run_spec(run_spec), target);
  memory.emplace(target, processes.local_rank);
  ops::require_fp8(*memory, run_spec.precision.fp8.recipe);
  device = memory->gpu() ? memory->gpu()->name() : "cpu";
  if (coordinator_.is_rank0() && observer_.on_plan) observer_.on_plan(*this);
  reserve_memory();
  if (!config.save.empty()) {
    if (coordinator_.is_rank0()) folder_.emplace(config.save);
    saver_.emplace(coordinator_, RunFolder::checkpoints_in(config.save), config.keep_checkpoints);
    latest_ = open_latest_checkpoint(RunFolder::checkpoints_in(config.save), coordinator_.readers());
  }
  open_data(processes.local_rank);
  agree();
  state = std::make_unique<parallel::TrainingState>(memory->arena(), target, run_spec, coordinator_.transport());
  state->context().random.seed = config.seed;
  check_attention(*state, data_->resets_attention());
  if (!coordinator_.alone()) exposed_.emplace(state->context());
  const std::vector<size_t> totals = state->groups().world().values(layout.total);
  highest_total_ = *std::max_element(totals.begin(), totals.end());
  resume_or_start();
  warm_up(*state, coordinator_);
  if (saver_) metadata_json();  // what cannot be written down fails here, not after days of training
  if (memory->gpu()) tell_memory_in_use();
  if (memory->gpu()) peak_ = coordinator_.size() * datasheet_peak_flops(memory->gpu()->name());
}

// A run that goes on reads its data as it began to.
void Trainer::Run::open_data(int local_rank) {
  bool only_eod_token = false;
  if (latest_) {
    const RunMetadata run = read_metadata(latest_->manifest(), latest_->path());
    keep_document_settings(config, run.settings);
    only_eod_token = ends_documents_by_token(run.identity);
  }
  BatchSpec spec = batch_spec(config, model);
  spec.only_eod_token = only_eod_token;
  data_.emplace(open_run_data(coordinator_, local_rank, config, spec));
  batches_.emplace(data_->train, config.global_batch_size, parallelism.data_rank(), parallelism.data_ranks());
  identity_ = identity_json(config, model, data_->train);
  if (!coordinator_.is_rank0()) return;
  std::vector<std::string> warnings = data_->train.warnings();
  if (!config.valid_data_path.empty())
    for (std::string& warning : data_->valid->warnings()) warnings.push_back(std::move(warning));
  for (const std::string& warning : warnings) log_warning("{}", warning);
}

// What the machine of each rank has made of the settings, and what lies there under the same names.
void Trainer::Run::agree() const {
  comm::ConsistencyCheck items = settings_of(config);
  const Json identity = Json::parse(identity_);
  for (const auto& [name, value] : identity.items()) items.push_back({name, value.dump()});
  items.push_back({"the vocabulary", vocabulary_});
  if (!config.valid_data_path.empty()) items.push_back({"held-out data", data_->valid->identity()});
  coordinator_.agree(items);
}

void Trainer::Run::tell_memory_in_use() const {
  if constexpr (kCudaBuild) {
    const size_t used = memory->gpu()->total_memory() - memory->gpu()->free_memory();
    note(fmt::format("the driver reports {} in use: {} planned, {} for the CUDA context, kernels and libraries",
                     human_bytes(used), human_bytes(layout.total), human_bytes(used - std::min(used, layout.total))));
  }
}

void Trainer::Run::reserve_memory() {
  const uint64_t needed = layout.total + plan::beside_the_arena(memory->device());
  const uint64_t cap = config.gpu_memory.empty() ? 0 : parse_bytes(config.gpu_memory);
  require(
      cap == 0 || needed <= cap,
      "this run needs {}, more than --gpu-memory {}; `agoq plan` with the same settings ranks what would make it fit",
      human_bytes(needed), config.gpu_memory);
  memory->reserve(layout.total);
}

void Trainer::Run::resume_or_start() {
  if (config.train_minutes > 0) speed_.emplace(config.train_minutes);
  if (latest_) {
    take_over(*latest_);
    latest_.reset();
  } else {
    const std::string told = load_first_weights(config, *state, coordinator_.readers());
    if (!told.empty()) note(told);
    if (saver_) keep_companions(coordinator_, config, model_folder_, false);
  }
  if (folder_) records_.emplace(*folder_, config, state->run_spec().recipe.to_json(state->spec()), step_);
}

void Trainer::Run::take_over(const Checkpoint& checkpoint) {
  const RunMetadata metadata = read_metadata(checkpoint.manifest(), checkpoint.path());
  require_same_run(checkpoint.path(), metadata, config, data_->train, identity_, vocabulary_);
  if (keep_fitted_schedule(config, metadata)) {
    iters_before_fit_ = metadata.iters_before_fit;
    speed_.reset();
  }
  note(load_state(checkpoint, *state));
  keep_companions(coordinator_, config, model_folder_, true);
  note(fmt::format("resumed from {} at step {}", checkpoint.path(), checkpoint.manifest().step));
  const std::string& source = config.model.empty() ? config.model_config : config.model;
  if (source.find('/') != std::string::npos && !std::filesystem::exists(source))
    note(fmt::format("{} is gone; the run goes on without it", source));
  if (!decay_given_) note(keep_decay(config, metadata.settings));
  const std::vector<std::string> changes = changed_settings(metadata.settings, config);
  if (!changes.empty()) note(fmt::format("changed since: {}", fmt::join(changes, ", ")));
  step_ = saved_step_ = checkpoint.manifest().step;
  skipped_ = metadata.skipped;
  skipped_in_a_row_ = metadata.skipped_in_a_row;
  without_targets_ = metadata.without_targets;
  tokens_ = metadata.tokens;
  state->optimizer().set_updates(state->context(), metadata.updates);
  if constexpr (kCudaBuild)
    if (memory->gpu() && !metadata.gemm_algorithms.empty() &&
        ops::restore_gemm_algorithms(*memory->gpu(), metadata.gemm_algorithms) == 0)
      note(
          "another GPU or version of cuBLASLt than before: matrix products choose their kernels again, and bits "
          "differ");
}

// Rank 0's clock decides for all.
void Trainer::Run::fit_schedule(double step_seconds) {
  speed_->step(step_seconds);
  const double left = 60 * config.train_minutes - seconds_since(start_);
  const std::vector<std::array<double, 2>> clocks =
      state->groups().world().values(std::array{speed_->seconds_per_step().value_or(0), left});
  const auto& [seconds, seconds_left] = clocks.front();
  if (seconds == 0) return;
  speed_.reset();
  iters_before_fit_ = config.train_iters;
  config = fitted(config, step_, seconds, seconds_left, parallelism.micro_batches);
  note(fmt::format("a step takes {:.3g} s: {} of at most {} steps end within --train-minutes {}", seconds,
                   config.train_iters, iters_before_fit_, config.train_minutes));
  if (records_) records_->config(config);
}

// What was planned beside what is held; the stack's peak is known after a step.
void Trainer::Run::write_memory() const {
  if (!saver_) return;
  Json json;
  json["rank"] = coordinator_.rank();
  json["predicted"] = bytes_by_owner(layout.owners);
  json["allocated"] = bytes_by_owner(memory->arena().by_owner());
  const std::vector<std::string> of_ranks = coordinator_.gather(json.dump());
  if (!records_) return;
  json["reference_bytes"] = bytes_by_owner(reference.owners);
  for (size_t rank = 1; rank < of_ranks.size(); ++rank) json["other_ranks"].push_back(Json::parse(of_ranks[rank]));
  records_->memory(json.dump());
}

// What all ranks do between two steps: a signal to any of them counts, and the clock is rank 0's.
Trainer::Run::StepDecision Trainer::Run::step_decision(const std::atomic<bool>& stop) const {
  std::string mine = stop ? "s" : "";
  if (coordinator_.is_rank0() && timed_steps_ > 0) {
    if (clock_.time_is_up()) mine += "t";
    if (saver_ && begun_step_ != step_ && clock_.save_is_due()) mine += "c";
  }
  StepDecision here;
  for (const std::string& of_rank : coordinator_.gather(mine)) {
    here.stop |= of_rank.find('s') != std::string::npos;
    here.time_is_up |= of_rank.find('t') != std::string::npos;
    here.save |= of_rank.find('c') != std::string::npos;
  }
  return here;
}

Summary Trainer::Run::run(const std::atomic<bool>& stop) {
  start_ = Clock::now();
  StepDecision here;
  while (step_ < config.train_iters) {
    here = step_decision(stop);
    if (here.stop || here.time_is_up) break;
    if (here.save) begin_save();
    const StepMetrics metrics = train_step();
    report(metrics);
    if (speed_) fit_schedule(1e-3 * metrics.step_ms);
    if (timed_steps_ == 1) write_memory();
    if (step_ == config.train_iters) break;  // saved before anything else is done with it
    if (config.eval_interval > 0 && step_ % config.eval_interval == 0) validate();
    if (config.save_interval > 0 && step_ % config.save_interval == 0) begin_save();
    if (saver_) tell_saved(saver_->poll());
  }
  save_last();
  const bool ended = step_ >= config.train_iters;
  // Killed between the last step and its summary: the held-out loss is yet to be measured.
  const bool summed_up = folder_ && timed_steps_ == 0 && std::filesystem::exists(folder_->summary());
  if (ended && (timed_steps_ > 0 || (saver_ && coordinator_.broadcast(summed_up ? "y" : "").empty()))) validate();
  Summary result = summary();
  result.stopped_early = !ended;
  result.time_is_up = !ended && !here.stop;
  if (ended && records_ && !summed_up) records_->summary(result, evaluation_error_);
  return result;
}

// Gradients and update of one step, whose targets weigh so much; sets train_loss_.
parallel::UpdateResult Trainer::Run::update(std::span<Batch> batches, double weight, double lr) {
  std::vector<parallel::MicroBatch> micro_batches;
  for (Batch& batch : batches) micro_batches.push_back(view(batch));
  Context& ctx = state->context();
  state->begin_step(static_cast<int>(batches.size()));
  state->forward_backward(micro_batches, static_cast<float>(1 / weight));
  state->optimizer().step(
      ctx, lr, {config.adam_beta1, config.adam_beta2, config.adam_eps, config.weight_decay, config.clip_grad});
  parallel::UpdateResult result = state->end_step();
  skipped_in_a_row_ = result.skipped ? skipped_in_a_row_ + 1 : 0;
  require(skipped_in_a_row_ < kSkippedInARowLimit,
          "{} steps in a row had non-finite gradients, first in {}; lower --lr or look at the data around step {}",
          skipped_in_a_row_, result.non_finite, step_);
  train_loss_ = state->take_loss() / weight;
  return result;
}

StepMetrics Trainer::Run::train_step() {
  const Clock::time_point start = Clock::now();
  const std::span<Batch> batches = batches_->fill(step_);
  Context& ctx = state->context();
  ctx.random.step = static_cast<uint32_t>(step_);
  ctx.exposed = exposed_ ? &*exposed_ : nullptr;
  state->count_fp8(counts_fp8(step_ + 1, config));
  const double lr = learning_rate(config, step_);
  // All ranks see the same weight. Without targets there is no gradient, and weight decay alone would shrink weights.
  const double weight = target_weight(batches);
  const bool nothing_counts = weight == 0;
  const parallel::UpdateResult updated =
      nothing_counts ? parallel::UpdateResult{0, true, {}} : update(batches, weight, lr);

  skipped_ += updated.skipped;
  without_targets_ += nothing_counts;
  ++step_;
  const uint64_t step_tokens = static_cast<uint64_t>(config.global_batch_size * config.seq_length);
  tokens_ += step_tokens;

  ctx.exposed = nullptr;  // evaluation is not measured
  const std::optional<ops::Fp8Counts> fp8_counts = state->take_fp8_counts();
  const ExposedSeconds exposed = exposed_ ? exposed_->take() : ExposedSeconds{};
  const double seconds = seconds_since(start);
  training_seconds_ += seconds;
  ++timed_steps_;
  StepMetrics m;
  m.step = step_;
  m.loss = nothing_counts ? NAN : train_loss_;
  m.counted = !nothing_counts;
  m.lr = lr;
  m.grad_norm = updated.grad_norm;
  m.step_ms = seconds * 1e3;
  m.tokens_per_second = static_cast<double>(step_tokens) / seconds;
  const double flops = model.flops_per_token(config.seq_length) * m.tokens_per_second;
  m.tflops = flops / 1e12;
  m.mfu = peak_ > 0 ? flops / peak_ : 0;
  m.memory_bytes = highest_total_;
  m.skipped = skipped_;
  m.without_targets = without_targets_;
  if (exposed_) m.exposed = highest(exposed);
  m.fp8 = fp8_counts;
  return m;
}

// Over all ranks.
ExposedSeconds Trainer::Run::highest(const ExposedSeconds& own) const {
  ExposedSeconds highest{};
  for (const ExposedSeconds& of_rank : state->groups().world().values(own))
    for (size_t kind = 0; kind < highest.size(); ++kind) highest[kind] = std::max(highest[kind], of_rank[kind]);
  return highest;
}

// What all micro-batches of the step weigh, those of other data ranks too.
double Trainer::Run::target_weight(std::span<const Batch> own) const {
  double sum = 0;
  for (const Batch& batch : own) sum += batch.target_weight();
  const std::vector<double> of_ranks = state->groups().data().values(sum);
  return std::accumulate(of_ranks.begin(), of_ranks.end(), 0.0);
}

void Trainer::Run::report(const StepMetrics& m) {
  if (records_) note(records_->step(m));
  if (!m.counted && m.without_targets == 1)
    note(fmt::format("in step {} nothing counts for the loss: it changes nothing; further such steps are counted",
                     m.step));
  if (coordinator_.is_rank0() && observer_.on_step) observer_.on_step(m);
}

// An evaluation that fails is told, and the run goes on: what was trained is worth more than a figure about it.
void Trainer::Run::validate() {
  if (!data_->valid) return;
  const int64_t samples = evaluated_samples(config, *data_->valid);
  const HeldOut measured = measure_held_out(coordinator_, *state, *data_->valid, samples);
  valid_loss_.reset();
  evaluation_error_ = measured.problem;
  if (!evaluation_error_.empty()) {
    if (coordinator_.is_rank0())
      log_warning("NO HELD-OUT LOSS at step {}: {}; the run goes on", step_, evaluation_error_);
    return;
  }
  valid_loss_ = measured.loss;
  if (records_) note(records_->valid(step_, measured.loss));
  if (coordinator_.is_rank0() && observer_.on_valid) observer_.on_valid(step_, measured.loss);
}

void Trainer::Run::begin_save() {
  if (!saver_) return;
  tell_saved(saver_->finish());
  clock_.save_begins();
  begun_step_ = step_;
  saver_->begin(state->context(), step_, state->named_tensors(), metadata_json());
}

// While steps are left, a save that failed (a full disk) is told loudly, the last checkpoint stays, and training goes
// on.
void Trainer::Run::tell_saved(const std::optional<SavedCheckpoint>& saved) {
  if (!saved) return;
  if (saved->error.empty()) {
    saved_step_ = saved->step;
    return note("saved " + saved->path);
  }
  note(fmt::format("NOT SAVED at step {}: {}; training goes on, the last checkpoint is {}", saved->step, saved->error,
                   saved_step_ < 0 ? "none" : fmt::format("of step {}", saved_step_)));
}

// The state that the run ends with; here a failure ends it as one.
void Trainer::Run::save_last() {
  if (!saver_) return;
  tell_saved(saver_->finish());
  if (step_ == saved_step_) return;
  begin_save();
  const auto saved = saver_->finish();
  require(saved->error.empty(), "{}", saved->error);
  tell_saved(saved);
}

std::string Trainer::Run::metadata_json() const {
  RunMetadata metadata;
  metadata.updates = state->optimizer().updates(state->context());
  metadata.skipped = skipped_;
  metadata.skipped_in_a_row = skipped_in_a_row_;
  metadata.without_targets = without_targets_;
  metadata.tokens = tokens_;
  metadata.iters_before_fit = iters_before_fit_;
  metadata.identity = identity_;
  metadata.model = model::config_to_json(model);
  if constexpr (kCudaBuild)
    if (memory->gpu()) metadata.gemm_algorithms = ops::gemm_algorithms(*memory->gpu());
  metadata.settings = config;
  metadata.model_folder = model_folder_;
  metadata.vocabulary = vocabulary_;
  return to_json(metadata);
}

Summary Trainer::Run::summary() const {
  Summary s;
  s.step = step_;
  s.valid_loss = valid_loss_;
  s.train_loss = train_loss_;
  s.tokens = tokens_;
  const double run_tokens = static_cast<double>(timed_steps_ * config.global_batch_size * config.seq_length);
  s.tokens_per_second = training_seconds_ > 0 ? run_tokens / training_seconds_ : 0;
  s.bytes_per_parameter = bytes_per_parameter(layout);
  s.saved_bytes_per_token_layer = saved_bytes_per_token_layer(layout);
  s.skipped = skipped_;
  s.without_targets = without_targets_;
  return s;
}

Trainer::Trainer(const TrainConfig& config, Observer observer, const Processes& processes)
    : run_(std::make_unique<Run>(config, std::move(observer), processes)) {}
Trainer::~Trainer() = default;
Summary Trainer::run(const std::atomic<bool>& stop) {
  return run_->run(stop);
}
int64_t Trainer::step() const {
  return run_->step();
}
const RunPlan& Trainer::plan() const {
  return *run_;
}
parallel::TrainingState& Trainer::state() {
  return *run_->state;
}

}  // namespace agoq::train
