// What quantizing the saved activations does to the gradient of a trained model, by kind of parameter.
//
//   build/bench/gradient_error runs/demo --data BOOK.txt
//
// The same weights and the same micro-batches, forward and backward, once with every saved tensor kept exactly and once
// as a policy or an override keeps them; gradients accumulate in fp32 and nothing else is quantized, so all of the
// difference comes from the activations. The relative error of a kind of parameter, with the sums over all its elements
// in all layers, is
//
//   sqrt(Σ (g - g_exact)²) / sqrt(Σ g_exact²)
//
// where g is the mean gradient over the tokens of all micro-batches: more tokens average more of the noise away, as
// they do in training.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/text.h"
#include "cli/options.h"
#include "plan/layout.h"
#include "train/data/micro_batch.h"
#include "train/inference.h"

namespace agoq::bench {
namespace {

struct Options {
  std::shared_ptr<cli::SettingOptions> settings;
  std::string source, policies = "agoq,paper,fp8,bf16", codecs = "fp4,nf4,int4,fp5,fp6,fp8,int8";
  std::string data;
  int64_t micro_batches = 4;
  bool json = false;
};

// A way to keep activations: a policy and overrides of it.
struct Choice {
  std::string group, name;
  model::Policy policy = model::Policy::Fp32;
  std::string overrides;
};

// Quantized alone, everything else exact. CODEC stands for the codec.
struct Alone {
  const char* group;
  const char* overrides;
};
constexpr std::array kAlone = {
    Alone{"x1, x2 (norm inputs; n1, n2 exact)", "norm=CODEC"},
    Alone{"x1, x2 (n1, n2 recomputed from them)", "norm=CODEC,input=none"},
    Alone{"n1, n2, h (GEMM inputs)", "input=CODEC"},
    Alone{"gate, up (h exact)", "mlp=CODEC"},
    Alone{"gate, up (h recomputed from them)", "mlp=CODEC,h=none"},
    Alone{"q, k, v, o (attention)", "attention=CODEC"},
    Alone{"q, k, v (o and its normalisation recomputed from them)", "qkv=CODEC,o=none"},
};

std::string with_codec(std::string text, const std::string& codec) {
  const std::string_view blank = "CODEC";
  return text.replace(text.find(blank), blank.size(), codec);
}

std::vector<Choice> choices_of(const Options& options) {
  std::vector<Choice> choices;
  for (const std::string& name : split(options.policies, ','))
    choices.push_back({"policy", name, model::policy_from_name(name), ""});
  for (const Alone& alone : kAlone)
    for (const std::string& codec : split(options.codecs, ','))
      choices.push_back({alone.group, codec, model::Policy::Fp32, with_codec(alone.overrides, codec)});
  return choices;
}

// Gradients of all parameters, by ParamId::tensor().
using GradientVectors = std::vector<std::vector<float>>;

// The model, its weights and the micro-batches; makes the gradient for one choice at a time.
class Experiment {
 public:
  explicit Experiment(const Options& options) {
    train::TrainConfig config = options.settings->config();
    cli::use_threads(config);
    loaded_.emplace(options.source, config);
    config = loaded_->config();
    config.main_grads_dtype = "fp32";
    run_spec_ = train::make_run_spec(config, loaded_->model());
    read_batches(config, options);
  }

  const model::LayerSpec& spec() { return loaded_->state().spec(); }
  const std::vector<model::ParamId>& ids() { return loaded_->state().params().ids(); }
  int64_t tokens() const { return run_spec_.tokens() * static_cast<int64_t>(batches_.size()); }

