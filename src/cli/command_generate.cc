#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "cli/command.h"
#include "cli/help.h"
#include "cli/options.h"
#include "cli/text_tokens.h"
#include "train/inference.h"
#include "train/micro_batch.h"
#include "train/token_file.h"

namespace agoq::cli {
namespace {

namespace fs = std::filesystem;

struct GenerateOptions {
  std::shared_ptr<SettingOptions> settings;
  std::string source;
  std::string prompt = "\n";
  train::SamplingOptions sampling;
};

std::string read_stdin() {
  return {std::istreambuf_iterator<char>(std::cin), {}};
}

// The tokenizer that was asked for or that the folder brings; bytes where the vocabulary is that of bytes.
std::unique_ptr<TextTokens> choose_tokenizer(const std::string& asked, const std::string& folder, int64_t vocab) {
  if (!asked.empty()) return open_tokenizer(asked);
  if (!folder.empty() && has_tokenizer(folder)) return open_tokenizer(folder);
  require(vocab <= train::kByteTokenizerVocab, "no tokenizer for this vocabulary of {}; give --tokenizer FOLDER",
          vocab);
  return open_tokenizer("");
}

void show(const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

void generate(const GenerateOptions& options) {
  train::TrainConfig config = options.settings->config();
  use_threads(config);
  const std::string prompt = options.prompt == "-" ? read_stdin() : options.prompt;
  require(!prompt.empty(), "the prompt is empty; give some text by --prompt");
  std::unique_ptr<TextTokens> tokenizer;
  std::vector<int32_t> ids;
  if (fs::exists(fs::path(options.source) / "config.json")) {
    // A Hugging Face folder says nothing about sequences: no longer than needed, since each token costs the whole
    // window.
    const model::ModelConfig model = model::find_config(options.source);
    tokenizer = choose_tokenizer(config.tokenizer, options.source, model.vocab_size);
    ids = tokenizer->encode(prompt);
    const int64_t needed = static_cast<int64_t>(ids.size()) + options.sampling.max_new_tokens;
    if (config.seq_length == 0) config.seq_length = std::min(needed, model.max_positions);
  }
  train::LoadedModel loaded(options.source, config);
  if (!tokenizer) {
    tokenizer = choose_tokenizer(loaded.config().tokenizer, loaded.source_folder(), loaded.model().vocab_size);
    ids = tokenizer->encode(prompt);
  }

  train::SamplingOptions sampling = options.sampling;
  sampling.seed = config.seed;
  sampling.stop_token = train::end_of_document(config, loaded.model());
  show(prompt);
  train::generate(loaded.state(), ids, sampling, [&](int32_t id) {
    show(tokenizer->decode_next(id));
    return std::ferror(stdout) == 0;
  });
  show(tokenizer->decode_rest() + "\n");
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
      ->type_name("N");
  app->add_option("--temperature", sampling.temperature, "0: always the likeliest token (default: 0.8)")
      ->type_name("X")
      ->check(not_negative());
  app->add_option("--top-k", sampling.top_k, "choose among the K likeliest tokens; 0: all (default: 0)")
      ->type_name("K")
      ->check(not_negative());
  app->add_option("--top-p", sampling.top_p,
                  "choose among the likeliest tokens that together have this probability (default: 1)")
      ->type_name("P");
  options->settings =
      SettingOptions::add(*app, {"tokenizer", "seq-length", "eod-token", "seed", "compute-dtype", "device", "threads"});
  app->footer("Example: agoq generate runs/first --prompt 'In the beginning' --max-new-tokens 200");
  return {app, [options] { generate(*options); }};
}

}  // namespace agoq::cli
