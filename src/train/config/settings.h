// Every setting of a run by name: the only list of names. The command line, the TOML files, the run folder's
// config.toml and the public header are made from it.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "train/config/config.h"

namespace agoq::train {

using SettingField = std::variant<std::string TrainConfig::*, std::vector<std::string> TrainConfig::*,
                                  int64_t TrainConfig::*, uint64_t TrainConfig::*, double TrainConfig::*,
                                  bool TrainConfig::*, std::optional<bool> TrainConfig::*>;

struct Setting {
  std::string_view group;  // Model, Data, Batch and schedule, Precision, Run
  std::string_view name;   // "seq-length": the flag without its dashes, and the key
  std::string_view value;  // what stands for the value in help: "N", "PATH", "bf16|fp32"
  std::string_view help;
  SettingField field;

  // Takes no value on the command line.
  bool is_switch() const { return std::holds_alternative<bool TrainConfig::*>(field) || may_be_open(); }
  // A switch that is neither on nor off until --NAME or --no-NAME says so; "auto" as text.
  bool may_be_open() const { return std::holds_alternative<std::optional<bool> TrainConfig::*>(field); }
  bool is_list() const { return std::holds_alternative<std::vector<std::string> TrainConfig::*>(field); }
};

std::span<const Setting> all_settings();
// Throws on an unknown name and tells the nearest one.
const Setting& find_setting(std::string_view name);

// Sets one value from text; only lists take more than one word. Throws on text that is no value of the setting's type.
void assign(TrainConfig& config, const Setting& setting, const std::vector<std::string>& words);
void assign(TrainConfig& config, std::string_view name, const std::string& value);
// The value as text, the words of a list joined by spaces.
std::string text_of(const TrainConfig& config, const Setting& setting);

// A run records its settings as JSON and TOML, so their text must be UTF-8; and control bytes in the name of the run
// folder, such as a line end, are refused. Errors name the setting and the place.
void require_recordable(const TrainConfig& config);

// What differs, in the order of the table: "lr 0.0003 -> 0.0001". Where a run is saved does not count: the folder may
// have been moved.
std::vector<std::string> changed_settings(const TrainConfig& before, const TrainConfig& now);

// What --baseline sets, and to what; empty where there is no baseline.
std::vector<std::pair<std::string_view, std::string>> set_by_baseline(const TrainConfig& config);
// Refuses a baseline beside settings that the user gave by name and that it would set to something else.
void require_no_contradiction(const TrainConfig& config, std::span<const std::string_view> given);

// A resolved configuration as flat TOML, complete, so that a later version with other defaults reads the same run.
std::string to_toml(const TrainConfig& config);
// Sets what the text names and leaves the rest. Errors begin with "FILE:LINE: ".
void read_toml(TrainConfig& config, std::string_view text, std::string_view file);
void read_toml_file(TrainConfig& config, const std::string& path);

}  // namespace agoq::train
