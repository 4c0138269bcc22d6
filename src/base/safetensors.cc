#include "base/safetensors.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>
#include <tuple>
#include <utility>

#include "base/error.h"
#include "base/read_json.h"
#include "base/text.h"

namespace agoq {
namespace {

using Json = nlohmann::json;

// The reference implementation reads 100 MB, which is a million tensors and many seconds. The largest published models
// have some 1000 tensors in a file.
constexpr uint64_t kMaxHeader = 32'000'000;
constexpr size_t kMaxTensors = 300'000, kMaxDimensions = 64;  // PyTorch has at most 64 dimensions
constexpr std::string_view kMetadata = "__metadata__";

// Every dtype of the format, so that a file with some of them can be listed and its other tensors read.
struct FormatDType {
  std::string_view name;
  uint64_t bits;
  std::optional<DType> dtype;
};
constexpr std::array<FormatDType, 22> kFormatDTypes = {
    {{"F32", 32, DType::F32},          {"BF16", 16, DType::BF16},    {"F16", 16, DType::F16},
     {"I64", 64, DType::I64},          {"I32", 32, DType::I32},      {"I16", 16, DType::I16},
     {"U16", 16, DType::U16},          {"U8", 8, DType::U8},         {"I8", 8, std::nullopt},
     {"BOOL", 8, std::nullopt},        {"F64", 64, std::nullopt},    {"U32", 32, std::nullopt},
     {"U64", 64, std::nullopt},        {"C64", 64, std::nullopt},    {"F8_E4M3", 8, std::nullopt},
     {"F8_E5M2", 8, std::nullopt},     {"F8_E8M0", 8, std::nullopt}, {"F8_E4M3FNUZ", 8, std::nullopt},
     {"F8_E5M2FNUZ", 8, std::nullopt}, {"F6_E2M3", 6, std::nullopt}, {"F6_E3M2", 6, std::nullopt},
     {"F4", 4, std::nullopt}}};

std::string_view format_name(DType dtype) {
  const auto row = std::find_if(kFormatDTypes.begin(), kFormatDTypes.end(), [&](auto& r) { return r.dtype == dtype; });
  require(row != kFormatDTypes.end(), "safetensors has no type for {}", name_of(dtype));
  return row->name;
}

std::string shown(std::string_view text) {
  constexpr size_t kMost = 200;  // bytes
  return shortened(text, kMost);
}

class HeaderParser {
 public:
  HeaderParser(std::span<const uint8_t> file, std::string_view path) : file_(file), path_(path) {}

  SafetensorsHeader parse() {
    const uint64_t length = header_length();
    header_.data_begin = 8 + length;
    data_size_ = file_.size() - header_.data_begin;
    const Json json = parse_header(file_.subspan(8, length));
    for (const auto& [name, value] : json.items()) {
      if (name == kMetadata)
        read_metadata(value);
      else
        header_.entries.push_back(read_entry(name, value));
    }
    check_cover();
    return std::move(header_);
  }

 private:
  template <class... Args>
  void check(bool condition, fmt::format_string<Args...> text, Args&&... args) const {
    if (!condition) [[unlikely]]
      fail("{} is not a valid safetensors file: {}", path_, fmt::format(text, std::forward<Args>(args)...));
  }

  uint64_t header_length() const {
    check(file_.size() >= 8, "it has {} bytes, fewer than the 8 of the header length", file_.size());
    uint64_t length = 0;
    for (size_t i = 0; i < 8; ++i) length |= uint64_t{file_[i]} << (8 * i);
    check(length <= kMaxHeader, "the header length {} exceeds the limit of {} bytes", length, kMaxHeader);
    check(length <= file_.size() - 8, "the header needs {} bytes and the file ends after {}; it is truncated", length,
          file_.size() - 8);
    check(length >= 2 && file_[8] == '{', "the header does not begin with '{{'");
    return length;
  }

  Json parse_header(std::span<const uint8_t> text) const {
    // A name hidden behind a repeated key or a zero byte would be a tensor that other readers see.
    const JsonLimits limits = {.bytes = kMaxHeader, .depth = 4, .keys = kMaxTensors};
    return parse_json<Json>({reinterpret_cast<const char*>(text.data()), text.size()},
                            fmt::format("{} is not a valid safetensors file: its header", path_), limits);
  }

