#include "train/checkpoint/manifest.h"

#include <algorithm>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "base/checksum.h"
#include "base/error.h"
#include "base/read_json.h"

namespace agoq::train {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kWholeTensors = 1, kPieces = 2;                                         // formats
constexpr JsonLimits kLimits = {.bytes = size_t{1} << 30, .depth = 64, .keys = 100'000};  // pieces of many ranks
// The checksum covers every byte behind this head, and the head is compared byte by byte: no bit of the file is
// unprotected.
constexpr std::string_view kHead = R"({"checksum":")";
constexpr std::string_view kHeadEnd = "\",\n";
constexpr size_t kHexDigits = 16;

std::string hex(uint64_t value) {
  return fmt::format("{:016x}", value);
}

Json parse_object(std::string_view text, std::string_view what) {
  Json json = parse_json(text, what, kLimits);
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
    require(format == kWholeTensors || format == kPieces, "{}: checkpoint format {}, this program reads {} and {}",
            path_, format, kWholeTensors, kPieces);
    Manifest manifest;
    manifest.step = get<int64_t>(json, "step");
    check(manifest.step >= 0, "the step is {}", manifest.step);
    manifest.files = read_files(json);
    manifest.tensors = read_tensors(json);
    for (const ManifestTensor& tensor : manifest.tensors) {
      const std::string problem = cover_problem(tensor);
      check(problem.empty(), "{}", problem);
    }
    check(json.contains("metadata") && json["metadata"].is_object(), "'metadata' is missing or no object");
    manifest.metadata = json["metadata"].dump();
    return manifest;
  }

