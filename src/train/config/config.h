// Every setting of a run, with its default. The command line and the TOML file are made from this one struct
// (cli/options.cc); names are Megatron-LM's where it has one.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "parallel/training_state.h"

namespace agoq::train {

struct TrainConfig {
  // Model: one of the first three says with which weights the run begins.
  std::string model;                    // Hugging Face folder
  std::string model_config;             // preset or config.json, random weights
  std::string finetune;                 // run folder, checkpoints folder or checkpoint
  int64_t max_position_embeddings = 0;  // 0: the model's
  std::string ignore_config_keys;       // "a,b": keys of config.json that are taken as if they were not there

  // Data
  std::vector<std::string> data_path;        // PATH, or WEIGHT PATH WEIGHT PATH ...
  std::vector<std::string> valid_data_path;  // empty: the last valid_fraction of data_path
  double valid_fraction = 0.05;
  std::string data_dtype = "uint16";                             // of flat .bin files: uint16 or int32
  std::string document_separator;                                // a line that ends a document of a text file
  int64_t eod_token = -1;                                        // -1: the data's, or the model's eos
  std::optional<bool> reset_position_ids, reset_attention_mask;  // none: on for data with a .mask
  bool eod_mask_loss = false;
  std::string tokenizer;  // of the tokens: "byte", a folder or a tokenizer.json; empty: the data's or the model's
  std::string prompt_bos = "auto";  // auto, always or never

  // Batch and schedule
  int64_t seq_length = 0;  // 0: 2048, or less if the model has fewer positions
  int64_t micro_batch_size = 1;
  int64_t global_batch_size = 0;  // sequences per step; 0: one micro-batch
  int64_t train_iters = 1000;
  double train_minutes = 0;  // 0: train_iters steps, whatever they take
  double lr = 3e-4, min_lr = 0;
  std::string lr_decay_style = "cosine";  // cosine, linear or constant
  int64_t lr_warmup_iters = 0;
  int64_t lr_decay_iters = 0;  // 0: train_iters, of a resumed run as it began
  double weight_decay = 0.1, adam_beta1 = 0.9, adam_beta2 = 0.95, adam_eps = 1e-8;
  double clip_grad = 1.0;
  uint64_t seed = 1234;

  // Precision
  std::string activation_policy = "agoq";
  std::string activation_override;
  std::string recompute_granularity = "none";
  std::string compute_dtype;  // empty: fp32 on the CPU, bf16 on a GPU
  std::string main_params_dtype = "split";
  std::string main_grads_dtype = "int8";
  std::string gradient_rounding = "stochastic";
  std::string exp_avg_dtype = "8bit", exp_avg_sq_dtype = "8bit";
  std::string fp8_format;                     // e4m3 or hybrid; empty: products in the compute type
  std::string fp8_recipe = "rowwise";         // tensorwise, delayed, rowwise or blockwise
  int64_t fp8_amax_history_len = 1024;        // of delayed: steps
  std::string fp8_amax_compute_algo = "max";  // max or most_recent
  int64_t fp8_margin = 0;
  std::string fp8_weight_cache = "auto";  // on or off
  bool first_last_layers_bf16 = false;    // the layers at the ends multiply in the compute type
  int64_t num_layers_at_start_in_bf16 = 1, num_layers_at_end_in_bf16 = 1;
  std::string baseline;  // bf16 or fp32: sets every axis above to unquantized training

  // Processes: data parallel over those that the two axes below leave
  int64_t tensor_model_parallel_size = 1, pipeline_model_parallel_size = 1;
  int64_t num_virtual_stages_per_pipeline_rank = 1;
  int64_t decoder_first_pipeline_num_layers = 0, decoder_last_pipeline_num_layers = 0;  // 0: an even share
  std::string pipeline_stage_widths = "dbca";                                           // dbca or same
  int64_t num_distributed_optimizer_instances = 1;
  std::string data_parallel_sharding_strategy = "optim";  // ZeRO-1; settings.cc has all
  std::string grad_reduce_dtype;                          // empty: main_grads_dtype
  std::string gpu_transport = "auto";                     // auto, nccl, staged, direct
  double distributed_timeout_minutes = 10;
  bool rendezvous_open = false;  // whoever reaches the ranks may join

  // Run
  std::string save;                   // run folder; empty: nothing is written
  int64_t save_interval = 0;          // steps between checkpoints; 0: only by time, and at the end
  double save_interval_minutes = 30;  // 0: never
  double exit_duration_in_mins = 0;   // since the run was started; 0: never
  int64_t keep_checkpoints = 2;
  int64_t eval_interval = 0, eval_iters = 10;
  int64_t log_interval = 1;
  int64_t sample_tokens = 0;  // generate this many tokens at the end
  std::string sample_prompt;
  std::string device = "auto";  // auto, cpu, cuda
  bool deterministic_mode = false;
  std::string gpu_memory;  // cap, e.g. 23GiB
  int64_t threads = 0;     // 0: all cores
};

// Processes that hold one copy of the model together: tensor times pipeline.
int model_ranks(const TrainConfig& config);
// A process among those of a run.
struct WorldRank {
  int rank = 0, world = 1;
};
// Fills what was left open (sequence length, compute type, batch, baseline), makes paths absolute and refuses
// impossible combinations.
TrainConfig resolved(TrainConfig config, const model::ModelConfig& model, Device device, int world = 1);
// What memory planning needs of a resolved config, before stages of a pipeline get widths of their own
// (plan/stage_plan.h).
parallel::RunSpec make_run_spec(const TrainConfig& config, const model::ModelConfig& model, WorldRank place = {});
// The same with what depends on the memory that it takes: widths of stages, and whether weights are cached in 8-bit
// floats.
parallel::RunSpec planned_run_spec(const TrainConfig& config, const model::ModelConfig& model, Device target,
                                   WorldRank place = {});
// "products in 8-bit floats (e4m3, rowwise); those of layers 0 and 31 in bf16", of a resolved config for a model of so
// many layers; empty without --fp8-format.
std::string fp8_text(const TrainConfig& config, int64_t layers);
Device resolve_device(const std::string& name);
comm::GroupOptions links_of(const TrainConfig& config);  // how GPUs reach each other
// Learning rate of a step (0-based): linear warm-up, then cosine, linear or constant decay to min_lr.
double learning_rate(const TrainConfig& config, int64_t step);

}  // namespace agoq::train
