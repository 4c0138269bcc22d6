// What quantizing the saved activations, and products in 8-bit floats, do to the gradient of a trained model, by kind
// of parameter.
//
//   build/bench/gradient_error runs/demo --data BOOK.txt
//
// The same weights and the same micro-batches, forward and backward, once exactly and once as a policy or an override
// keeps saved tensors, or as a recipe makes the products of layers, or both; gradients accumulate in fp32 and nothing
// else is quantized, so all of the difference comes from these. The relative error of a kind of parameter, with the
// sums over all its elements in all layers, is
//
//   sqrt(Σ (g - g_exact)²) / sqrt(Σ g_exact²)
//
// where g is the mean gradient over the tokens of all micro-batches: more tokens average more of the noise away, as
// they do in training.
//
// With --outliers the model is given some (gradient_error/outliers.h), and g stays the gradient by the weights that it
// had before. Outliers in the residual stream change what the model computes, so it is trained again:
//
//   build/bench/gradient_error runs/demo --data BOOK.txt --outliers 1000 --residual-outliers runs/outliers-hf
//   build/agoq train --model runs/outliers-hf --data-path BOOK.txt --baseline fp32 --save runs/outliers ...
//   build/bench/gradient_error runs/outliers --data BOOK.txt --outliers 1000 --outliers-in unit
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "base/text.h"
#include "cli/options.h"
#include "gradient_error/experiment.h"

