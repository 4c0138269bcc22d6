// Flags made from the table of settings (train/config/settings.h).
#pragma once

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "train/config/settings.h"

namespace CLI {
class App;
}

namespace agoq::cli {

class SettingOptions {
 public:
  // Adds `--config FILE` and a flag for each setting that `names` lists, in the order of the table; all where it is
  // empty. A name may also be a group ("Precision"). `defaults` are what help shows.
  static std::shared_ptr<SettingOptions> add(CLI::App& app, const std::vector<std::string_view>& names = {},
                                             const train::TrainConfig& defaults = {});

  // After parsing: the defaults, changed by the file, changed by the flags.
  train::TrainConfig config() const;

 private:
  void add_flag(CLI::App& app, const train::Setting& setting);

  train::TrainConfig defaults_;
  std::string file_;
  std::map<const train::Setting*, std::vector<std::string>> given_;
};

// --ignore-config-keys, for commands that have no other setting.
void add_ignored_keys(CLI::App& app, std::string& keys);

// --threads, for the whole process.
void use_threads(const train::TrainConfig& config);

}  // namespace agoq::cli
