#include "train/config/flat_toml.h"

#include <fmt/format.h>
#include <toml++/toml.h>

#include <algorithm>

#include "base/error.h"
#include "base/text.h"

namespace agoq::train {
namespace {

bool is_control(char c) {
  return (static_cast<unsigned char>(c) < 0x20 && c != '\t') || c == 0x7f;
}

int line_of(const toml::source_region& source) {
  return static_cast<int>(source.begin.line);
}

// Settings are read from text, whatever type they have in the end.
std::string word_of(const toml::node& value, std::string_view file) {
  if (const auto* text = value.as_string()) return text->get();
  if (const auto* truth = value.as_boolean()) return truth->get() ? "true" : "false";
  if (const auto* integer = value.as_integer()) return std::to_string(integer->get());
  if (const auto* number = value.as_floating_point()) return fmt::format("{}", number->get());
  const char* found = value.is_table()   ? "sections, inline tables and dotted keys"
                      : value.is_array() ? "arrays within arrays"
                                         : "dates and times";
  fail("{}:{}: {} are not used; every setting is a plain `key = value`", file, line_of(value.source()), found);
}

TomlEntry entry_of(const toml::key& key, const toml::node& value, std::string_view file) {
  TomlEntry entry{std::string(key.str()), {}, value.is_array(), line_of(key.source())};
  if (const toml::array* array = value.as_array())
    for (const toml::node& element : *array) entry.words.push_back(word_of(element, file));
  else
    entry.words.push_back(word_of(value, file));
  return entry;
}

}  // namespace

std::vector<TomlEntry> parse_flat_toml(std::string_view text, std::string_view file) {
  toml::table table;
  try {
    table = toml::parse(text, file);
  } catch (const toml::parse_error& error) {
    fail("{}:{}: {} (a setting is a line `key = value`; text stands in quotes)", file, error.source().begin.line,
         error.description());
  }
  std::vector<TomlEntry> entries;
  for (const auto& [key, value] : table) entries.push_back(entry_of(key, value, file));
  // The library sorts by key.
  std::stable_sort(entries.begin(), entries.end(),
                   [](const TomlEntry& a, const TomlEntry& b) { return a.line < b.line; });
  return entries;
}

std::string toml_string(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\')
      out += {'\\', c};
    else if (c == '\n')
      out += "\\n";
    else if (is_control(c))
      out += fmt::format("\\u{:04X}", static_cast<unsigned char>(c));
    else
      out += c;
  }
  return out + '"';
}

std::string toml_array(const std::vector<std::string>& texts) {
  std::vector<std::string> quoted;
  for (const std::string& text : texts) quoted.push_back(toml_string(text));
  return "[" + join(quoted, ", ") + "]";
}

}  // namespace agoq::train
