#include "train/config/config.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <numbers>

#include "base/text.h"
#include "comm/limits.h"
#include "plan/stage_plan.h"
#include "train/byte_vocabulary.h"
#include "train/config/settings.h"

namespace agoq::train {
namespace {

namespace fs = std::filesystem;

codec::Codec gradient_codec(const char* flag, const std::string& name) {
  if (name == "int8" || name == "fp8" || name == "bf16" || name == "fp32") return *codec::codec_from_name(name);
  fail("{} {}: use int8, fp8, bf16 or fp32", flag, name);
}

codec::Codec moment_codec(const char* flag, const std::string& name, codec::Codec eight_bit) {
  if (name == "8bit") return eight_bit;
  if (name == "fp32") return codec::Codec::Fp32;
  fail("{} {}: use 8bit or fp32", flag, name);
}

void apply_baseline(TrainConfig& c) {
  if (c.baseline.empty()) return;
  require(c.baseline == "bf16" || c.baseline == "fp32", "--baseline {}: use bf16 or fp32", c.baseline);
  for (const auto& [name, value] : set_by_baseline(c)) assign(c, name, value);
}

std::string absolute(const std::string& path) {
  if (path.empty()) return path;
  return (fs::absolute(path) / "").lexically_normal().parent_path().string();  // without a slash at the end
}

// So that the settings mean the same wherever the run is read or goes on.
void make_paths_absolute(TrainConfig& c) {
  for (std::string* path : {&c.model, &c.finetune, &c.save}) *path = absolute(*path);
  if (c.tokenizer != kByteTokenizer) c.tokenizer = absolute(c.tokenizer);
  if (fs::exists(c.model_config)) c.model_config = absolute(c.model_config);  // not a preset's name
  for (std::vector<std::string>* words : {&c.data_path, &c.valid_data_path})
    for (size_t i = words->size() > 1 ? 1 : 0; i < words->size(); i += 2) (*words)[i] = absolute((*words)[i]);
}

void positive(const char* flag, int64_t value) {
  require(value > 0, "{} must be positive, not {}", flag, value);
}

void not_negative(const char* flag, int64_t value) {
  require(value >= 0, "{} must not be negative, but is {}", flag, value);
}

// The multiples of a unit around a number that is none: "4 or 8".
std::string neighbours(int64_t number, int64_t unit) {
  const int64_t below = number / unit * unit;
  return below > 0 ? fmt::format("{} or {}", below, below + unit) : fmt::format("{}", unit);
}

void check_batch(const TrainConfig& c, int64_t data_ranks) {
  positive("--micro-batch-size", c.micro_batch_size);
  positive("--global-batch-size", c.global_batch_size);
  positive("--seq-length", c.seq_length);
  const int64_t unit = c.micro_batch_size * data_ranks;
  const std::string what = data_ranks == 1 ? fmt::format("--micro-batch-size {}", c.micro_batch_size)
                                           : fmt::format("--micro-batch-size {} for each of {} data-parallel ranks",
                                                         c.micro_batch_size, data_ranks);
  require(c.global_batch_size % unit == 0, "--global-batch-size {} is not a multiple of {}; try {}",
          c.global_batch_size, what, neighbours(c.global_batch_size, unit));
}

// How many processes hold a copy of the model each, or their parts of one.
int64_t data_ranks_of(const TrainConfig& c, int world) {
  const int64_t model_ranks = train::model_ranks(c);
  positive("--num-virtual-stages-per-pipeline-rank", c.num_virtual_stages_per_pipeline_rank);
  not_negative("--decoder-first-pipeline-num-layers", c.decoder_first_pipeline_num_layers);
  not_negative("--decoder-last-pipeline-num-layers", c.decoder_last_pipeline_num_layers);
  require(world % model_ranks == 0,
          "--tensor-model-parallel-size {} times --pipeline-model-parallel-size {} is {}, which does not divide the {} "
          "processes of this run; start {}, or choose sizes whose product divides {}",
          c.tensor_model_parallel_size, c.pipeline_model_parallel_size, model_ranks, world,
          neighbours(world, model_ranks), world);
  require(c.num_virtual_stages_per_pipeline_rank == 1 || c.pipeline_model_parallel_size > 1,
          "--num-virtual-stages-per-pipeline-rank {} needs a pipeline; give --pipeline-model-parallel-size 2 or more",
          c.num_virtual_stages_per_pipeline_rank);
  return world / model_ranks;
}

void one_of(const char* flag, const std::string& value, std::initializer_list<const char*> choices) {
  require(std::find(choices.begin(), choices.end(), value) != choices.end(), "{} {}: use {}", flag, value,
          fmt::join(choices, " or "));
}

parallel::Sharding sharding_of(const TrainConfig& c) {
  using enum parallel::Sharding;
  const std::string& name = c.data_parallel_sharding_strategy;
  one_of("--data-parallel-sharding-strategy", name, {"no_shard", "optim", "optim_grads", "optim_grads_params"});
  return name == "no_shard" ? None : name == "optim" ? Optimizer : name == "optim_grads" ? Gradients : Weights;
}

void check_parallel(const TrainConfig& c) {
  positive("--num-distributed-optimizer-instances", c.num_distributed_optimizer_instances);
  require(
      c.num_distributed_optimizer_instances == 1 || sharding_of(c) != parallel::Sharding::None,
      "--num-distributed-optimizer-instances {}: with --data-parallel-sharding-strategy no_shard nothing is divided "
      "among the ranks of a group; leave one of them out",
      c.num_distributed_optimizer_instances);
  require(sharding_of(c) != parallel::Sharding::Weights || c.fp8_weight_cache != "on",
          "--fp8-weight-cache on keeps all weights on every rank, which --data-parallel-sharding-strategy "
          "optim_grads_params does not; leave one of them out");
  one_of("--pipeline-stage-widths", c.pipeline_stage_widths, {"dbca", "same"});
  sharding_of(c);
  links_of(c);
}

parallel::Parallelism parallelism_of(const TrainConfig& c, WorldRank place) {
  const auto number = [](int64_t n) { return static_cast<int>(n); };
  const int64_t data_ranks = data_ranks_of(c, place.world);
  parallel::Parallelism p;
  const int64_t replicas = c.num_distributed_optimizer_instances;
  require(data_ranks % replicas == 0,
          "--num-distributed-optimizer-instances {} does not divide {} data-parallel ranks into equal groups", replicas,
          data_ranks);
  p.mesh = parallel::training_mesh({number(c.tensor_model_parallel_size), number(data_ranks / replicas),
                                    number(c.pipeline_model_parallel_size), number(replicas)});
  p.rank = place.rank;
  p.chunks = number(c.num_virtual_stages_per_pipeline_rank);
  p.end_layers = {c.decoder_first_pipeline_num_layers, c.decoder_last_pipeline_num_layers};
  p.micro_batches = number(c.global_batch_size / (c.micro_batch_size * data_ranks));
  p.links = links_of(c);
  if (p.links.gpu_transport == comm::GpuTransport::Direct)
    comm::require_direct_fits(number(std::max(data_ranks / replicas, replicas)));
  p.stage_widths = c.pipeline_stage_widths == "dbca";
  p.sharding = sharding_of(c);
  const codec::Codec kept = gradient_codec("--main-grads-dtype", c.main_grads_dtype);
  p.grad_reduce = c.grad_reduce_dtype.empty() ? kept : gradient_codec("--grad-reduce-dtype", c.grad_reduce_dtype);
  require(
      p.grad_reduce == kept || kept == codec::Codec::Fp32,
      "--grad-reduce-dtype {} with --main-grads-dtype {}: gradients travel as they are kept; leave the first out, or "
      "keep them in fp32",
      c.grad_reduce_dtype, c.main_grads_dtype);
  return p;
}

constexpr int64_t kMostThreads = 1024;  // OpenMP's stacks run out of memory somewhere behind it

void check_schedule(const TrainConfig& c) {
  one_of("--prompt-bos", c.prompt_bos, {"auto", "always", "never"});
  not_negative("--train-iters", c.train_iters);
  require(c.train_minutes >= 0, "--train-minutes {} must not be negative", c.train_minutes);
  not_negative("--eval-interval", c.eval_interval);
  not_negative("--save-interval", c.save_interval);
  require(c.save_interval_minutes >= 0, "--save-interval-minutes must not be negative, but is {}",
          c.save_interval_minutes);
  require(c.exit_duration_in_mins >= 0, "--exit-duration-in-mins must not be negative, but is {}",
          c.exit_duration_in_mins);
  not_negative("--keep-checkpoints", c.keep_checkpoints);
  not_negative("--sample-tokens", c.sample_tokens);
  not_negative("--threads", c.threads);
  require(c.threads <= kMostThreads, "--threads {}: at most {}", c.threads, kMostThreads);
  positive("--eval-iters", c.eval_iters);
  positive("--log-interval", c.log_interval);
  require(c.weight_decay >= 0 && c.clip_grad >= 0, "--weight-decay and --clip-grad must not be negative");
  require(c.lr_decay_style == "cosine" || c.lr_decay_style == "linear" || c.lr_decay_style == "constant",
          "--lr-decay-style {}: use cosine, linear or constant", c.lr_decay_style);
  require(c.lr >= 0 && c.min_lr >= 0 && c.min_lr <= c.lr, "need 0 <= --min-lr ({}) <= --lr ({})", c.min_lr, c.lr);
  require(c.lr_warmup_iters >= 0 && c.lr_warmup_iters <= c.lr_decay_iters, "--lr-warmup-iters {} must lie in 0 to {}",
          c.lr_warmup_iters, c.lr_decay_iters);
  require(c.adam_beta1 >= 0 && c.adam_beta1 < 1 && c.adam_beta2 >= 0 && c.adam_beta2 < 1 && c.adam_eps > 0,
          "need 0 <= --adam-beta1, --adam-beta2 < 1 and --adam-eps > 0");
  require(c.valid_fraction >= 0 && c.valid_fraction < 1, "--valid-fraction {} must lie in [0, 1)", c.valid_fraction);
}

// The operands of --fp8-recipe. Along tokens, for dW, one scale serves a whole matrix unless it is in blocks: e4m3 has
// range enough, and rows that a kernel has written are turned without looking for maxima again.
ops::Fp8Recipe fp8_recipe(const TrainConfig& c) {
  using enum ops::Granularity;
  const DType gradient = c.fp8_format == "hybrid" ? DType::E5M2 : DType::E4M3;
  const auto recipe = [&](ops::Granularity activations, ops::Granularity weights, ops::Granularity dw) {
    ops::Fp8Recipe r{
        {DType::E4M3, activations}, {DType::E4M3, weights}, {gradient, activations}, {gradient, dw}, {DType::E4M3, dw}};
    // Fast sums lose terms that share a sign, as those of dW do. In forward they cost nothing that shows beside the
    // rounding of the operands (tests/cuda/scaled_product_test.cc).
    if (activations != Block1x128) r.forward = ops::Accumulation::Fast;
    return r;
  };
  if (c.fp8_recipe == "tensorwise") return recipe(Tensor, Tensor, Tensor);
  if (c.fp8_recipe == "delayed") {
    ops::Fp8Recipe delayed = recipe(Tensor, Tensor, Tensor);
    delayed.delayed = {c.fp8_amax_history_len, c.fp8_amax_compute_algo == "most_recent", c.fp8_margin};
    return delayed;
  }
  if (c.fp8_recipe == "rowwise") return recipe(Row, Row, Tensor);
  require(c.fp8_format == "e4m3",
          "--fp8-recipe blockwise: its gradients are e4m3, as blocks need no more range; use "
          "--fp8-format e4m3");
  return recipe(Block1x128, Block128x128, Block1x128);
}

// What only --fp8-recipe delayed has a use for.
void check_delayed(const TrainConfig& c) {
  constexpr int64_t kMostHistory = 65536;
  require(c.fp8_amax_history_len > 0 && c.fp8_amax_history_len <= kMostHistory,
          "--fp8-amax-history-len {} must lie in 1 to {}", c.fp8_amax_history_len, kMostHistory);
  one_of("--fp8-amax-compute-algo", c.fp8_amax_compute_algo, {"max", "most_recent"});
  require(c.fp8_margin >= 0 && c.fp8_margin <= ops::kMostScaleMargin, "--fp8-margin {} must lie in 0 to {}",
          c.fp8_margin, ops::kMostScaleMargin);
  const TrainConfig none;
  const bool given = c.fp8_amax_history_len != none.fp8_amax_history_len ||
                     c.fp8_amax_compute_algo != none.fp8_amax_compute_algo || c.fp8_margin != none.fp8_margin;
  require(!given || (c.fp8_recipe == "delayed" && !c.fp8_format.empty()),
          "--fp8-amax-history-len, --fp8-amax-compute-algo and --fp8-margin are for --fp8-recipe delayed, with an "
          "--fp8-format");
  require(c.fp8_recipe != "delayed" || c.fp8_weight_cache != "on",
          "--fp8-weight-cache on: --fp8-recipe delayed casts weights in every micro-batch; leave one of them out");
}

model::Fp8Layers fp8_layers(const TrainConfig& c, int64_t layers) {
  one_of("--fp8-recipe", c.fp8_recipe, {"tensorwise", "delayed", "rowwise", "blockwise"});
  one_of("--fp8-weight-cache", c.fp8_weight_cache, {"auto", "on", "off"});
  check_delayed(c);
  const int64_t first = c.num_layers_at_start_in_bf16, last = c.num_layers_at_end_in_bf16;
  require(first >= 0, "--num-layers-at-start-in-bf16 must not be negative, but is {}", first);
  require(last >= 0, "--num-layers-at-end-in-bf16 must not be negative, but is {}", last);
  if (c.fp8_format.empty()) {
    const TrainConfig defaults;
    require(c.fp8_recipe == defaults.fp8_recipe, "--fp8-recipe {} is one of --fp8-format, which is not set",
            c.fp8_recipe);
    require(c.fp8_weight_cache != "on", "--fp8-weight-cache on keeps weights in --fp8-format, which is not set");
    require(!c.first_last_layers_bf16, "--first-last-layers-bf16 excepts layers from --fp8-format, which is not set");
    return {};
  }
  one_of("--fp8-format", c.fp8_format, {"e4m3", "hybrid"});
  const bool cached = c.fp8_weight_cache == "on";
  if (!c.first_last_layers_bf16) return {fp8_recipe(c), 0, 0, cached};
  require(first < layers && last < layers - first,
          "--num-layers-at-start-in-bf16 {} and --num-layers-at-end-in-bf16 {} leave none of {} layers to --fp8-format",
          first, last, layers);
  return {fp8_recipe(c), first, last, cached};
}

}  // namespace

std::string fp8_text(const TrainConfig& c, int64_t layers) {
  if (c.fp8_format.empty()) return "";
  std::string text = fmt::format("products in 8-bit floats ({}, {})", c.fp8_format, c.fp8_recipe);
  if (!c.first_last_layers_bf16) return text;
  std::vector<std::string> excepted;
  const auto add = [&](int64_t begin, int64_t end) {
    if (begin + 1 == end) excepted.push_back(std::to_string(begin));
    if (begin + 1 < end) excepted.push_back(fmt::format("{} to {}", begin, end - 1));
  };
  add(0, c.num_layers_at_start_in_bf16);
  add(layers - c.num_layers_at_end_in_bf16, layers);
  if (excepted.empty()) return text;
  const bool one = c.num_layers_at_start_in_bf16 + c.num_layers_at_end_in_bf16 == 1;
  return fmt::format("{}; those of layer{} {} in {}", text, one ? "" : "s", fmt::join(excepted, " and "),
                     c.compute_dtype);
}

comm::GroupOptions links_of(const TrainConfig& c) {
  one_of("--gpu-transport", c.gpu_transport, {"auto", "nccl", "staged", "direct"});
  require(c.distributed_timeout_minutes > 0, "--distributed-timeout-minutes must be positive, not {}",
          c.distributed_timeout_minutes);
  comm::GroupOptions links;
  if (c.gpu_transport == "nccl") links.gpu_transport = comm::GpuTransport::Nccl;
  if (c.gpu_transport == "staged") links.gpu_transport = comm::GpuTransport::Staged;
  if (c.gpu_transport == "direct") links.gpu_transport = comm::GpuTransport::Direct;
  links.timeout = std::chrono::seconds(std::max<int64_t>(1, std::llround(c.distributed_timeout_minutes * 60)));
  return links;
}

Device resolve_device(const std::string& name) {
  require(name == "auto" || name == "cpu" || name == "cuda", "--device {}: use auto, cpu or cuda", name);
  if (name == "cpu") return Device::Cpu;
  if constexpr (kCudaBuild) {
    const std::string problem = why_no_gpu();
    require(name == "auto" || problem.empty(), "--device cuda: {}", problem);
    return problem.empty() ? Device::Cuda : Device::Cpu;
  }
  require(name == "auto",
          "--device cuda: this build has no CUDA backend; build it where CUDA is installed, or use --device cpu");
  return Device::Cpu;
}

int model_ranks(const TrainConfig& c) {
  positive("--tensor-model-parallel-size", c.tensor_model_parallel_size);
  positive("--pipeline-model-parallel-size", c.pipeline_model_parallel_size);
  require(c.tensor_model_parallel_size <= comm::kMostRanks &&
              c.pipeline_model_parallel_size <= comm::kMostRanks / c.tensor_model_parallel_size,
          "--tensor-model-parallel-size {} times --pipeline-model-parallel-size {} is more than the {} processes that "
          "a run may have",
          c.tensor_model_parallel_size, c.pipeline_model_parallel_size, comm::kMostRanks);
  return static_cast<int>(c.tensor_model_parallel_size * c.pipeline_model_parallel_size);
}

TrainConfig resolved(TrainConfig c, const model::ModelConfig& model, Device device, int world) {
  make_paths_absolute(c);
  apply_baseline(c);
  if (c.compute_dtype.empty()) c.compute_dtype = device == Device::Cuda ? "bf16" : "fp32";
  require(c.compute_dtype == "bf16" || c.compute_dtype == "fp32", "--compute-dtype {}: use bf16 or fp32",
          c.compute_dtype);
  if (c.seq_length == 0) c.seq_length = std::min<int64_t>(2048, model.max_positions);
  require(c.seq_length <= model.max_positions,
          "--seq-length {} is more than the {} positions of the model; --max-position-embeddings {} allows it",
          c.seq_length, model.max_positions, c.seq_length);
  require(c.eod_token < model.vocab_size, "--eod-token {} is outside the model's vocabulary of {}", c.eod_token,
          model.vocab_size);
  const int64_t data_ranks = data_ranks_of(c, world);
  if (c.global_batch_size == 0) c.global_batch_size = c.micro_batch_size * data_ranks;
  if (c.lr_decay_iters == 0) c.lr_decay_iters = c.train_iters;
  check_batch(c, data_ranks);
  check_parallel(c);
  check_schedule(c);
  return c;
}

parallel::RunSpec make_run_spec(const TrainConfig& c, const model::ModelConfig& model, WorldRank place) {
  parallel::RunSpec run_spec;
  run_spec.model = model;
  run_spec.precision.compute = c.compute_dtype == "bf16" ? DType::BF16 : DType::F32;
  require(c.main_params_dtype == "split" || c.main_params_dtype == "fp32", "--main-params-dtype {}: use split or fp32",
          c.main_params_dtype);
  run_spec.precision.master = c.main_params_dtype == "split" ? model::MasterForm::Split : model::MasterForm::Fp32;
  run_spec.precision.main_grads = gradient_codec("--main-grads-dtype", c.main_grads_dtype);
  require(c.gradient_rounding == "stochastic" || c.gradient_rounding == "nearest",
          "--gradient-rounding {}: use stochastic or nearest", c.gradient_rounding);
  run_spec.precision.stochastic = c.gradient_rounding == "stochastic";
  run_spec.precision.exp_avg = moment_codec("--exp-avg-dtype", c.exp_avg_dtype, codec::Codec::Dyn8);
  run_spec.precision.exp_avg_sq = moment_codec("--exp-avg-sq-dtype", c.exp_avg_sq_dtype, codec::Codec::Dyn8Unsigned);
  run_spec.precision.fp8 = fp8_layers(c, model.layers);
  const model::LayerSpec spec(model);
  run_spec.recipe = model::make_recipe(model, spec, model::policy_from_name(c.activation_policy),
                                       model::recompute_from_name(c.recompute_granularity), c.activation_override);
  run_spec.deterministic = c.deterministic_mode;
  run_spec.micro_batch_size = c.micro_batch_size;
  run_spec.sequence_length = c.seq_length;
  run_spec.parallelism = parallelism_of(c, place);
  return run_spec;
}

parallel::RunSpec planned_run_spec(const TrainConfig& c, const model::ModelConfig& model, Device target,
                                   WorldRank place) {
  parallel::RunSpec cached = make_run_spec(c, model, place), run_spec = cached;
  run_spec.precision.fp8.cache_weights = false;  // a cache changes no bit, and so no widths
  run_spec = plan::with_stage_widths(run_spec, target);
  cached.recipe = run_spec.recipe;
  if (cached.precision.fp8.cache_weights) return cached;
  const std::optional<ops::Fp8Recipe>& recipe = run_spec.precision.fp8.recipe;
  if (!recipe || recipe->delayed || run_spec.parallelism.sharding == parallel::Sharding::Weights ||
      c.fp8_weight_cache != "auto" || c.gpu_memory.empty() || run_spec.parallelism.micro_batches < 2)
    return run_spec;
  cached.precision.fp8.cache_weights = true;
  const size_t needed = plan::largest_total(cached, target) + plan::beside_the_arena(target);
  return needed <= parse_bytes(c.gpu_memory) ? cached : run_spec;
}

double learning_rate(const TrainConfig& c, int64_t step) {
  if (step < c.lr_warmup_iters) return c.lr * static_cast<double>(step + 1) / static_cast<double>(c.lr_warmup_iters);
  if (c.lr_decay_style == "constant") return c.lr;
  const double span = static_cast<double>(std::max<int64_t>(1, c.lr_decay_iters - c.lr_warmup_iters));
  const double progress = std::min(1.0, static_cast<double>(step - c.lr_warmup_iters) / span);
  const double share = c.lr_decay_style == "linear" ? 1 - progress : 0.5 * (1 + std::cos(std::numbers::pi * progress));
  return c.min_lr + (c.lr - c.min_lr) * share;
}

}  // namespace agoq::train
