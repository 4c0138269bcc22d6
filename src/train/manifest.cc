#include "train/manifest.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "base/checksum.h"
#include "base/error.h"

namespace agoq::train {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kFormat = 1;
constexpr int kMaxDepth = 64;
// The checksum covers every byte behind this head, and the head is compared byte by byte: no bit of the file is
// unprotected.
constexpr std::string_view kHead = R"({"checksum":")";
constexpr std::string_view kHeadEnd = "\",\n";
constexpr size_t kHexDigits = 16;

std::string hex(uint64_t value) {
  return fmt::format("{:016x}", value);
}

Json parse_json(std::string_view text, std::string_view what) {
  const auto limit_depth = [&](int depth, Json::parse_event_t, Json&) {
    require(depth <= kMaxDepth, "{} is nested more than {} levels deep", what, kMaxDepth);
    return true;
  };
  try {
    return Json::parse(text, limit_depth);
  } catch (const Json::exception& e) {
    fail("{} is not JSON: {}", what, e.what());
  }
}

Json parse_object(std::string_view text, std::string_view what) {
  Json json = parse_json(text, what);
  require(json.is_object(), "{} is not a JSON object", what);
  return json;
}

class ManifestReader {
 public:
  ManifestReader(std::string_view text, std::string_view path) : text_(text), path_(path) {}

  Manifest read() {
    check_seal();
    const Json json = parse_object(text_, path_);
    const auto format = get<int64_t>(json, "format");
    require(format == kFormat, "{}: checkpoint format {}, this program reads format {}", path_, format, kFormat);
    Manifest manifest;
    manifest.step = get<int64_t>(json, "step");
    check(manifest.step >= 0, "the step is {}", manifest.step);
    for (const Json& file : array(json, "files")) manifest.files.push_back(read_file(file));
    for (const Json& tensor : array(json, "tensors")) manifest.tensors.push_back(read_tensor(tensor));
    check(json.contains("metadata") && json["metadata"].is_object(), "'metadata' is missing or no object");
    manifest.metadata = json["metadata"].dump();
    return manifest;
  }

 private:
  template <class... Args>
  void check(bool condition, fmt::format_string<Args...> text, Args&&... args) const {
    if (!condition) [[unlikely]]
      fail("{} is no valid manifest: {}", path_, fmt::format(text, std::forward<Args>(args)...));
  }

  void check_seal() const {
    const size_t begin = kHead.size() + kHexDigits + kHeadEnd.size();
    const bool whole = text_.size() >= begin && text_.starts_with(kHead) &&
                       text_.substr(kHead.size() + kHexDigits).starts_with(kHeadEnd);
    require(whole, "{} is damaged: it does not begin with its checksum", path_);
    require(sealed_manifest(text_.substr(begin)) == text_, "{} is damaged: its checksum does not match its content",
            path_);
  }

  template <class T>
  T get(const Json& json, const char* key) const {
    check(json.is_object() && json.contains(key), "'{}' is missing", key);
    const Json& value = json[key];
    if constexpr (std::is_same_v<T, std::string>) {
      check(value.is_string(), "'{}' is no string", key);
    } else {
      check(value.is_number_unsigned() && value.template get<uint64_t>() <= INT64_MAX, "'{}' is no whole number", key);
    }
    return value.template get<T>();
  }

  const Json& array(const Json& json, const char* key) const {
    check(json.contains(key) && json[key].is_array(), "'{}' is missing or no list", key);
    return json[key];
  }

  // A name must not lead out of the checkpoint's folder.
  ManifestFile read_file(const Json& json) {
    ManifestFile file{get<std::string>(json, "name"), get<uint64_t>(json, "bytes")};
    const bool plain = file.name.find('/') == std::string::npos && file.name.find('\0') == std::string::npos;
    check(plain && !file.name.empty() && file.name[0] != '.', "'{}' is no file name", file.name);
    check(files_.insert(file.name).second, "file '{}' is listed twice", file.name);
    return file;
  }

