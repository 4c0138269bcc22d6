#include <fmt/format.h>

#include <CLI/CLI.hpp>

#include "base/text.h"
#include "cli/command.h"
#include "cli/options.h"
#include "train/inference.h"

namespace agoq::cli {
namespace {

struct ExportOptions {
  std::string source, destination;
  std::string dtype = "bf16";
  std::string ignore_config_keys;
};

void export_model(const ExportOptions& options) {
  train::TrainConfig config;
  config.seq_length = 1;  // nothing is computed, so no memory for it
  config.ignore_config_keys = options.ignore_config_keys;
  train::LoadedModel loaded(options.source, config);
  const std::string copied = loaded.export_folder(options.destination, dtype_from_name(options.dtype).value());
  fmt::print("{}: {} parameters in {}; AutoModelForCausalLM.from_pretrained loads it\n", options.destination,
             human_count(static_cast<uint64_t>(loaded.model().parameters())), options.dtype);
  fmt::print("beside the weights: {}\n", copied.empty() ? "config.json alone; no tokenizer is known" : copied);
}

}  // namespace

Command add_export(CLI::App& program) {
  CLI::App* app = program.add_subcommand("export", "write a model as a Hugging Face folder");
  auto options = std::make_shared<ExportOptions>();
  app->add_option("SOURCE", options->source, "a run folder, a checkpoint or a Hugging Face folder")->required();
  app->add_option("DESTINATION", options->destination, "the new folder; it appears complete or not at all")->required();
  app->add_option("--dtype", options->dtype, "type of the weights in the files (default: bf16)")
      ->type_name("bf16|fp16|fp32")
      ->check(CLI::IsMember({"bf16", "fp16", "fp32"}).description(""));
  add_ignored_keys(*app, options->ignore_config_keys);
  app->footer(
      "Tokenizer, chat templates, generation config and licence of the folder that training began with come along\n"
      "unchanged, no other files, and none through a link that leads out of the folder. A model of bytes gets its\n"
      "tokenizer as files.\n"
      "Example: agoq export runs/first exported --dtype bf16");
  return {app, [options] { export_model(*options); }};
}

}  // namespace agoq::cli
