#include "train/run_companions.h"

#include <filesystem>
#include <iterator>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/log.h"
#include "train/checkpoint/checkpoint_folder.h"
#include "train/data/byte_tokenizer.h"
#include "train/data/token_file.h"
#include "train/data/tokenizer_choice.h"
#include "train/run_folder.h"

namespace agoq::train {
namespace {

namespace fs = std::filesystem;

void append(model::Companions& to, model::Companions files) {
  to.insert(to.end(), std::make_move_iterator(files.begin()), std::make_move_iterator(files.end()));
}

// The folder appears complete or not at all, and takes the place of one that is there.
void write_folder(const model::Companions& files, const std::string& folder) {
  const std::string fresh = folder + ".tmp";  // also what a killed run left
  try {
    fs::remove_all(fresh);
    fs::create_directory(fresh);
    model::write_companions(files, fresh);
    fs::remove_all(folder);
    rename_directory_durably(fresh, folder);
  } catch (const std::exception& error) {
    std::error_code ignored;
    fs::remove_all(fresh, ignored);
    fail("cannot keep {} in {}: {}", model::names_of(files), folder, error.what());
  }
}

bool holds_tokenizer(const std::string& folder) {
  return model::has_tokenizer(model::tokenizer_files(folder));
}

}  // namespace

model::Companions companions_of(const std::string& tokenizer, const std::string& model_folder) {
  const bool bytes = tokenizer == kByteTokenizer;
  model::Companions files =
      bytes ? byte_tokenizer_files() : model::tokenizer_files(tokenizer.empty() ? model_folder : tokenizer);
  // The end tokens of a generation config are ids of the model's own tokenizer.
  if (!bytes && !know_other_tokens(tokenizer, model_folder)) append(files, model::generation_files(model_folder));
  append(files, model::licence_files(model_folder));
  return files;
}

void keep_companions(const Coordinator& coordinator, TrainConfig& config, std::string& model_folder, bool goes_on) {
  const std::string own = RunFolder::companions_in(config.save);
  std::string found;
  if (coordinator.is_rank0()) {
    const bool complete = goes_on && exists(own) && (config.tokenizer.empty() || holds_tokenizer(own));
    const model::Companions files = complete ? model::Companions{} : companions_of(config.tokenizer, model_folder);
    std::error_code ignored;
    if (!goes_on) fs::remove_all(own, ignored);  // of a run that was begun here and saved nothing
    if (!files.empty()) write_folder(files, own);
    found = !exists(own) ? "" : holds_tokenizer(own) ? "tokenizer" : "others";
  }
  found = coordinator.broadcast(found);
  if (!found.empty()) model_folder = own;
  if (config.tokenizer.empty() || config.tokenizer == kByteTokenizer) return;
  if (found == "tokenizer")
    config.tokenizer = own;
  else if (coordinator.is_rank0())
    log_warning("the tokenizer {} cannot be copied into the run folder: it is not there, or holds no tokenizer.json",
                config.tokenizer);
}

}  // namespace agoq::train