  ManifestTensor read_tensor(const Json& json) {
    ManifestTensor tensor;
    tensor.name = get<std::string>(json, "name");
    check(names_.insert(tensor.name).second, "tensor '{}' is listed twice", tensor.name);
    const auto dtype = get<std::string>(json, "dtype");
    check(dtype_from_name(dtype).has_value(), "tensor '{}' has the unknown type '{}'", tensor.name, dtype);
    tensor.dtype = *dtype_from_name(dtype);
    for (const Json& dim : array(json, "shape")) {
      check(dim.is_number_unsigned() && dim.get<uint64_t>() <= INT64_MAX, "tensor '{}' has the dimension {}",
            tensor.name, dim.dump());
      tensor.shape.push_back(dim.get<int64_t>());
    }
    tensor.file = get<std::string>(json, "file");
    check(files_.contains(tensor.file), "tensor '{}' lies in '{}', which is not listed", tensor.name, tensor.file);
    tensor.checksum = read_checksum(tensor.name, get<std::string>(json, "checksum"));
    return tensor;
  }

  uint64_t read_checksum(const std::string& name, const std::string& digits) const {
    const bool valid = digits.size() == kHexDigits && digits.find_first_not_of("0123456789abcdef") == std::string::npos;
    check(valid, "tensor '{}' has the checksum '{}'", name, digits);
    return std::stoull(digits, nullptr, 16);
  }

  std::string_view text_;
  std::string_view path_;
  std::set<std::string> files_;
  std::set<std::string> names_;
};

void compare(const std::string& key, const Json* saved, const Json* now, std::vector<std::string>& lines) {
  const auto show = [](const Json* value) {
    return value ? value->dump(-1, ' ', false, Json::error_handler_t::replace) : std::string("absent");
  };
  if (saved && now && saved->is_object() && now->is_object()) {
    const std::string prefix = key.empty() ? "" : key + ".";
    for (const auto& [name, value] : saved->items())
      compare(prefix + name, &value, now->contains(name) ? &(*now)[name] : nullptr, lines);
    for (const auto& [name, value] : now->items())
      if (!saved->contains(name)) compare(prefix + name, nullptr, &value, lines);
    return;
  }
  const bool lists = saved && now && saved->is_array() && now->is_array() && saved->size() == now->size();
  if (lists) {
    for (size_t i = 0; i < saved->size(); ++i) compare(fmt::format("{}[{}]", key, i), &(*saved)[i], &(*now)[i], lines);
    return;
  }
  if (saved && now && *saved == *now) return;
  lines.push_back(fmt::format("{}: saved {}, now {}", key, show(saved), show(now)));
}

}  // namespace

std::string sealed_manifest(std::string_view members) {
  const uint64_t checksum = xxh3({reinterpret_cast<const uint8_t*>(members.data()), members.size()});
  return fmt::format("{}{}{}{}", kHead, hex(checksum), kHeadEnd, members);
}

std::string manifest_text(const Manifest& manifest) {
  Json files = Json::array();
  for (const ManifestFile& file : manifest.files) files.push_back(Json{{"name", file.name}, {"bytes", file.bytes}});
  Json tensors = Json::array();
  for (const ManifestTensor& tensor : manifest.tensors)
    tensors.push_back(Json{{"name", tensor.name},
                           {"dtype", name_of(tensor.dtype)},
                           {"shape", tensor.shape},
                           {"file", tensor.file},
                           {"checksum", hex(tensor.checksum)}});
  const Json json = {{"format", kFormat},
                     {"step", manifest.step},
                     {"metadata", parse_object(manifest.metadata, "the checkpoint's metadata")},
                     {"files", files},
                     {"tensors", tensors}};
  return sealed_manifest(json.dump(1).substr(1) + "\n");  // without the opening brace
}

Manifest parse_manifest(std::string_view text, std::string_view path) {
  return ManifestReader(text, path).read();
}

std::vector<std::string> differences(std::string_view saved, std::string_view now) {
  const Json before = parse_object(saved, "the saved configuration");
  const Json after = parse_object(now, "the present configuration");
  std::vector<std::string> lines;
  compare("", &before, &after, lines);
  return lines;
}

}  // namespace agoq::train