  void read_metadata(const Json& value) {
    check(value.is_object(), "__metadata__ is not an object");
    for (const auto& [key, text] : value.items()) {
      check(text.is_string(), "__metadata__ entry '{}' is not a string", shown(key));
      header_.metadata[key] = text.get<std::string>();
    }
  }

  TensorEntry read_entry(const std::string& name, const Json& value) const {
    const std::string tensor = shown(name);
    check(value.is_object(), "the entry of tensor '{}' is not an object", tensor);
    for (const auto& [key, unused] : value.items())
      check(key == "dtype" || key == "shape" || key == "data_offsets", "tensor '{}' has an unknown field '{}'", tensor,
            shown(key));
    TensorEntry entry;
    entry.name = name;
    const FormatDType& type = read_dtype(tensor, value);
    entry.format_dtype = type.name;
    entry.dtype = type.dtype;
    read_shape(tensor, value, entry);
    read_offsets(tensor, value, entry);
    uint64_t bits = 0;
    check(!__builtin_mul_overflow(static_cast<uint64_t>(entry.count), type.bits, &bits) && bits % 8 == 0,
          "tensor '{}' has {} elements of {}, not a whole number of bytes below 2^61", tensor, entry.count, type.name);
    check(bits / 8 == entry.size, "tensor '{}' of {} {} needs {} bytes and its data_offsets hold {}", tensor, type.name,
          shown(value["shape"].dump()), bits / 8, entry.size);
    return entry;
  }

  const FormatDType& read_dtype(const std::string& tensor, const Json& value) const {
    check(value.contains("dtype") && value["dtype"].is_string(), "tensor '{}' has no dtype", tensor);
    const auto& name = value["dtype"].get_ref<const std::string&>();
    const auto row = std::find_if(kFormatDTypes.begin(), kFormatDTypes.end(), [&](auto& r) { return r.name == name; });
    check(row != kFormatDTypes.end(), "tensor '{}' has the unknown dtype '{}'", tensor, shown(name));
    return *row;
  }

  void read_shape(const std::string& tensor, const Json& value, TensorEntry& entry) const {
    check(value.contains("shape") && value["shape"].is_array(), "tensor '{}' has no shape", tensor);
    check(value["shape"].size() <= kMaxDimensions, "tensor '{}' has {} dimensions, more than {}", tensor,
          value["shape"].size(), kMaxDimensions);
    entry.count = 1;
    for (const Json& dim : value["shape"]) {
      check(dim.is_number_unsigned() && dim.get<uint64_t>() <= INT64_MAX,
            "tensor '{}' has the dimension {}, not a whole number in [0, 2^63)", tensor, shown(dim.dump()));
      entry.shape.push_back(dim.get<int64_t>());
      check(!__builtin_mul_overflow(entry.count, entry.shape.back(), &entry.count),
            "tensor '{}' of shape {} has more than 2^63 elements", tensor, shown(value["shape"].dump()));
    }
  }

  void read_offsets(const std::string& tensor, const Json& value, TensorEntry& entry) const {
    check(value.contains("data_offsets"), "tensor '{}' has no data_offsets", tensor);
    const Json& offsets = value["data_offsets"];
    check(
        offsets.is_array() && offsets.size() == 2 && offsets[0].is_number_unsigned() && offsets[1].is_number_unsigned(),
        "tensor '{}' has data_offsets {}, not two whole numbers", tensor, shown(offsets.dump()));
    const auto begin = offsets[0].get<uint64_t>();
    const auto end = offsets[1].get<uint64_t>();
    check(begin <= end, "tensor '{}' ends at {} before it begins at {}", tensor, end, begin);
    check(end <= data_size_, "tensor '{}' ends at byte {} of the data, which has {}; the file is truncated or damaged",
          tensor, end, data_size_);
    entry.offset = begin;
    entry.size = end - begin;
  }

  // In the order of their bytes, each tensor begins where the one before ends, and the last ends with the file.
  void check_cover() {
    auto& entries = header_.entries;
    std::sort(entries.begin(), entries.end(), [](const TensorEntry& a, const TensorEntry& b) {
      return std::tie(a.offset, a.size, a.name) < std::tie(b.offset, b.size, b.name);
    });
    uint64_t end = 0;
    for (const TensorEntry& entry : entries) {
      check(entry.offset >= end,
            "tensor '{}' begins at byte {} of the data, inside the tensor before, which ends at {}", shown(entry.name),
            entry.offset, end);
      check(entry.offset <= end, "bytes {} to {} of the data belong to no tensor", end, entry.offset);
      end = entry.offset + entry.size;
    }
    check(end == data_size_, "the tensors end at byte {} of the data, which has {}", end, data_size_);
  }

