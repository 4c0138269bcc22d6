#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <optional>

#include "base/error.h"
#include "cli/command.h"
#include "cli/inspect.h"
#include "cli/options.h"
#include "train/data/vocabulary.h"

namespace agoq::cli {
namespace {

namespace fs = std::filesystem;

void inspect_folder(const fs::path& folder, const InspectOptions& options) {
  if (fs::exists(folder / "manifest.json")) return inspect_checkpoint(folder, options);
  if (fs::is_directory(folder / "checkpoints") || fs::exists(folder / "metrics.jsonl"))
    return inspect_run(folder, options);
  const std::vector<fs::path> files = safetensors_in(folder);
  const std::optional<std::string> vocabulary = train::vocabulary_hash(folder.string());
  require(!files.empty() || fs::exists(folder / "config.json") || vocabulary,
          "{}: neither a checkpoint, nor a run folder, nor a Hugging Face folder; what is known by: manifest.json, "
          "checkpoints/, config.json, *.safetensors, tokenizer.json",
          folder.string());
  if (vocabulary) fmt::print("tokenizer: vocabulary {}\n\n", *vocabulary);
  if (fs::exists(folder / "config.json")) print_model(folder.string(), options);
  if (!files.empty()) inspect_safetensors(files, options);
}

void inspect(const InspectOptions& options) {
  const fs::path path = options.path;
  if (fs::is_directory(path)) return inspect_folder(path, options);
  if (path.extension() == ".safetensors") return inspect_safetensors({path}, options);
  if (path.extension() == ".json") return print_model(options.path, options);
  inspect_tokens(options);
}

}  // namespace

Command add_inspect(CLI::App& program) {
  CLI::App* app = program.add_subcommand("inspect", "what is in a checkpoint, model, run or data file");
  auto options = std::make_shared<InspectOptions>();
  app->add_option("PATH", options->path,
                  "a run folder, checkpoint, Hugging Face folder, .safetensors, .bin/.idx or text file")
      ->required();
  app->add_flag("--verify", options->verify, "read every byte and compare checksums");
  app->add_flag("--all", options->all, "list every tensor, not only the first ones");
  app->add_option("--vocab-size", options->vocab_size, "of data: ids must lie below it (default: any)")->type_name("N");
  app->add_option("--data-dtype", options->data_dtype, "type of the tokens in a flat .bin (default: uint16)")
      ->type_name("uint16|int32")
      ->check(CLI::IsMember({"uint16", "int32"}).description(""));
  add_ignored_keys(*app, options->ignore_config_keys);
  app->footer("Example: agoq inspect runs/first --verify");
  return {app, [options] { inspect(*options); }};
}

}  // namespace agoq::cli
