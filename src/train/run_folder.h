// The folder of a run: what lies where, who may write to it, and that it can be written before any work is done.
#pragma once

#include <string>
#include <string_view>

#include "base/file_descriptor.h"

namespace agoq::train {

class RunFolder {
 public:
  // Creates the folder, proves that files can be written and synced in it, and locks it until destruction, so that two
  // runs cannot share it. Errors name the path and the reason, or the process that holds it.
  explicit RunFolder(std::string path);

  const std::string& path() const { return path_; }
  std::string config() const { return file("config.toml"); }
  std::string recipe() const { return file("recipe.json"); }
  std::string metrics() const { return file("metrics.jsonl"); }
  std::string memory() const { return file("memory.json"); }
  std::string summary() const { return file("summary.json"); }
  std::string checkpoints() const { return checkpoints_in(path_); }
  static std::string checkpoints_in(const std::string& run_folder) { return run_folder + "/checkpoints"; }

  // Tokenizer and what else goes with the model (train/run_companions.h).
  static std::string companions_in(const std::string& run_folder) { return run_folder + "/tokenizer"; }

  // The file appears complete, or stays what it was. `name` is relative to the folder.
  void write(std::string_view name, std::string_view content) const;
  // The same for JSON text, which is checked and laid out for people.
  void write_json(std::string_view name, std::string_view json) const;

 private:
  std::string file(std::string_view name) const;
  void prove_writable() const;
  void lock();

  std::string path_;
  FileDescriptor lock_;
};

}  // namespace agoq::train
