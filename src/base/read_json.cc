#include "base/read_json.h"

#include <set>
#include <vector>

#include "base/error.h"
#include "base/mapped_file.h"

namespace agoq {
namespace {

constexpr size_t kShown = 200;  // bytes of foreign text in a message

// Looks at every event of the parser before it becomes a value.
template <class Json>
class Guard {
 public:
  Guard(std::string_view what, const JsonLimits& limits) : what_(what), limits_(limits) {}

  void see(int depth, typename Json::parse_event_t event, const Json& parsed) {
    using Event = typename Json::parse_event_t;
    require(depth <= limits_.depth, "{} is nested more than {} levels deep", what_, limits_.depth);
    if (event == Event::object_start) keys_.emplace_back();
    if (event == Event::object_end) keys_.pop_back();
    if (event == Event::key) see_key(parsed.template get_ref<const std::string&>());
  }

 private:
  void see_key(const std::string& key) {
    auto& keys = keys_.back();
    if (!keys.insert(key).second) fail("{}: '{}' appears twice in one object", what_, shortened(key, kShown));
    require(keys.size() <= limits_.keys, "{} has an object of more than {} keys", what_, limits_.keys);
  }

  std::string_view what_;
  const JsonLimits& limits_;
  std::vector<std::set<std::string>> keys_;  // of the objects that are open
};

}  // namespace

template <class Json>
Json parse_json(std::string_view text, std::string_view what, const JsonLimits& limits) {
  require(text.size() <= limits.bytes, "{} has {} bytes of JSON; at most {} are read", what, text.size(), limits.bytes);
  require(text.find('\0') == std::string_view::npos, "{} contains a zero byte, which is not JSON", what);
  Guard<Json> guard(what, limits);
  try {
    return Json::parse(text, [&](int depth, typename Json::parse_event_t event, const Json& parsed) {
      guard.see(depth, event, parsed);
      return true;
    });
  } catch (const typename Json::exception& e) {
    fail("{} is not JSON: {}", what, shortened(e.what(), kShown));
  }
}

template nlohmann::json parse_json(std::string_view, std::string_view, const JsonLimits&);
template nlohmann::ordered_json parse_json(std::string_view, std::string_view, const JsonLimits&);

std::string shortened(std::string_view text, size_t most) {
  return text.size() <= most ? std::string(text) : std::string(text.substr(0, most)) + "...";
}

std::string read_text(const std::string& path, size_t most) {
  const MappedFile file(path);
  require(file.size() <= most, "{} has {} bytes; at most {} are read", path, file.size(), most);
  return {file.bytes().begin(), file.bytes().end()};
}

}  // namespace agoq