  ManifestFragment read_fragment() {
    const Json json = parse_object(text_, path_);
    ManifestFragment fragment;
    const auto rank = get<int64_t>(json, "rank");
    check(rank <= std::numeric_limits<int>::max(), "the rank is {}", rank);
    fragment.rank = static_cast<int>(rank);
    fragment.error = get<std::string>(json, "error");
    fragment.files = read_files(json);
    fragment.tensors = read_tensors(json);
    return fragment;
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

  std::vector<ManifestFile> read_files(const Json& json) {
    std::vector<ManifestFile> files;
    for (const Json& file : array(json, "files")) files.push_back(read_file(file));
    return files;
  }

  std::vector<ManifestTensor> read_tensors(const Json& json) {
    std::vector<ManifestTensor> tensors;
    for (const Json& tensor : array(json, "tensors")) tensors.push_back(read_tensor(tensor));
    return tensors;
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
    check(tensor.name.find('@') == std::string::npos, "tensor '{}' has the name of a piece", tensor.name);
    check(names_.insert(tensor.name).second, "tensor '{}' is listed twice", tensor.name);
    const auto dtype = get<std::string>(json, "dtype");
    check(dtype_from_name(dtype).has_value(), "tensor '{}' has the unknown type '{}'", tensor.name, dtype);
    tensor.dtype = *dtype_from_name(dtype);
    read_shape(json, tensor);
    if (json.contains("pieces"))
      for (const Json& piece : array(json, "pieces"))
        tensor.pieces.push_back(read_piece(piece, tensor, read_rectangle(piece)));
    else
      tensor.pieces.push_back(read_piece(json, tensor, tensor.whole()));
    return tensor;
  }

  void read_shape(const Json& json, ManifestTensor& tensor) {
    int64_t count = 1;
    for (const Json& dim : array(json, "shape")) {
      check(dim.is_number_unsigned() && dim.get<uint64_t>() <= INT64_MAX, "tensor '{}' has the dimension {}",
            tensor.name, dim.dump());
      tensor.shape.push_back(dim.get<int64_t>());
      check(!__builtin_mul_overflow(count, tensor.shape.back(), &count), "tensor '{}' has more than 2^63 elements",
            tensor.name);
    }
  }

  Rectangle read_rectangle(const Json& json) {
    check(json.is_object(), "a piece is no object");
    const auto range = [&](const char* key) {
      const Json& pair = array(json, key);
      const auto whole = [](const Json& n) { return n.is_number_unsigned() && n.get<uint64_t>() <= INT64_MAX; };
      check(pair.size() == 2 && whole(pair[0]) && whole(pair[1]), "'{}' is {}, not two whole numbers", key,
            pair.dump());
      return std::pair(pair[0].get<int64_t>(), pair[1].get<int64_t>());
    };
    const auto [row_begin, row_end] = range("rows");
    const auto [col_begin, col_end] = range("columns");
    return {row_begin, row_end, col_begin, col_end};
  }

  ManifestPiece read_piece(const Json& json, const ManifestTensor& tensor, const Rectangle& at) {
    ManifestPiece piece{at, get<std::string>(json, "file"), 0};
    const bool inside = tensor.whole().contains(at) && at.rows() >= 0 && at.cols() >= 0;
    check(inside, "the piece {} of tensor '{}' lies outside its {}", at.text(), tensor.name, tensor.whole().text());
    check(at == tensor.whole() || !at.empty(), "the piece {} of tensor '{}' is empty", at.text(), tensor.name);
    check(files_.contains(piece.file), "tensor '{}' lies in '{}', which is not listed", tensor.name, piece.file);
    piece.checksum = read_checksum(tensor.name, get<std::string>(json, "checksum"));
    return piece;
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

bool is_in_one_piece(const ManifestTensor& tensor) {
  return tensor.pieces.size() == 1 && tensor.pieces[0].at == tensor.whole();
}

Json files_json(std::span<const ManifestFile> files) {
  Json json = Json::array();
  for (const ManifestFile& file : files) json.push_back(Json{{"name", file.name}, {"bytes", file.bytes}});
  return json;
}

Json tensor_json(const ManifestTensor& tensor) {
  Json json = {{"name", tensor.name}, {"dtype", name_of(tensor.dtype)}, {"shape", tensor.shape}};
  const auto add_place = [](Json& to, const ManifestPiece& piece) {
    to["file"] = piece.file;
    to["checksum"] = hex(piece.checksum);
  };
  if (is_in_one_piece(tensor)) {
    add_place(json, tensor.pieces[0]);
    return json;
  }
  json["pieces"] = Json::array();
  for (const ManifestPiece& piece : tensor.pieces) {
    Json& entry = json["pieces"].emplace_back();
    entry["rows"] = {piece.at.row_begin, piece.at.row_end};
    entry["columns"] = {piece.at.col_begin, piece.at.col_end};
    add_place(entry, piece);
  }
  return json;
}

Json tensors_json(std::span<const ManifestTensor> tensors) {
  Json json = Json::array();
  for (const ManifestTensor& tensor : tensors) json.push_back(tensor_json(tensor));
  return json;
}

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

TensorHeader ManifestTensor::header(const Rectangle& piece) const {
  if (piece == whole()) return {name, dtype, shape};
  return {fmt::format("{}@{}", name, piece.text()), dtype, {piece.rows(), piece.cols()}};
}

std::string cover_problem(const ManifestTensor& tensor) {
  const Rectangle whole = tensor.whole();
  if (whole.empty() && tensor.pieces.size() != 1)
    return fmt::format("tensor '{}' is empty and has {} pieces, not one", tensor.name, tensor.pieces.size());
  std::vector<Rectangle> places;
  for (const ManifestPiece& piece : tensor.pieces) places.push_back(piece.at);
  const auto flaw = find_cover_flaw(places, whole);
  if (!flaw) return "";
  if (flaw->pieces.empty())
    return fmt::format("row {}, column {} of tensor '{}' ({}) is in no piece", flaw->row, flaw->col, tensor.name,
                       whole.text());
  const ManifestPiece &a = tensor.pieces[flaw->pieces[0]], &b = tensor.pieces[flaw->pieces[1]];
  return fmt::format("tensor '{}': its pieces {} in {} and {} in {} overlap at row {}, column {}", tensor.name,
                     a.at.text(), a.file, b.at.text(), b.file, flaw->row, flaw->col);
}

std::string manifest_text(const Manifest& manifest) {
  const bool whole = std::all_of(manifest.tensors.begin(), manifest.tensors.end(), is_in_one_piece);
  const Json json = {{"format", whole ? kWholeTensors : kPieces},
                     {"step", manifest.step},
                     {"metadata", parse_object(manifest.metadata, "the checkpoint's metadata")},
                     {"files", files_json(manifest.files)},
                     {"tensors", tensors_json(manifest.tensors)}};
  return sealed_manifest(json.dump(1).substr(1) + "\n");  // without the opening brace
}

std::string fragment_text(const ManifestFragment& fragment) {
  const Json json = {{"rank", fragment.rank},
                     {"error", fragment.error},
                     {"files", files_json(fragment.files)},
                     {"tensors", tensors_json(fragment.tensors)}};
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

ManifestFragment parse_fragment(std::string_view text) {
  return ManifestReader(text, "a rank's part of the manifest").read_fragment();
}

Manifest merge_fragments(int64_t step, std::string metadata, std::span<const ManifestFragment> fragments) {
  Manifest manifest{step, {}, {}, std::move(metadata)};
  std::map<std::string_view, size_t> places;
  for (const ManifestFragment& fragment : fragments) {
    manifest.files.insert(manifest.files.end(), fragment.files.begin(), fragment.files.end());
    for (const ManifestTensor& tensor : fragment.tensors) {
      const auto [place, is_new] = places.emplace(tensor.name, manifest.tensors.size());
      if (is_new) {
        manifest.tensors.push_back(tensor);
        continue;
      }
      ManifestTensor& known = manifest.tensors[place->second];
      require(known.dtype == tensor.dtype && known.shape == tensor.shape,
              "tensor '{}' is {} [{}] to rank {}, and {} [{}] to a rank before it", tensor.name, name_of(tensor.dtype),
              fmt::join(tensor.shape, ", "), fragment.rank, name_of(known.dtype), fmt::join(known.shape, ", "));
      known.pieces.insert(known.pieces.end(), tensor.pieces.begin(), tensor.pieces.end());
    }
  }
  for (const ManifestTensor& tensor : manifest.tensors) {
    const std::string problem = cover_problem(tensor);
    require(problem.empty(), "{}", problem);
  }
  return manifest;
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
