#include "base/read_json.h"

#include <set>
#include <vector>

#include "base/error.h"
#include "base/mapped_file.h"

namespace agoq {
namespace {

constexpr size_t kShown = 200;  // bytes of foreign text in a message

// Reads through a text without making values of it. The library's parser has a callback for this, which looks through
// all members of an object again at the end of each: 40,000 tensors in a header cost it minutes.
template <class Json>
class Guard : public nlohmann::json_sax<Json> {
 public:
  Guard(std::string_view what, const JsonLimits& limits) : what_(what), limits_(limits) {}

  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(typename Json::number_integer_t) override { return true; }
  bool number_unsigned(typename Json::number_unsigned_t) override { return true; }
  bool number_float(typename Json::number_float_t, const std::string&) override { return true; }
  bool string(std::string&) override { return true; }
  bool binary(typename Json::binary_t&) override { return true; }
  bool start_array(size_t) override { return go_in(); }
  bool end_array() override { return go_out(); }
  bool start_object(size_t) override {
    keys_.emplace_back();
    return go_in();
  }
  bool end_object() override {
    keys_.pop_back();
    return go_out();
  }
  bool key(std::string& key) override {
    auto& keys = keys_.back();
    if (!keys.insert(key).second) fail("{}: '{}' appears twice in one object", what_, shortened(key, kShown));
    require(keys.size() <= limits_.keys, "{} has an object of more than {} keys", what_, limits_.keys);
    return true;
  }
  bool parse_error(size_t, const std::string&, const nlohmann::detail::exception& e) override {
    fail("{} is not JSON: {}", what_, shortened(e.what(), kShown));
  }

 private:
  bool go_in() {
    require(++depth_ <= limits_.depth, "{} is nested more than {} levels deep", what_, limits_.depth);
    return true;
  }
  bool go_out() {
    --depth_;
    return true;
  }

  std::string_view what_;
  const JsonLimits& limits_;
  int depth_ = 0;
  std::vector<std::set<std::string>> keys_;  // of the objects that are open
};

}  // namespace

template <class Json>
Json parse_json(std::string_view text, std::string_view what, const JsonLimits& limits) {
  require(text.size() <= limits.bytes, "{} has {} bytes of JSON; at most {} are read", what, text.size(), limits.bytes);
  require(text.find('\0') == std::string_view::npos, "{} contains a zero byte, which is not JSON", what);
  Guard<Json> guard(what, limits);
  Json::sax_parse(text, &guard);
  return Json::parse(text);
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
