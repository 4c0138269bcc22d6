// The part of TOML (https://toml.io/en/v1.0.0) that a flat list of settings needs: `key = value` lines with strings,
// numbers, booleans and arrays of them, and comments. Sections, inline tables, dotted keys, dates and multi-line
// strings are refused.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace agoq::train {

struct TomlEntry {
  std::string key;
  std::vector<std::string> words;  // the value as text, strings unquoted; the elements of an array
  bool array = false;
  int line = 0;  // of the key, from 1
};

// Every error is an agoq::Error that begins with "FILE:LINE: ".
std::vector<TomlEntry> parse_flat_toml(std::string_view text, std::string_view file);

// A TOML string with quotes and escapes, and an array of them.
std::string toml_string(std::string_view text);
std::string toml_array(const std::vector<std::string>& texts);

}  // namespace agoq::train
