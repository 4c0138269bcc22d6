#include "cli/options.h"

#include <omp.h>

#include <CLI/CLI.hpp>
#include <algorithm>

namespace agoq::cli {
namespace {

std::string described(const train::Setting& setting, const train::TrainConfig& defaults) {
  const std::string value = train::text_of(defaults, setting);
  const bool obvious = value.empty() || setting.is_switch();
  return std::string(setting.help) + (obvious ? "" : " (default: " + value + ")");
}

}  // namespace

std::shared_ptr<SettingOptions> SettingOptions::add(CLI::App& app, const std::vector<std::string_view>& names,
                                                    const train::TrainConfig& defaults) {
  auto options = std::make_shared<SettingOptions>();
  options->defaults_ = defaults;
  app.add_option("--config", options->file_, "read settings from this TOML file; flags win over it")->type_name("FILE");
  for (const train::Setting& setting : train::all_settings()) {
    const auto listed = [&](std::string_view name) { return name == setting.name || name == setting.group; };
    if (names.empty() || std::any_of(names.begin(), names.end(), listed)) options->add_flag(app, setting);
  }
  return options;
}

void SettingOptions::add_flag(CLI::App& app, const train::Setting& setting) {
  const std::string flag = "--" + std::string(setting.name);
  const auto take = [this, &setting](const std::vector<std::string>& words) {
    try {
      train::TrainConfig scratch;
      train::assign(scratch, setting, words);
    } catch (const Error& error) {
      throw CLI::ValidationError(std::string("--") + error.what());
    }
    given_[&setting] = words;
  };
  CLI::Option* option = nullptr;
  if (setting.is_switch()) {
    const std::string flags = setting.may_be_open() ? fmt::format("{},!--no-{}", flag, setting.name) : flag;
    option = app.add_flag_function(flags, [take](int64_t count) { take({count > 0 ? "true" : "false"}); });
    option->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  } else {
    option = app.add_option_function<std::vector<std::string>>(flag, take)
                 ->expected(1, setting.is_list() ? CLI::detail::expected_max_vector_size : 1);
    if (!setting.is_list()) option->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
    option->type_name(std::string(setting.value));
  }
  option->description(described(setting, defaults_))->group(std::string(setting.group));
}

train::TrainConfig SettingOptions::config() const {
  train::TrainConfig config = defaults_;
  if (!file_.empty()) train::read_toml_file(config, file_);
  std::vector<std::string_view> names;
  for (const auto& [setting, words] : given_) {
    train::assign(config, *setting, words);
    names.push_back(setting->name);
  }
  train::require_no_contradiction(config, names);
  return config;
}

void add_ignored_keys(CLI::App& app, std::string& keys) {
  const train::Setting& setting = train::find_setting("ignore-config-keys");
  app.add_option("--" + std::string(setting.name), keys, std::string(setting.help))
      ->type_name(std::string(setting.value));
}

void use_threads(const train::TrainConfig& config) {
  if (config.threads > 0) omp_set_num_threads(static_cast<int>(config.threads));
}

}  // namespace agoq::cli
