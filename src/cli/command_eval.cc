#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numbers>

#include "cli/command.h"
#include "cli/help.h"
#include "cli/options.h"
#include "train/data/token_file.h"
#include "train/inference.h"

namespace agoq::cli {
namespace {

struct EvalOptions {
  std::shared_ptr<SettingOptions> settings;
  std::string source;
  int64_t max_samples = 0;
  bool json = false;
};

void evaluate(const EvalOptions& options) {
  const train::TrainConfig config = options.settings->config();
  require(!config.data_path.empty(), "no data to evaluate on: give --data-path FILE");
  use_threads(config);
  train::LoadedModel loaded(options.source, config);
  const train::Evaluation result = loaded.evaluate(options.max_samples);
  const bool bytes = loaded.config().tokenizer == train::kByteTokenizer;
  if (options.json) {
    nlohmann::ordered_json json = {{"loss", result.loss}, {"perplexity", result.perplexity}, {"tokens", result.tokens}};
    if (bytes) json["bits_per_byte"] = result.loss / std::numbers::ln2;
    fmt::print("{}\n", json.dump());
    return;
  }
  fmt::print("loss {:.4f} nats a token, perplexity {:.3f}", result.loss, result.perplexity);
  if (bytes) fmt::print(", {:.3f} bits a byte", result.loss / std::numbers::ln2);
  fmt::print(", over {:.0f} tokens\n", result.tokens);
}

}  // namespace

Command add_eval(CLI::App& program) {
  CLI::App* app = program.add_subcommand("eval", "loss and perplexity of a model on data");
  auto options = std::make_shared<EvalOptions>();
  app->add_option("SOURCE", options->source, "a run folder, a checkpoint or a Hugging Face folder")->required();
  options->settings =
      SettingOptions::add(*app, {"ignore-config-keys", "data-path", "data-dtype", "document-separator", "tokenizer",
                                 "eod-token", "reset-position-ids", "reset-attention-mask", "eod-mask-loss",
                                 "seq-length", "micro-batch-size", "compute-dtype", "device", "threads"});
  app->add_option("--max-samples", options->max_samples,
                  "stop after so many sequences; 0: all of the data (default: 0)")
      ->type_name("N")
      ->check(not_negative());
  app->add_flag("--json", options->json, "print JSON");
  app->footer("Nothing is quantized. Example: agoq eval runs/first --data-path other-book.txt");
  return {app, [options] { evaluate(*options); }};
}

}  // namespace agoq::cli
