// A flat list of settings in TOML (https://toml.io/en/v1.0.0), read by toml++: `key = value` with strings, numbers,
// booleans and arrays of them. Sections, inline tables, dotted keys, dates and arrays within arrays are refused.
// Numbers are read by value: 1e3 and 1000.0 are the same. Integers have 64 bits with their sign; a larger seed is text.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace agoq::train {

struct TomlEntry {
  std::string key;
  std::vector<std::string> words;  // the value as text; the elements of an array
  bool array = false;
  int line = 0;  // of the key, from 1
};

// In the order of the file. Every error is an agoq::Error that begins with "FILE:LINE: ".
std::vector<TomlEntry> parse_flat_toml(std::string_view text, std::string_view file);

// A TOML string with quotes and escapes, and an array of them.
std::string toml_string(std::string_view text);
std::string toml_array(const std::vector<std::string>& texts);

}  // namespace agoq::train
