#include "train/config/settings.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <limits>
#include <string>

#include "base/mapped_file.h"
#include "base/text.h"
#include "parallel/unquantized.h"
#include "train/config/flat_toml.h"

namespace agoq::train {
namespace {

using C = TrainConfig;

constexpr std::string_view kOpen = "auto";  // a switch that nobody has set

constexpr auto kSettings = std::to_array<Setting>({
    {"Model", "model", "FOLDER", "start from the weights of this Hugging Face folder", &C::model},
    {"Model", "model-config", "NAME|PATH",
     "start from random weights: a preset (llama3-8b, demo, ...) or a config.json", &C::model_config},
    {"Model", "finetune", "FOLDER",
     "start from the weights of this run, checkpoints or checkpoint folder: a new run from step 0, in a --save folder "
     "of its own",
     &C::finetune},
    {"Model", "max-position-embeddings", "N",
     "longest sequence, where it is to be longer than the model was made for; 0: the model's",
     &C::max_position_embeddings},
    {"Model", "ignore-config-keys", "A,B...",
     "go on although config.json has these keys, whose meaning is not known, as if it did not have them",
     &C::ignore_config_keys},

    {"Data", "data-path", "PATH...",
     "training data: one path, or weights and paths in turn (0.7 a 0.3 b); Megatron-LM .bin/.idx, "
     "flat token .bin, or UTF-8 text",
     &C::data_path},
    {"Data", "valid-data-path", "PATH...", "held-out data; without it the end of the training data is held out",
     &C::valid_data_path},
    {"Data", "valid-fraction", "X", "share of --data-path that is held out", &C::valid_fraction},
    {"Data", "data-dtype", "uint16|int32", "type of the tokens in flat .bin files", &C::data_dtype},
    {"Data", "document-separator", "LINE", "a line that ends a document of a text file; empty: one document",
     &C::document_separator},
    {"Data", "eod-token", "ID", "end-of-document token; -1: the data's, or the model's eos", &C::eod_token},
    {"Data", "reset-position-ids", "",
     "count positions from 0 again where a document begins, or not; on by itself for data with a .mask",
     &C::reset_position_ids},
    {"Data", "reset-attention-mask", "",
     "attention never looks back over the beginning of a document, or it does; on by itself for data with a .mask",
     &C::reset_attention_mask},
    {"Data", "eod-mask-loss", "", "do not train to predict what follows the end of a document", &C::eod_mask_loss},
    {"Data", "tokenizer", "byte|PATH",
     "whose tokens these are, for samples: bytes, a folder or a tokenizer.json; empty: as the data or the model says",
     &C::tokenizer},
    {"Data", "prompt-bos", "auto|always|never",
     "begin prompts with the bos token; auto: as the documents of the data begin or, where it does not tell, as the "
     "tokenizer begins a text",
     &C::prompt_bos},

    {"Batch and schedule", "seq-length", "N", "tokens of a sequence; 0: 2048, or what the model allows",
     &C::seq_length},
    {"Batch and schedule", "micro-batch-size", "N", "sequences that are computed at once; memory grows with it",
     &C::micro_batch_size},
    {"Batch and schedule", "global-batch-size", "N",
     "sequences of one step, a multiple of the micro-batch; 0: one micro-batch", &C::global_batch_size},
    {"Batch and schedule", "train-iters", "N", "steps of the whole run", &C::train_iters},
    {"Batch and schedule", "train-minutes", "X",
     "take only as many of these steps as end within so many minutes: chosen from the speed of the first ones, "
     "together "
     "with warm-up and decay; 0: all",
     &C::train_minutes},
    {"Batch and schedule", "lr", "X", "highest learning rate", &C::lr},
    {"Batch and schedule", "min-lr", "X", "learning rate at the end of the decay", &C::min_lr},
    {"Batch and schedule", "lr-decay-style", "cosine|linear|constant", "how the learning rate falls",
     &C::lr_decay_style},
    {"Batch and schedule", "lr-warmup-iters", "N", "steps in which the learning rate rises", &C::lr_warmup_iters},
    {"Batch and schedule", "lr-decay-iters", "N",
     "step at which the decay ends; 0: --train-iters of the command that began the run", &C::lr_decay_iters},
    {"Batch and schedule", "weight-decay", "X", "of matrices; norms, biases and embeddings have none",
     &C::weight_decay},
    {"Batch and schedule", "adam-beta1", "X", "AdamW's decay of the first moment", &C::adam_beta1},
    {"Batch and schedule", "adam-beta2", "X", "AdamW's decay of the second moment", &C::adam_beta2},
    {"Batch and schedule", "adam-eps", "X", "AdamW's epsilon", &C::adam_eps},
    {"Batch and schedule", "clip-grad", "X", "scale gradients down to this global norm; 0: never", &C::clip_grad},
    {"Batch and schedule", "seed", "N", "of initial weights, data order and stochastic rounding", &C::seed},

    {"Precision", "activation-policy", "agoq|paper|fp8|bf16|fp32",
     "how forward keeps activations for backward: about 4 bits, "
     "the paper's choices, 8 bits, or unquantized",
     &C::activation_policy},
    {"Precision", "activation-override", "TEXT",
     "exceptions from the policy, for example 'layers=0-1,mlp=fp8;norm=fp5'", &C::activation_override},
    {"Precision", "recompute-granularity", "none|selective|full",
     "compute again in backward instead of keeping: nothing more, "
     "attention's output, or whole layers",
     &C::recompute_granularity},
    {"Precision", "compute-dtype", "bf16|fp32",
     "type of activations and matrix products; empty: fp32 on a CPU, bf16 on a GPU", &C::compute_dtype},
    {"Precision", "main-params-dtype", "split|fp32",
     "master weights: bf16 + 16-bit correction (exactly fp32 in 4 bytes), or fp32", &C::main_params_dtype},
    {"Precision", "main-grads-dtype", "int8|fp8|bf16|fp32", "gradients that micro-batches accumulate",
     &C::main_grads_dtype},
    {"Precision", "gradient-rounding", "stochastic|nearest", "rounding of 8-bit gradients", &C::gradient_rounding},
    {"Precision", "exp-avg-dtype", "8bit|fp32", "AdamW's first moment", &C::exp_avg_dtype},
    {"Precision", "exp-avg-sq-dtype", "8bit|fp32", "AdamW's second moment", &C::exp_avg_sq_dtype},
    {"Precision", "fp8-format", "e4m3|hybrid",
     "multiply in 8-bit floats inside layers while training (GPUs: Hopper; Ada and Blackwell with --fp8-recipe "
     "tensorwise or delayed): e4m3, or with gradients in e5m2; empty: in --compute-dtype",
     &C::fp8_format},
    {"Precision", "fp8-recipe", "tensorwise|delayed|rowwise|blockwise",
     "what shares a scale in --fp8-format: a tensor (delayed: known from earlier steps), a row, or 128 numbers of a "
     "row (of "
     "weights, 128 x 128; with e4m3 alone)",
     &C::fp8_recipe},
    {"Precision", "fp8-amax-history-len", "N",
     "of --fp8-recipe delayed: the steps whose largest magnitudes it remembers", &C::fp8_amax_history_len},
    {"Precision", "fp8-amax-compute-algo", "max|most_recent",
     "of --fp8-recipe delayed: a scale follows the largest magnitude of these steps, or of the last one",
     &C::fp8_amax_compute_algo},
    {"Precision", "fp8-margin", "N", "of --fp8-recipe delayed: a scale leaves room for 2^N times that magnitude",
     &C::fp8_margin},
    {"Precision", "fp8-weight-cache", "auto|on|off",
     "with --fp8-format, cast weights once a step instead of for every micro-batch, and keep both codes: 2 bytes a "
     "parameter of the layers; auto: if a step has several micro-batches and --gpu-memory is given and has room",
     &C::fp8_weight_cache},
    {"Precision", "first-last-layers-bf16", "",
     "with --fp8-format, the layers at both ends multiply in --compute-dtype", &C::first_last_layers_bf16},
    {"Precision", "num-layers-at-start-in-bf16", "N", "how many, with --first-last-layers-bf16",
     &C::num_layers_at_start_in_bf16},
    {"Precision", "num-layers-at-end-in-bf16", "N", "how many, with --first-last-layers-bf16",
     &C::num_layers_at_end_in_bf16},
    {"Precision", "baseline", "bf16|fp32",
     "train without any quantization, to compare with: sets all of the above, and is refused beside one that differs",
     &C::baseline},

    {"Parallel", "tensor-model-parallel-size", "N", "processes that hold each layer together, and divide its tokens",
     &C::tensor_model_parallel_size},
    {"Parallel", "pipeline-model-parallel-size", "N", "stages of the pipeline, each with some of the layers",
     &C::pipeline_model_parallel_size},
    {"Parallel", "num-virtual-stages-per-pipeline-rank", "N",
     "chunks of layers that each stage has: more than 1 interleaves the schedule",
     &C::num_virtual_stages_per_pipeline_rank},
    {"Parallel", "decoder-first-pipeline-num-layers", "N", "layers of the first stage; 0: an even share",
     &C::decoder_first_pipeline_num_layers},
    {"Parallel", "decoder-last-pipeline-num-layers", "N", "layers of the last stage; 0: an even share",
     &C::decoder_last_pipeline_num_layers},
    {"Parallel", "pipeline-stage-widths", "dbca|same",
     "stages that hold fewer activations keep them in more bits, or in the same as the first",
     &C::pipeline_stage_widths},
    {"Parallel", "data-parallel-sharding-strategy", "no_shard|optim|optim_grads|optim_grads_params",
     "what data-parallel ranks divide: nothing; moments and the update (ZeRO-1, the default); gradients, too (ZeRO-2: "
     "summed for every micro-batch); weights, too (ZeRO-3: gathered layer by layer where they are read)",
     &C::data_parallel_sharding_strategy},
    {"Parallel", "num-distributed-optimizer-instances", "N",
     "groups of data-parallel ranks: ranks divide that within their group, and groups hold the same (HSDP)",
     &C::num_distributed_optimizer_instances},
    {"Parallel", "grad-reduce-dtype", "int8|fp8|bf16|fp32",
     "format of gradients between ranks; empty: --main-grads-dtype. A format other than that needs fp32 main gradients",
     &C::grad_reduce_dtype},
    {"Parallel", "gpu-transport", "auto|nccl|staged|direct",
     "how GPUs talk to each other: NCCL, or through host memory, which ranks that share a GPU need; direct: as auto, "
     "but gradients are exchanged in place, in each other's memory",
     &C::gpu_transport},
    {"Parallel", "distributed-timeout-minutes", "X", "how long a process waits for another before the run ends",
     &C::distributed_timeout_minutes},
    {"Parallel", "rendezvous-open", "",
     "processes need no secret to join the run (AGOQ_JOB_SECRET): only on networks that nobody else can reach",
     &C::rendezvous_open},

    {"Run", "save", "FOLDER",
     "run folder for metrics and checkpoints; the same command again continues it; empty: write nothing", &C::save},
    {"Run", "save-interval", "N", "steps between checkpoints; 0: only by time, and at the end", &C::save_interval},
    {"Run", "save-interval-minutes", "X",
     "save as well when so many minutes have passed since the last checkpoint was begun; 0: never",
     &C::save_interval_minutes},
    {"Run", "exit-duration-in-mins", "X",
     "save and end, with exit status 0, at the first step boundary after so many minutes; the same command goes on; "
     "0: never",
     &C::exit_duration_in_mins},
    {"Run", "keep-checkpoints", "N", "how many of the last checkpoints to keep; 0: all", &C::keep_checkpoints},
    {"Run", "eval-interval", "N", "steps between held-out losses; 0: only at the end", &C::eval_interval},
    {"Run", "eval-iters", "N", "micro-batches of one held-out loss", &C::eval_iters},
    {"Run", "log-interval", "N", "steps between log lines", &C::log_interval},
    {"Run", "sample-tokens", "N", "tokens of text to generate at the end", &C::sample_tokens},
    {"Run", "sample-prompt", "TEXT", "how that text begins", &C::sample_prompt},
    {"Run", "device", "auto|cpu|cuda", "where to compute", &C::device},
    {"Run", "deterministic-mode", "",
     "the same bits in every run of the same settings on a GPU, with a slower gradient of attention; a CPU always is",
     &C::deterministic_mode},
    {"Run", "gpu-memory", "SIZE", "memory of the device that may be used, for example 23GiB; empty: what it has",
     &C::gpu_memory},
    {"Run", "threads", "N", "CPU threads; 0: all cores", &C::threads},
});

template <class Number>
Number parse_number(const Setting& setting, std::string_view text, std::string_view kind) {
  std::string_view digits = text;
  if (digits.size() > 1 && digits[0] == '+' && digits[1] != '-') digits.remove_prefix(1);
  Number value{};
  const auto [rest, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  require(error != std::errc::result_out_of_range, "{}: {} is out of range", setting.name, text);
  require(error == std::errc{} && rest == digits.data() + digits.size(), "{}: '{}' is not {}", setting.name, text,
          kind);
  return value;
}

void parse_into(const Setting&, std::string_view text, std::string& out) {
  out = text;
}
void parse_into(const Setting& s, std::string_view text, int64_t& out) {
  out = parse_number<int64_t>(s, text, "a whole number");
}
void parse_into(const Setting& s, std::string_view text, uint64_t& out) {
  out = parse_number<uint64_t>(s, text, "a whole number from 0 up");
}
void parse_into(const Setting& s, std::string_view text, double& out) {
  const double value = parse_number<double>(s, text, "a number");
  require(std::isfinite(value), "{}: '{}' is not a finite number", s.name, text);
  out = value;
}
void parse_into(const Setting& s, std::string_view text, bool& out) {
  require(text == "true" || text == "false", "{}: '{}' is neither true nor false", s.name, text);
  out = text == "true";
}

void parse_into(const Setting& s, std::string_view text, std::optional<bool>& out) {
  if (text == kOpen) {
    out.reset();
    return;
  }
  require(text == "true" || text == "false", "{}: '{}' is neither true nor false nor {}", s.name, text, kOpen);
  out = text == "true";
}

std::string toml_value(const std::optional<bool>& value) {
  return value ? fmt::format("{}", *value) : toml_string(std::string(kOpen));
}
std::string toml_value(const std::string& value) {
  return toml_string(value);
}
std::string toml_value(const std::vector<std::string>& value) {
  return toml_array(value);
}
std::string toml_value(double value) {
  const std::string text = fmt::format("{}", value);  // the shortest that reads back the same
  return text.find_first_of(".e") == std::string::npos ? text + ".0" : text;
}
// TOML's integers have 64 bits with their sign; a seed beyond them is text.
std::string toml_value(uint64_t value) {
  const std::string text = std::to_string(value);
  return value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()) ? toml_string(text) : text;
}
template <class Plain>
std::string toml_value(Plain value) {
  return fmt::format("{}", value);
}

}  // namespace

std::span<const Setting> all_settings() {
  return kSettings;
}

const Setting& find_setting(std::string_view name) {
  std::vector<std::string> names;
  for (const Setting& setting : kSettings) {
    if (setting.name == name) return setting;
    names.emplace_back(setting.name);
  }
  fail("unknown setting '{}'{}", name, did_you_mean(name, names));
}

void assign(TrainConfig& config, const Setting& setting, const std::vector<std::string>& words) {
  std::visit(
      [&](auto field) {
        auto& target = config.*field;
        if constexpr (std::is_same_v<std::remove_reference_t<decltype(target)>, std::vector<std::string>>) {
          target = words;
        } else {
          require(words.size() == 1, "{} takes one value, not {}", setting.name, words.size());
          parse_into(setting, words[0], target);
        }
      },
      setting.field);
}

void assign(TrainConfig& config, std::string_view name, const std::string& value) {
  assign(config, find_setting(name), {value});
}

std::string text_of(const TrainConfig& config, const Setting& setting) {
  return std::visit(
      [&](auto field) -> std::string {
        if constexpr (std::is_same_v<decltype(field), std::vector<std::string> TrainConfig::*>)
          return join(config.*field, " ");
        else if constexpr (std::is_same_v<decltype(field), std::optional<bool> TrainConfig::*>)
          return config.*field ? fmt::format("{}", *(config.*field)) : std::string(kOpen);
        else
          return fmt::format("{}", config.*field);
      },
      setting.field);
}

void require_recordable(const TrainConfig& config) {
  for (const Setting& setting : kSettings) {
    const std::string text = text_of(config, setting);
    require(is_utf8(text), "--{} '{}' is not UTF-8, and a run records its settings as UTF-8 text; rename it",
            setting.name, printable_line(text));
  }
  if (const auto control = control_byte(config.save))
    fail("--save '{}' holds the control byte {:#04x}; choose another name", printable_line(config.save),
         static_cast<uint8_t>(*control));
}

std::vector<std::pair<std::string_view, std::string>> set_by_baseline(const TrainConfig& config) {
  if (config.baseline != "bf16" && config.baseline != "fp32") return {};  // none, or refused elsewhere
  const parallel::Unquantized plain = parallel::unquantized(*dtype_from_name(config.baseline));
  const parallel::Precision& p = plain.precision;
  const auto name = [](codec::Codec codec) { return std::string(codec::name_of(codec)); };
  // Gradients may travel in bf16: that is a format of numbers, not codes with scales.
  const bool coded = config.grad_reduce_dtype == "int8" || config.grad_reduce_dtype == "fp8";
  return {{"activation-policy", std::string(model::name_of(plain.policy))},
          {"activation-override", ""},
          {"compute-dtype", std::string(name_of(p.compute))},
          {"fp8-format", ""},
          {"fp8-recipe", TrainConfig().fp8_recipe},
          {"fp8-weight-cache", TrainConfig().fp8_weight_cache},
          {"fp8-amax-history-len", std::to_string(TrainConfig().fp8_amax_history_len)},
          {"fp8-amax-compute-algo", TrainConfig().fp8_amax_compute_algo},
          {"fp8-margin", std::to_string(TrainConfig().fp8_margin)},
          {"first-last-layers-bf16", "false"},
          {"main-params-dtype", p.master == model::MasterForm::Fp32 ? "fp32" : "split"},
          {"main-grads-dtype", name(p.main_grads)},
          {"exp-avg-dtype", name(p.exp_avg)},
          {"exp-avg-sq-dtype", name(p.exp_avg_sq)},
          {"grad-reduce-dtype", coded ? name(plain.grad_reduce) : config.grad_reduce_dtype}};
}

void require_no_contradiction(const TrainConfig& config, std::span<const std::string_view> given) {
  for (const auto& [name, value] : set_by_baseline(config)) {
    const std::string asked = text_of(config, find_setting(name));
    const bool named = std::find(given.begin(), given.end(), name) != given.end();
    require(!named || asked == value, "--baseline {} sets --{} to {}, and --{} {} is given: leave one of them out",
            config.baseline, name, value.empty() ? "nothing" : value, name, asked);
  }
}

std::vector<std::string> changed_settings(const TrainConfig& before, const TrainConfig& now) {
  std::vector<std::string> changes;
  for (const Setting& setting : kSettings) {
    const std::string was = text_of(before, setting), is = text_of(now, setting);
    if (was != is && setting.name != "save")
      changes.push_back(fmt::format("{} {} -> {}", setting.name, was.empty() ? "none" : was, is.empty() ? "none" : is));
  }
  return changes;
}

std::string to_toml(const TrainConfig& config) {
  std::string out;
  std::string_view group;
  for (const Setting& setting : kSettings) {
    if (setting.group != group) {
      out += fmt::format("{}# {}\n", group.empty() ? "" : "\n", setting.group);
      group = setting.group;
    }
    out += fmt::format("{} = {}\n", setting.name,
                       std::visit([&](auto field) { return toml_value(config.*field); }, setting.field));
  }
  return out;
}

void read_toml(TrainConfig& config, std::string_view text, std::string_view file) {
  std::vector<std::string_view> given;
  for (const TomlEntry& entry : parse_flat_toml(text, file)) {
    try {
      const Setting& setting = find_setting(entry.key);
      require(!entry.array || setting.is_list(), "{} takes one value, not an array", setting.name);
      for (const std::string& word : entry.words)
        require(is_utf8(word), "{}: '{}' is not UTF-8", setting.name, printable_line(word));
      assign(config, setting, entry.words);
      given.push_back(setting.name);
    } catch (const Error& error) {
      fail("{}:{}: {}", file, entry.line, error.what());
    }
  }
  // Without one of its own, the file gives way to a baseline that was set before.
  if (std::find(given.begin(), given.end(), "baseline") == given.end()) return;
  try {
    require_no_contradiction(config, given);
  } catch (const Error& error) {
    fail("{}: {}", file, error.what());
  }
}

void read_toml_file(TrainConfig& config, const std::string& path) {
  const MappedFile file(path);
  read_toml(config, {reinterpret_cast<const char*>(file.bytes().data()), file.size()}, path);
}

}  // namespace agoq::train