  GradientVectors gradients(const Choice& choice) {
    parallel::RunSpec run_spec = run_spec_;
    run_spec.recipe =
        model::make_recipe(run_spec.model, spec(), choice.policy, model::Recompute::None, choice.overrides);
    Arena arena(Device::Cpu, plan::plan_layout(run_spec, Device::Cpu).total);
    parallel::TrainingState state(arena, Device::Cpu, run_spec);
    copy_weights(state);
    double weight = 0;
    for (const train::Batch& batch : batches_) weight += batch.target_weight();
    for (size_t i = 0; i < batches_.size(); ++i)
      state.forward_backward(train::view(batches_[i]), static_cast<uint32_t>(i), static_cast<float>(1 / weight));
    GradientVectors all;
    for (const model::ParamId& id : ids()) {
      const Tensor grad = state.grads().data(id).plain();
      all.emplace_back(grad.as<float>(), grad.as<float>() + grad.count());
      require(std::any_of(all.back().begin(), all.back().end(), [](float g) { return g != 0; }),
              "the gradient of parameter {} of layer {} is zero: nothing can be measured by it", spec()[id.param].name,
              id.layer);
    }
    return all;
  }

 private:
  // Micro-batches of samples spread evenly over the data.
  void read_batches(const train::TrainConfig& config, const Options& options) {
    const train::BatchSpec spec = train::batch_spec(config, loaded_->model());
    train::DataConfig data = train::data_config(config);
    data.data_path = {options.data};
    const train::Dataset dataset = train::open_evaluation_dataset(data, spec);
    const uint64_t needed = static_cast<uint64_t>(options.micro_batches * spec.micro_batch_size);
    require(dataset.samples() >= needed, "{} has {} sequences of {} tokens, {} are needed", options.data,
            dataset.samples(), spec.sequence_length, needed);
    for (uint64_t sample = 0; sample < needed; ++sample) {
      const int64_t slot = static_cast<int64_t>(sample) % spec.micro_batch_size;
      if (slot == 0) batches_.emplace_back(spec);
      dataset.fill(sample * (dataset.samples() / needed), slot, batches_.back());
    }
  }

  void copy_weights(parallel::TrainingState& state) {
    const std::vector<StoredTensor> from = loaded_->state().named_tensors();
    for (const StoredTensor& to : state.named_tensors()) {
      if (to.name.starts_with("exp_avg")) continue;
      const auto same = std::find_if(from.begin(), from.end(), [&](const StoredTensor& f) {
        return f.name == to.name && f.dtype == to.dtype && f.dims == to.dims;
      });
      require(same != from.end(), "{} is not among the weights read", to.name);
      require(same->pieces.size() == to.pieces.size(), "{} is held in {} pieces, and read in {}", to.name,
              to.pieces.size(), same->pieces.size());
      for (size_t i = 0; i < to.pieces.size(); ++i)
        std::memcpy(to.pieces[i].data.data, same->pieces[i].data.data, to.pieces[i].data.bytes());
    }
  }

