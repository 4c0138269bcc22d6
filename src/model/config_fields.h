// One JSON object of a config.json. Every read checks type and bounds and names the key, and what was never asked for
// is known at the end: a key that nobody reads may be one that changes what the model computes.
#pragma once

#include <fmt/ranges.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"

namespace agoq::model {

using ConfigJson = nlohmann::ordered_json;

// A value for a message; whoever wrote the file decided how long it is.
std::string shown(const ConfigJson& value);

class ConfigFields {
 public:
  // `prefix` stands before the keys in messages ("rope_scaling."), `file` begins them. Both objects must outlive this.
  ConfigFields(const ConfigJson& object, std::string prefix, const std::string& file);

  // null means "not given", as it does in transformers.
  bool has(const char* key) const { return find(key) != nullptr; }
  bool is_null(const char* key) const;
  const ConfigJson& at(const char* key) const;

  int64_t integer(const char* key, int64_t low, int64_t high) const;
  int64_t integer_or(const char* key, int64_t low, int64_t high, int64_t fallback) const;
  double number(const char* key, double low, double high) const;
  double number_or(const char* key, double low, double high, double fallback) const;
  bool flag(const char* key, bool fallback) const;
  std::string text(const char* key) const;
  std::string text_or(const char* key, const std::string& fallback) const;
  ConfigFields object(const char* key) const;

  bool empty() const { return object_.empty(); }
  // Per-layer settings are objects where a single one has numbers and strings.
  bool nested() const;
  // Keys that no call has named yet, with their prefix, in the order of the file.
  std::vector<std::string> unread() const;
  const std::string& prefix() const { return prefix_; }

  template <class... Args>
  void check(bool condition, fmt::format_string<Args...> text, Args&&... args) const {
    if (!condition) [[unlikely]]
      fail("{}: {}", file_, fmt::format(text, std::forward<Args>(args)...));
  }

 private:
  const ConfigJson* find(const char* key) const;  // none if missing or null; the key counts as read

  const ConfigJson& object_;
  std::string prefix_;
  const std::string& file_;
  std::shared_ptr<std::set<std::string>> asked_;
};

}  // namespace agoq::model
