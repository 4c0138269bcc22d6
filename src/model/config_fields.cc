#include "model/config_fields.h"

#include <algorithm>
#include <cmath>

#include "base/read_json.h"

namespace agoq::model {

std::string shown(const ConfigJson& value) {
  constexpr size_t kMost = 80;
  return shortened(value.dump(), kMost);
}

ConfigFields::ConfigFields(const ConfigJson& object, std::string prefix, const std::string& file)
    : object_(object), prefix_(std::move(prefix)), file_(file), asked_(std::make_shared<std::set<std::string>>()) {}

const ConfigJson* ConfigFields::find(const char* key) const {
  asked_->insert(key);
  const auto found = object_.find(key);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

bool ConfigFields::is_null(const char* key) const {
  return find(key) == nullptr && object_.contains(key);
}

const ConfigJson& ConfigFields::at(const char* key) const {
  const ConfigJson* value = find(key);
  check(value != nullptr, "{}{} is missing", prefix_, key);
  return *value;
}

int64_t ConfigFields::integer(const char* key, int64_t low, int64_t high) const {
  const ConfigJson& value = at(key);
  // A number above 2^63 is unsigned for the parser, and above every bound.
  const bool whole = value.is_number_integer() && (!value.is_number_unsigned() || value.get<uint64_t>() <= INT64_MAX);
  const int64_t number = whole ? value.get<int64_t>() : -1;
  check(whole && number >= low && number <= high, "{}{} must be a whole number from {} to {}, not {}", prefix_, key,
        low, high, shown(value));
  return number;
}

int64_t ConfigFields::integer_or(const char* key, int64_t low, int64_t high, int64_t fallback) const {
  return has(key) ? integer(key, low, high) : fallback;
}

double ConfigFields::number(const char* key, double low, double high) const {
  const ConfigJson& value = at(key);
  const double number = value.is_number() ? value.get<double>() : NAN;
  check(number >= low && number <= high, "{}{} must be a number from {} to {}, not {}", prefix_, key, low, high,
        shown(value));
  return number;
}

double ConfigFields::number_or(const char* key, double low, double high, double fallback) const {
  return has(key) ? number(key, low, high) : fallback;
}

bool ConfigFields::flag(const char* key, bool fallback) const {
  if (!has(key)) return fallback;
  check(at(key).is_boolean(), "{}{} must be true or false, not {}", prefix_, key, shown(at(key)));
  return at(key).get<bool>();
}

std::string ConfigFields::text(const char* key) const {
  check(at(key).is_string(), "{}{} must be a string, not {}", prefix_, key, shown(at(key)));
  return at(key).get<std::string>();
}

std::string ConfigFields::text_or(const char* key, const std::string& fallback) const {
  return has(key) ? text(key) : fallback;
}

ConfigFields ConfigFields::object(const char* key) const {
  check(at(key).is_object(), "{}{} must be an object, not {}", prefix_, key, shown(at(key)));
  return {at(key), fmt::format("{}{}.", prefix_, key), file_};
}

bool ConfigFields::nested() const {
  return std::any_of(object_.begin(), object_.end(), [](const ConfigJson& value) { return value.is_object(); });
}

std::vector<std::string> ConfigFields::unread() const {
  std::vector<std::string> keys;
  for (const auto& entry : object_.items())
    if (!asked_->contains(entry.key())) keys.push_back(prefix_ + entry.key());
  return keys;
}

}  // namespace agoq::model