namespace agoq::bench {
namespace {

struct Options {
  std::shared_ptr<cli::SettingOptions> settings;
  std::string source, policies = "agoq,paper,fp8,bf16", codecs = "fp4,nf4,int4,fp5,fp6,fp8,int8";
  std::string products = "bf16,rowwise,tensorwise,hybrid,blockwise,rowwise/rowwise,rowwise/blockwise,rowwise/bf16";
  std::string data;
  int64_t micro_batches = 4;
  double outliers = 0;
  std::string outliers_in = "unit,norms", residual_outliers;
  bool json = false;
};

// A row of a table.
struct Choice {
  std::string group, name;
  Way way;
};

// Groups of rows.
constexpr const char* kPolicies = "policy";
constexpr const char* kProducts = "products";
constexpr const char* kBoth = "products and policy agoq";

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

// The policy beside which products err too.
constexpr auto kBesideProducts = model::Policy::Agoq;

std::vector<Choice> choices_of(const Options& options, const model::ModelConfig& model) {
  std::vector<Choice> choices;
  for (const std::string& name : split(options.policies, ','))
    choices.push_back({kPolicies, name, {model::policy_from_name(name), "", {}}});
  for (const Alone& alone : kAlone)
    for (const std::string& codec : split(options.codecs, ','))
      choices.push_back({alone.group, codec, {model::Policy::Fp32, with_codec(alone.overrides, codec), {}}});
  const std::vector<std::string> products = split(options.products, ',');
  for (const std::string& name : products)
    choices.push_back({kProducts, name, {model::Policy::Fp32, "", products_from_name(name, model)}});
  if (!products.empty()) choices.push_back({kBoth, "exact", {kBesideProducts, "", {}}});
  for (const std::string& name : products)
    choices.push_back({kBoth, name, {kBesideProducts, "", products_from_name(name, model)}});
  return choices;
}

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
  std::string group, name;
  std::vector<double> errors;  // by column of Kinds
};

const Result& find(const std::vector<Result>& results, const std::string& group, const std::string& name) {
  return *std::find_if(results.begin(), results.end(),
                       [&](const Result& r) { return r.group == group && r.name == name; });
}

// Behind each row of products and policy, what it would be if independent errors of the two added up.
std::vector<Result> with_sums_of_squares(const std::vector<Result>& results) {
  std::vector<Result> all;
  for (const Result& result : results) {
    all.push_back(result);
    if (result.group != kBoth || result.name == "exact") continue;
    const std::vector<double>& policy = find(results, kBoth, "exact").errors;
    Result sum = find(results, kProducts, result.name);
    sum.group = kBoth;
    sum.name = "√(products² + policy²)";
    for (size_t k = 0; k < policy.size(); ++k) sum.errors[k] = std::hypot(sum.errors[k], policy[k]);
    all.push_back(sum);
  }
  return all;
}

void print_json(const Kinds& kinds, const std::vector<Result>& results, int64_t tokens) {
  nlohmann::ordered_json json;
  json["tokens"] = tokens;
  for (const Result& result : results) {
    nlohmann::ordered_json row = {{"quantized", result.group}, {"as", result.name}};
    for (size_t k = 0; k < kinds.names.size(); ++k) row["error"][kinds.names[k]] = result.errors[k];
    json["results"].push_back(row);
  }
  json["paper_table_13"] = {{"norm", 0.003}, {"gemm_weight", 0.026}, {"silu", 0.051}};
  fmt::print("{}\n", json.dump(1));
}

std::string title_of(const std::string& group) {
  if (group == kPolicies) return "Activation policies";
  if (group == kProducts) return "Products in other arithmetic, saved activations exact";
  if (group == kBoth) return "The same products with the activation policy agoq";
  return "Only " + group;
}

std::string column_of(const std::string& group) {
  if (group == kPolicies) return group;
  return group == kProducts || group == kBoth ? "products" : "codec";
}

void print_tables(const Kinds& kinds, const std::vector<Result>& results) {
  for (size_t i = 0; i < results.size();) {
    const std::string group = results[i].group;
    std::vector<std::string> headers = {column_of(group)};
    headers.insert(headers.end(), kinds.names.begin(), kinds.names.end());
    Table table(headers);
    for (; i < results.size() && results[i].group == group; ++i) {
      std::vector<std::string> cells = {results[i].name};
      for (const double error : results[i].errors) cells.push_back(fmt::format("{:.4f}", error));
      table.add_row(cells);
    }
    fmt::print("\n{}\n\n{}", title_of(group), table.markdown());
  }
  fmt::print(
      "\nThe paper's Table 13 gives, for its own models and by its own measure: norm 0.003, GEMM weight 0.026, SiLU "
      "0.051.\n");
}

// How many times larger than the rest three channels and one unit are, in the layer where it is least.
void print_outliers(const ModelChannels& channels) {
  const std::vector<int64_t> three = largest(channels.final_x, kOutlierChannels);
  double x = times_larger(channels.final_x, three), n = std::numeric_limits<double>::infinity(), h = n;
  for (const LayerChannels& layer : channels.layers) {
    x = std::min({x, times_larger(layer.x1, three), times_larger(layer.x2, three)});
    n = std::min({n, times_larger(layer.n1, three), times_larger(layer.n2, three)});
    h = std::min(h, times_larger(layer.h, largest(layer.h, 1)));
  }
  fmt::print(
      "Of channels {}, the largest of the residual stream, each is {:.4g} times as large as all others (root mean "
      "squares over the tokens), and {:.4g} times as large behind the norms; the largest unit of SwiGLU is {:.4g} "
      "times "
      "as large as all others; these are the least of all layers.\n\n",
      fmt::join(three, ", "), x, n, h);
}

void print(const Options& options, Experiment& experiment, const Kinds& kinds, const std::vector<Result>& results) {
  const int64_t batches = experiment.micro_batches(), tokens = experiment.tokens();
  if (options.json) return print_json(kinds, results, batches * tokens);
  if (!experiment.model().post_norm) print_outliers(experiment.channels());
  fmt::print(
      "Relative L2 error of the gradient over {} tokens, {} in a micro-batch, against the exact gradient; the loss of "
      "these tokens is {:.3f}\n",
      batches * tokens, tokens, experiment.loss());
  print_tables(kinds, results);
}

void make_outliers(const Options& options, Experiment& experiment) {
  const ModelChannels channels = experiment.channels();
  const parallel::RunSpec& run_spec = experiment.weights().run_spec();
  for (const std::string& where : split(options.outliers_in, ',')) {
    require(where == "unit" || where == "norms", "--outliers-in: '{}' is neither unit nor norms", where);
    experiment.rescale(where == "unit" ? unit_outliers(run_spec, channels, options.outliers)
                                       : norm_outliers(run_spec, channels, options.outliers));
  }
}

void write_residual_outliers(const Options& options, Experiment& experiment) {
  require(options.outliers > 0, "--residual-outliers needs --outliers, their size");
  const double before = experiment.loss();
  experiment.rescale(residual_outliers(experiment.weights().run_spec(), experiment.channels(), options.outliers));
  print_outliers(experiment.channels());
  fmt::print("Loss before {:.3f}, after {:.3f}.\n", before, experiment.loss());
  experiment.write(options.residual_outliers);
}

void run(const Options& options) {
  train::TrainConfig config = options.settings->config();
  cli::use_threads(config);
  Experiment experiment(options.source, config, options.data, options.micro_batches);
  if (!options.residual_outliers.empty()) return write_residual_outliers(options, experiment);
  if (options.outliers > 0) make_outliers(options, experiment);
  const Kinds kinds(experiment.spec());
  const GradientVectors exact = experiment.gradients({});
  std::vector<Result> results;
  for (const Choice& choice : choices_of(options, experiment.model()))
    results.push_back(
        {choice.group, choice.name, relative_errors(kinds, experiment.ids(), experiment.gradients(choice.way), exact)});
  print(options, experiment, kinds, with_sums_of_squares(results));
}

}  // namespace
}  // namespace agoq::bench

int main(int argc, char** argv) try {
  CLI::App program("Error of the gradient by kind of parameter: quantized activations, 8-bit products.",
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
  program
      .add_option("--products", options.products, "products of layers to compare: bf16, rowwise, blockwise/bf16, ...")
      ->capture_default_str();
  program
      .add_option("--outliers", options.outliers,
                  "make a unit of SwiGLU and three channels behind each norm so many times larger than the others")
      ->check(CLI::PositiveNumber);
  program.add_option("--outliers-in", options.outliers_in, "unit, norms, or both")->capture_default_str();
  program
      .add_option("--residual-outliers", options.residual_outliers,
                  "write the model with three channels of the residual stream so large, to be trained further, and "
                  "measure nothing")
      ->type_name("FOLDER");
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