  std::span<const uint8_t> file_;
  std::string_view path_;
  uint64_t data_size_ = 0;
  SafetensorsHeader header_;
};

Shape shape_of(const TensorEntry& entry) {
  const auto& s = entry.shape;
  switch (s.size()) {
    case 0:
      return {1};
    case 1:
      return {s[0]};
    case 2:
      return {s[0], s[1]};
    case 3:
      return {s[0], s[1], s[2]};
    default:
      return {s.at(0), s.at(1), s.at(2), s.at(3)};
  }
}

template <class T, class ToFloat>
void widen(const uint8_t* from, std::span<float> out, ToFloat to_float_of) {
  for (size_t i = 0; i < out.size(); ++i) {
    T element;
    std::memcpy(&element, from + i * sizeof(T), sizeof(T));  // the file promises no alignment
    out[i] = to_float_of(element);
  }
}

uint64_t bytes_of(const TensorHeader& tensor) {
  uint64_t bytes = size_of(tensor.dtype);
  for (int64_t dim : tensor.shape)
    require(dim >= 0 && !__builtin_mul_overflow(bytes, static_cast<uint64_t>(dim), &bytes),
            "tensor '{}' has the dimension {}: negative, or too many bytes in all", tensor.name, dim);
  return bytes;
}

std::string header_text(const std::vector<TensorHeader>& tensors, const std::map<std::string, std::string>& metadata,
                        std::string_view path) {
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
  if (!metadata.empty()) json[std::string(kMetadata)] = metadata;
  uint64_t offset = 0;
  for (const TensorHeader& tensor : tensors) {
    const uint64_t end = offset + bytes_of(tensor);
    json[tensor.name] = {
        {"dtype", format_name(tensor.dtype)}, {"shape", tensor.shape}, {"data_offsets", {offset, end}}};
    offset = end;
  }
  try {
    std::string text = json.dump();
    text.resize((text.size() + 7) / 8 * 8, ' ');
    return text;
  } catch (const Json::exception& e) {
    fail("{}: a tensor name or metadata text cannot be written, {}", path, e.what());  // it is not UTF-8
  }
}

}  // namespace

SafetensorsHeader parse_safetensors_header(std::span<const uint8_t> file, std::string_view path) {
  return HeaderParser(file, path).parse();
}

SafetensorsFile::SafetensorsFile(std::string path)
    : file_(std::move(path)), header_(parse_safetensors_header(file_.bytes(), file_.path())) {
  for (const TensorEntry& entry : header_.entries) by_name_[entry.name] = &entry;
}

const TensorEntry* SafetensorsFile::find(std::string_view name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : found->second;
}

const TensorEntry& SafetensorsFile::at(std::string_view name) const {
  if (const TensorEntry* entry = find(name)) return *entry;
  std::vector<std::string> names;
  for (const TensorEntry& entry : entries()) names.push_back(entry.name);
  const std::string close = join(nearest(name, names, 3), ", ");
  fail("{} has no tensor '{}' among its {}{}{}", path(), name, names.size(), close.empty() ? "" : "; nearest: ", close);
}

std::span<const uint8_t> SafetensorsFile::bytes(const TensorEntry& entry) const {
  return file_.bytes().subspan(header_.data_begin + entry.offset, entry.size);
}

DType SafetensorsFile::supported_dtype(const TensorEntry& entry) const {
  require(entry.dtype.has_value(),
          "tensor '{}' of {} has dtype {}, which cannot be used here; convert it to F32 or BF16", entry.name, path(),
          entry.format_dtype);
  return *entry.dtype;
}

Tensor SafetensorsFile::tensor(const TensorEntry& entry) const {
  const DType dtype = supported_dtype(entry);
  const uint8_t* data = bytes(entry).data();
  require(entry.shape.size() <= 4, "tensor '{}' of {} has {} dimensions, at most 4 are supported", entry.name, path(),
          entry.shape.size());
  require(reinterpret_cast<uintptr_t>(data) % size_of(dtype) == 0,
          "tensor '{}' of {} is not aligned for {}; save the file again with a current safetensors library", entry.name,
          path(), name_of(dtype));
  return Tensor{const_cast<uint8_t*>(data), dtype, Device::Cpu, shape_of(entry)};
}

void SafetensorsFile::read_floats(const TensorEntry& entry, int64_t first, std::span<float> out) const {
  const DType dtype = supported_dtype(entry);
  require(first >= 0 && first <= entry.count && out.size() <= static_cast<size_t>(entry.count - first),
          "elements {} to {} lie outside tensor '{}' of {}, which has {}", first,
          first + static_cast<int64_t>(out.size()), entry.name, path(), entry.count);
  const uint8_t* from = bytes(entry).data() + static_cast<size_t>(first) * size_of(dtype);
  switch (dtype) {
    case DType::F32:
      return widen<float>(from, out, [](float x) { return x; });
    case DType::BF16:
      return widen<Bf16>(from, out, [](Bf16 x) { return to_float(x); });
    case DType::F16:
      return widen<uint16_t>(from, out, half_to_float);
    default:
      fail("tensor '{}' of {} has dtype {}, a floating-point type is expected", entry.name, path(), name_of(dtype));
  }
}

SafetensorsWriter::SafetensorsWriter(std::string path, const std::vector<TensorHeader>& tensors,
                                     const std::map<std::string, std::string>& metadata)
    : file_(std::move(path)) {
  std::set<std::string_view> names = {kMetadata};
  for (const TensorHeader& tensor : tensors) {
    require(names.insert(tensor.name).second, "{}: the tensor name '{}' is taken", file_.path(), tensor.name);
    slots_.push_back({tensor.name, bytes_of(tensor), 0});
  }
  const std::string header = header_text(tensors, metadata, file_.path());
  require(header.size() <= kMaxHeader, "{}: a header of {} bytes exceeds the format's limit of {}", file_.path(),
          header.size(), kMaxHeader);
  std::array<uint8_t, 8> length{};
  for (size_t i = 0; i < 8; ++i) length[i] = static_cast<uint8_t>(uint64_t{header.size()} >> (8 * i));
  file_.write(length);
  file_.write(header);
}

void SafetensorsWriter::require_current_complete() const {
  if (begun_ == 0) return;
  const WrittenTensor& current = slots_[begun_ - 1];
  require(remaining_ == 0, "{}: tensor '{}' still lacks {} of {} bytes", file_.path(), current.name, remaining_,
          current.size);
}

void SafetensorsWriter::begin(std::string_view name) {
  require_current_complete();
  require(begun_ < slots_.size(), "{}: tensor '{}' comes after the last declared one", file_.path(), name);
  require(slots_[begun_].name == name, "{}: tensor '{}' comes where '{}' is declared", file_.path(), name,
          slots_[begun_].name);
  remaining_ = slots_[begun_++].size;
  hash_.reset();
  slots_[begun_ - 1].checksum = hash_.value();
}

void SafetensorsWriter::append(std::span<const uint8_t> piece) {
  require(begun_ > 0, "{}: bytes come before the first tensor has begun", file_.path());
  WrittenTensor& current = slots_[begun_ - 1];
  require(piece.size() <= remaining_, "{}: {} bytes come for tensor '{}', which lacks {}", file_.path(), piece.size(),
          current.name, remaining_);
  file_.write(piece);
  hash_.add(piece);
  remaining_ -= piece.size();
  if (remaining_ == 0) current.checksum = hash_.value();
}

void SafetensorsWriter::write(std::string_view name, std::span<const uint8_t> bytes) {
  begin(name);
  append(bytes);
  require_current_complete();
}

void SafetensorsWriter::commit() {
  require_current_complete();
  require(begun_ == slots_.size(), "{}: tensor '{}' was declared and never written", file_.path(),
          begun_ < slots_.size() ? slots_[begun_].name : "");
  file_.commit();
}

uint64_t SafetensorsWriter::checksum(std::string_view name) const {
  const auto slot = std::find_if(slots_.begin(), slots_.end(), [&](const WrittenTensor& s) { return s.name == name; });
  require(slot != slots_.end(), "{}: no tensor '{}' is declared", file_.path(), name);
  const auto index = static_cast<size_t>(slot - slots_.begin());
  require(index + 1 < begun_ || (index + 1 == begun_ && remaining_ == 0), "{}: tensor '{}' is not completely written",
          file_.path(), name);
  return slot->checksum;
}

}  // namespace agoq