  std::optional<train::LoadedModel> loaded_;
  parallel::RunSpec run_spec_;
  std::vector<train::Batch> batches_;
};

// Columns of the table: the model's parameters in the order of forward, then all of them.
struct Kinds {
  explicit Kinds(const model::LayerSpec& spec) {
    for (const model::ParamRow& row : spec.params)
      if (row.present()) {
        column[static_cast<size_t>(row.param)] = names.size();
        names.emplace_back(row.name);
      }
    names.emplace_back("all");
  }
  std::vector<std::string> names;
  std::array<size_t, model::kParams> column{};
};

std::vector<double> relative_errors(const Kinds& kinds, const std::vector<model::ParamId>& ids,
                                    const GradientVectors& got, const GradientVectors& exact) {
  std::vector<double> difference(kinds.names.size()), norm(kinds.names.size());
  for (size_t p = 0; p < ids.size(); ++p) {
    double d = 0, n = 0;
    for (size_t i = 0; i < exact[p].size(); ++i) {
      const double e = exact[p][i];
      d += (got[p][i] - e) * (got[p][i] - e);
      n += e * e;
    }
    for (const size_t column : {kinds.column[static_cast<size_t>(ids[p].param)], kinds.names.size() - 1}) {
      difference[column] += d;
      norm[column] += n;
    }
  }
  std::vector<double> errors;
  for (size_t k = 0; k < difference.size(); ++k) errors.push_back(norm[k] > 0 ? std::sqrt(difference[k] / norm[k]) : 0);
  return errors;
}

struct Result {
  Choice choice;
  std::vector<double> errors;  // by column of Kinds
};

void print_json(const Kinds& kinds, const std::vector<Result>& results, int64_t tokens) {
  nlohmann::ordered_json json;
  json["tokens"] = tokens;
  for (const Result& result : results) {
    nlohmann::ordered_json row = {{"quantized", result.choice.group}, {"as", result.choice.name}};
    for (size_t k = 0; k < kinds.names.size(); ++k) row["error"][kinds.names[k]] = result.errors[k];
    json["results"].push_back(row);
  }
  json["paper_table_13"] = {{"norm", 0.003}, {"gemm_weight", 0.026}, {"silu", 0.051}};
  fmt::print("{}\n", json.dump(1));
}

void print_tables(const Kinds& kinds, const std::vector<Result>& results, int64_t tokens) {
  fmt::print("Relative L2 error of the gradient over {} tokens against the gradient with exact saved activations\n",
             tokens);
  for (size_t i = 0; i < results.size();) {
    const std::string& group = results[i].choice.group;
    std::vector<std::string> headers = {group == "policy" ? group : "codec"};
    headers.insert(headers.end(), kinds.names.begin(), kinds.names.end());
    Table table(headers);
    for (; i < results.size() && results[i].choice.group == group; ++i) {
      std::vector<std::string> cells = {results[i].choice.name};
      for (const double error : results[i].errors) cells.push_back(fmt::format("{:.4f}", error));
      table.add_row(cells);
    }
    fmt::print("\n{}\n{}", group == "policy" ? "Activation policies" : "Only " + group, "\n" + table.markdown());
  }
  fmt::print(
      "\nThe paper's Table 13 gives, for its own models and by its own measure: norm 0.003, GEMM weight 0.026, SiLU "
      "0.051.\n");
}

void run(const Options& options) {
  Experiment experiment(options);
  const Kinds kinds(experiment.spec());
  const GradientVectors exact = experiment.gradients({});
  std::vector<Result> results;
  for (const Choice& choice : choices_of(options))
    results.push_back({choice, relative_errors(kinds, experiment.ids(), experiment.gradients(choice), exact)});
  (options.json ? print_json : print_tables)(kinds, results, experiment.tokens());
}

}  // namespace
}  // namespace agoq::bench

int main(int argc, char** argv) try {
  CLI::App program("Error of the gradient by kind of parameter when saved activations are quantized.",
                   "gradient_error");
  agoq::bench::Options options;
  program.add_option("SOURCE", options.source, "a run folder, a checkpoint or a Hugging Face folder")->required();
  program.add_option("--data", options.data, "text or tokens to take the micro-batches from")
      ->type_name("PATH")
      ->required();
  program.add_option("--micro-batches", options.micro_batches, "how many")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  program.add_option("--policies", options.policies, "activation policies to compare")->capture_default_str();
  program.add_option("--codecs", options.codecs, "codecs for one kind of tensor at a time")->capture_default_str();
  agoq::train::TrainConfig defaults;
  defaults.micro_batch_size = 8;
  options.settings = agoq::cli::SettingOptions::add(
      program,
      {"data-dtype", "document-separator", "eod-token", "reset-position-ids", "reset-attention-mask", "seq-length",
       "micro-batch-size", "compute-dtype", "threads"},
      defaults);
  program.add_flag("--json", options.json, "print JSON");
  CLI11_PARSE(program, argc, argv);
  agoq::bench::run(options);
  return 0;
} catch (const std::exception& error) {
  fmt::print(stderr, "gradient_error: error: {}\n", error.what());
  return 1;
}
