#include "cli/help.h"

#include <CLI/CLI.hpp>
#include <sstream>
#include <string>

namespace agoq::cli {
namespace {

constexpr size_t kColumn = 38;  // where explanations begin
constexpr size_t kWidth = 110;

// `name` in the left column, `text` wrapped in the right one; a long name stands alone on its line.
std::string entry(const std::string& name, const std::string& text) {
  std::string out = "  " + name;
  if (text.empty()) return out + "\n";
  if (out.size() + 2 > kColumn)
    out += "\n" + std::string(kColumn, ' ');
  else
    out.resize(kColumn, ' ');
  std::istringstream words(text);
  size_t column = kColumn;
  for (std::string word; words >> word;) {
    if (column > kColumn && column + 1 + word.size() > kWidth) {
      out += "\n" + std::string(kColumn, ' ');
      column = kColumn;
    }
    if (column > kColumn) {
      out += ' ';
      ++column;
    }
    out += word;
    column += word.size();
  }
  return out + "\n";
}

class Formatter : public CLI::Formatter {
 public:
  std::string make_help(const CLI::App* app, std::string name, CLI::AppFormatMode mode) const override {
    return CLI::detail::find_and_replace(CLI::Formatter::make_help(app, name, mode), "\n\n\n", "\n\n");
  }
  std::string make_option(const CLI::Option* option, bool positional) const override {
    const bool takes_value = !positional && option->get_type_size() != 0 && !option->get_type_name().empty();
    return entry(make_option_name(option, positional) + (takes_value ? " " + option->get_type_name() : ""),
                 option->get_description());
  }
  std::string make_subcommand(const CLI::App* command) const override {
    return entry(command->get_name(), command->get_description());
  }
  std::string make_usage(const CLI::App* app, std::string name) const override {
    if (app->get_parent() && name.find(' ') == std::string::npos) name = "agoq " + name;
    return "\nUsage: " + CLI::Formatter::make_usage(app, name).substr(std::string("Usage: ").size());
  }
};

}  // namespace

std::shared_ptr<CLI::FormatterBase> help_formatter() {
  auto formatter = std::make_shared<Formatter>();
  formatter->label("Positionals", "Arguments");
  formatter->label("OPTIONS", "options");
  formatter->label("SUBCOMMAND", "command");
  return formatter;
}

CLI::Validator not_negative() {
  return CLI::Validator(
      [](const std::string& text) {
        double value = 0;
        const bool valid = CLI::detail::lexical_cast(text, value) && value >= 0;
        return valid ? std::string() : "'" + text + "' is not a number from 0 up";
      },
      "");
}

}  // namespace agoq::cli
