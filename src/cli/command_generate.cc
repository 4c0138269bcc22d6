#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "base/text.h"
#include "cli/command.h"
#include "cli/help.h"
#include "cli/options.h"
#include "cli/text_tokens.h"
#include "train/data/tokenizer_choice.h"
#include "train/inference.h"

namespace agoq::cli {
namespace {

namespace fs = std::filesystem;

struct GenerateOptions {
  std::shared_ptr<SettingOptions> settings;
  std::string source;
  std::string prompt = "\n";
  std::vector<int32_t> stop_tokens;  // none: those of the model
  train::SamplingOptions sampling;
};

std::string read_stdin() {
  return {std::istreambuf_iterator<char>(std::cin), {}};
}

bool show(const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  return std::fflush(stdout) == 0;
}

void generate(const GenerateOptions& options) {
  train::TrainConfig config = options.settings->config();
  use_threads(config);
  const std::string prompt = options.prompt == "-" ? read_stdin() : options.prompt;
  require(!prompt.empty(), "the prompt is empty; give some text by --prompt");
  require(is_utf8(prompt), "the prompt is not UTF-8: '{}'", printable_line(prompt.substr(0, 100)));
  std::unique_ptr<TextTokens> tokenizer;
  std::vector<int32_t> ids;
  if (fs::exists(fs::path(options.source) / "config.json")) {
    // A Hugging Face folder says nothing about sequences: no longer than needed, since each token costs the whole
    // window.
    const model::ModelConfig model = model::find_config(options.source, config.ignore_config_keys);
    if (config.tokenizer.empty()) config.tokenizer = train::tokenizer_in(options.source, model);
    tokenizer = open_tokenizer(config.tokenizer, config.prompt_bos);
    ids = tokenizer->encode(prompt);
    const int64_t needed = static_cast<int64_t>(ids.size()) + options.sampling.max_new_tokens;
    if (config.seq_length == 0) config.seq_length = std::min(needed, model.max_positions);
  }
  train::LoadedModel loaded(options.source, config);
  if (!tokenizer) {
    tokenizer = open_tokenizer(loaded.config().tokenizer, loaded.config().prompt_bos);
    ids = tokenizer->encode(prompt);
  }

  for (const int32_t id : options.stop_tokens)
    require(id < loaded.model().vocab_size, "--eod-token {} is outside the model's vocabulary of {}", id,
            loaded.model().vocab_size);
  train::SamplingOptions sampling = options.sampling;
  sampling.seed = config.seed;
  sampling.stop_tokens = options.stop_tokens.empty() ? loaded.stop_tokens() : options.stop_tokens;
  show(prompt);
  continue_text(loaded.state(), ids, sampling, *tokenizer, show);
  show("\n");
}

}  // namespace

Command add_generate(CLI::App& program) {
  CLI::App* app = program.add_subcommand("generate", "let a model continue a text");
  auto options = std::make_shared<GenerateOptions>();
  train::SamplingOptions& sampling = options->sampling;
  app->add_option("SOURCE", options->source, "a run folder, a checkpoint or a Hugging Face folder")->required();
  app->add_option("--prompt", options->prompt, "the text to continue; - reads it from standard input")
      ->type_name("TEXT");
  app->add_option("--max-new-tokens", sampling.max_new_tokens, "stop after so many tokens (default: 100)")
      ->type_name("N")
      ->check(not_negative());
  app->add_option("--temperature", sampling.temperature, "0: always the likeliest token (default: 0.8)")
      ->type_name("X")
      ->check(not_negative());
  app->add_option("--top-k", sampling.top_k, "choose among the K likeliest tokens; 0: all (default: 0)")
      ->type_name("K")
      ->check(not_negative());
  app->add_option("--top-p", sampling.top_p,
                  "choose among the likeliest tokens that together have this probability (default: 1)")
      ->type_name("P");
  app->add_option("--eod-token", options->stop_tokens,
                  "ids that end the text, one or several (default: the end of a document in the training data, and "
                  "every eos of config.json and generation_config.json)")
      ->type_name("ID...")
      ->check(not_negative());
  options->settings = SettingOptions::add(*app, {"ignore-config-keys", "tokenizer", "prompt-bos", "seq-length", "seed",
                                                 "compute-dtype", "device", "threads"});
  app->footer("Example: agoq generate runs/first --prompt 'In the beginning' --max-new-tokens 200");
  return {app, [options] { generate(*options); }};
}

}  // namespace agoq::cli
