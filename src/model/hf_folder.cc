#include "model/hf_folder.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <span>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/read_json.h"
#include "base/safetensors.h"
#include "base/text.h"
#include "model/weight_files.h"

namespace agoq::model {
namespace {

namespace fs = std::filesystem;
using SortedJson = nlohmann::json;  // by key

constexpr const char* kConfigFile = "config.json";
constexpr const char* kEmbedding = "model.embed_tokens.weight";
constexpr const char* kHead = "lm_head.weight";
constexpr int64_t kSlab = 1 << 22;  // numbers converted at a time

// One Hugging Face tensor, and where its rows (of a vector, elements) lie in this rank's shard of a parameter.
struct Piece {
  std::string name;
  ParamId id;
  std::vector<int64_t> shape;  // in the file
  RowPiece rows;               // local_begin in the shard, global_begin in the file
  int64_t first_col = 0;       // in the file
  int64_t count() const { return shape.size() == 1 ? shape[0] : shape[0] * shape[1]; }
};

std::vector<Piece> pieces_of(const ModelConfig& config, const LayerSpec& spec) {
  std::vector<Piece> pieces;
  for (const ParamId& id : all_params(config, spec)) {
    const ParamRow& row = spec[id.param];
    int64_t begin = 0;  // of the part in the logical parameter
    for (size_t i = 0; i < row.parts.size(); ++i) {
      const HfPart& part = row.parts[i];
      std::vector<int64_t> shape = {part.extent};
      if (!row.one_dimensional()) shape.push_back(row.logical_cols);
      RowPiece rows = row.pieces[i];
      rows.global_begin -= begin;
      pieces.push_back({hf_name(part, id), id, std::move(shape), rows, row.first_col});
      begin += part.extent;
    }
  }
  return pieces;
}

// body(rows, weight): a slab of the piece's rows, and where it lies in the shard. A 1-D piece comes whole and with the
// whole shard: there is no part of a part.
template <class Body>
void for_slabs(const Piece& piece, const Parameters& params, Body&& body) {
  const ops::Weight& weight = params.at(piece.id);
  if (piece.shape.size() == 1) return body(piece.rows, weight);
  const Range held = params.rows(piece.id);
  const int64_t shift = piece.rows.global_begin - piece.rows.local_begin;
  const int64_t begin = std::max(piece.rows.local_begin, held.begin);
  const int64_t end = std::min(piece.rows.local_begin + piece.rows.count, held.end);
  const int64_t step = std::max<int64_t>(kSlab / piece.shape[1], 1);
  for (int64_t row = begin; row < end; row += step) {
    const int64_t count = std::min(step, end - row);
    body(RowPiece{row, row + shift, count}, weight.row_range(row - held.begin, row - held.begin + count));
  }
}

size_t to_size(int64_t n) {
  return static_cast<size_t>(n);
}

std::string shape_text(const std::vector<int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

// Old files hold RoPE's frequencies. Some hold the weight that embedding and head share twice.
bool ignored(const std::string& name, const ModelConfig& config) {
  return name.ends_with("rotary_emb.inv_freq") || (config.tied_embeddings && name == kHead);
}

// The tensor of a piece. The weight that embedding and head share may be stored under the head's name alone.
const WeightFiles::FileTensor* find_tensor(const WeightFiles& files, const Piece& piece, const ModelConfig& config) {
  const WeightFiles::FileTensor* tensor = files.find(piece.name);
  if (tensor == nullptr && config.tied_embeddings && piece.name == kEmbedding) return files.find(kHead);
  return tensor;
}

void check_tensors(const fs::path& folder, const WeightFiles& files, const std::vector<Piece>& pieces,
                   const ModelConfig& config) {
  std::set<std::string_view> expected;
  for (const Piece& piece : pieces) expected.insert(piece.name);
  std::vector<std::string> unexpected;
  for (const auto& [name, tensor] : files.tensors())
    if (!expected.contains(name) && !ignored(name, config)) unexpected.push_back(name);

  for (const Piece& piece : pieces) {
    const WeightFiles::FileTensor* found = find_tensor(files, piece, config);
    if (found == nullptr)
      fail("{} has no tensor '{}' {}, which its config.json asks for{}", folder.string(), piece.name,
           shape_text(piece.shape), did_you_mean(piece.name, unexpected));
    const auto& [file, entry] = *found;
    require(entry->shape == piece.shape, "tensor '{}' of {} has shape {}, and config.json asks for {}", entry->name,
            file->path(), shape_text(entry->shape), shape_text(piece.shape));
    require(entry->dtype == DType::F32 || entry->dtype == DType::BF16 || entry->dtype == DType::F16,
            "tensor '{}' of {} has dtype {}; weights must be F32, BF16 or F16", entry->name, file->path(),
            entry->format_dtype);
  }
  if (unexpected.empty()) return;
  fail("tensor '{}' of {} belongs to no parameter of a {} with this config.json ({} such tensors)", unexpected[0],
       files.find(unexpected[0])->file->path(), config.model_type, unexpected.size());
}

// Equal in shape and in every number, whatever the types are.
bool equal(const WeightFiles::FileTensor& a, const WeightFiles::FileTensor& b) {
  if (a.entry->shape != b.entry->shape) return false;
  std::vector<float> left, right;
  for (int64_t first = 0; first < a.entry->count; first += std::ssize(left)) {
    left.resize(to_size(std::min<int64_t>(kSlab, a.entry->count - first)));
    right.resize(left.size());
    a.file->read_floats(*a.entry, first, left);
    b.file->read_floats(*b.entry, first, right);
    if (left != right) return false;
  }
  return true;
}

std::vector<uint8_t> to_bytes(std::span<const float> values, DType dtype, const std::string& tensor) {
  std::vector<uint8_t> bytes(values.size() * size_of(dtype));
  const auto convert = [&]<class T>(auto&& one) {
    for (size_t i = 0; i < values.size(); ++i) {
      const T element = one(values[i]);
      std::memcpy(bytes.data() + i * sizeof(T), &element, sizeof(T));
    }
  };
  if (dtype == DType::F32) {
    std::memcpy(bytes.data(), values.data(), bytes.size());
  } else if (dtype == DType::BF16) {
    convert.template operator()<Bf16>([](float x) { return to_bf16(x); });
  } else {
    convert.template operator()<uint16_t>([&](float x) {
      const uint16_t half = float_to_half(x);
      require(!std::isfinite(x) || (half & 0x7c00u) != 0x7c00u,
              "tensor '{}' has the value {}, beyond fp16's largest, 65504; export as bf16 or fp32", tensor, x);
      return half;
    });
  }
  return bytes;
}

using Shard = std::span<const Piece>;

uint64_t bytes_of(const Piece& piece, DType dtype) {
  return static_cast<uint64_t>(piece.count()) * size_of(dtype);
}

uint64_t bytes_of(Shard shard, DType dtype) {
  uint64_t sum = 0;
  for (const Piece& piece : shard) sum += bytes_of(piece, dtype);
  return sum;
}

// As many tensors a shard as fit, in order; a tensor is never cut.
std::vector<Shard> divide(const std::vector<Piece>& pieces, DType dtype, int64_t max_bytes) {
  require(max_bytes > 0, "the largest shard must have more than {} bytes", max_bytes);
  std::vector<Shard> shards;
  size_t begin = 0;
  uint64_t size = 0;
  for (size_t i = 0; i < pieces.size(); ++i) {
    const uint64_t bytes = bytes_of(pieces[i], dtype);
    if (i > begin && size + bytes > static_cast<uint64_t>(max_bytes)) {
      shards.push_back(Shard(pieces).subspan(begin, i - begin));
      begin = i;
      size = 0;
    }
    size += bytes;
  }
  shards.push_back(Shard(pieces).subspan(begin));
  return shards;
}

void write_shard(const Context& ctx, const fs::path& path, Shard shard, const Parameters& params, DType dtype) {
  std::vector<TensorHeader> headers;
  for (const Piece& piece : shard) headers.push_back({piece.name, dtype, piece.shape});
  SafetensorsWriter writer(path.string(), headers, {{"format", "pt"}, {"producer", "agoq"}});
  std::vector<float> values;
  for (const Piece& piece : shard) {
    writer.begin(piece.name);
    for_slabs(piece, params, [&](const RowPiece& rows, const ops::Weight& weight) {
      values.resize(static_cast<size_t>(weight.value.count()));
      ops::load_fp32(ctx, weight, values.data());
      std::span<const float> part = values;
      if (piece.shape.size() == 1) part = part.subspan(to_size(rows.local_begin), to_size(rows.count));
      writer.append(to_bytes(part, dtype, piece.name));
    });
  }
  writer.commit();
}

void write_weights(const Context& ctx, const fs::path& folder, const std::vector<Piece>& pieces,
                   const Parameters& params, DType dtype, int64_t max_shard_bytes) {
  const std::vector<Shard> shards = divide(pieces, dtype, max_shard_bytes);
  if (shards.size() == 1) return write_shard(ctx, folder / kSingleFile, shards[0], params, dtype);
  SortedJson index = {{"metadata", {{"total_size", bytes_of(pieces, dtype)}}}};
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string name = fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
    write_shard(ctx, folder / name, shards[i], params, dtype);
    for (const Piece& piece : shards[i]) index["weight_map"][piece.name] = name;
  }
  write_file_atomically((folder / kIndexFile).string(), index.dump(2) + "\n");
}

bool is_our_export(const fs::path& folder) {
  if (!fs::exists(folder / kConfigFile)) return false;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() != ".safetensors") continue;
    const auto metadata = SafetensorsFile(entry.path().string()).metadata();
    const auto producer = metadata.find("producer");
    return producer != metadata.end() && producer->second == "agoq";
  }
  return false;
}

void check_destination(const fs::path& folder) {
  if (!fs::exists(folder)) return;
  require(fs::is_directory(folder), "cannot export to {}: it is a file; name a new folder", folder.string());
  require(fs::is_empty(folder) || is_our_export(folder),
          "cannot export to {}: it holds other things than an earlier export; name a new folder", folder.string());
}

// Leaves nothing half written behind.
struct Discard {
  fs::path path;
  ~Discard() {
    std::error_code nothing_to_do;
    fs::remove_all(path, nothing_to_do);
  }
};

void put_in_place(const fs::path& finished, const fs::path& destination) {
  if (!fs::exists(destination) || fs::is_empty(destination))
    return rename_directory_durably(finished.string(), destination.string());
  const fs::path old = destination.string() + ".tmp-replaced";
  fs::remove_all(old);
  fs::rename(destination, old);
  rename_directory_durably(finished.string(), destination.string());
  fs::remove_all(old);
}

// The shard's columns of some rows of a matrix.
void read_columns(const SafetensorsFile& file, const TensorEntry& entry, const Piece& piece, const RowPiece& rows,
                  std::vector<float>& values) {
  const int64_t whole = piece.shape[1], cols = std::ssize(values) / rows.count;
  if (cols == whole) return read_finite(file, entry, rows.global_begin * whole, values);
  std::vector<float> all(to_size(rows.count * whole));
  read_finite(file, entry, rows.global_begin * whole, all);
  for (int64_t r = 0; r < rows.count; ++r)
    std::copy_n(all.begin() + r * whole + piece.first_col, cols, values.begin() + r * cols);
}

}  // namespace

bool stores_another_head(const fs::path& folder) {
  if (!WeightFiles::exist_in(folder)) return false;
  const WeightFiles files(folder);
  const WeightFiles::FileTensor* embedding = files.find(kEmbedding);
  const WeightFiles::FileTensor* head = files.find(kHead);
  return embedding != nullptr && head != nullptr && !equal(*embedding, *head);
}

void import_weights(const Context& ctx, const fs::path& folder, const ModelConfig& config, const LayerSpec& spec,
                    const Parameters& params) {
  const WeightFiles files(folder);
  const std::vector<Piece> pieces = pieces_of(config, spec);
  check_tensors(folder, files, pieces, config);
  std::vector<float> values;
  for (const Piece& piece : pieces) {
    if (!params.holds(piece.id)) continue;  // another stage of the pipeline does
    const auto& [file, entry] = *find_tensor(files, piece, config);
    for_slabs(piece, params, [&, file = file, entry = entry](const RowPiece& rows, const ops::Weight& to) {
      values.resize(to_size(to.value.count()));
      if (piece.shape.size() == 1) {
        ops::load_fp32(ctx, to, values.data());  // keeps the other parts
        const auto part = std::span(values).subspan(to_size(rows.local_begin), to_size(rows.count));
        read_finite(*file, *entry, rows.global_begin, part);
      } else {
        read_columns(*file, *entry, piece, rows, values);
      }
      params.store_rows(ctx, piece.id, {rows.local_begin, rows.local_begin + rows.count}, values.data());
    });
  }
}

void export_folder(const Context& ctx, const fs::path& destination, const ModelConfig& config, const LayerSpec& spec,
                   const Parameters& params, DType dtype, const Companions& companions, int64_t max_shard_bytes) {
  fs::path folder = fs::absolute(destination).lexically_normal();
  if (!folder.has_filename()) folder = folder.parent_path();  // a slash at the end
  check_destination(folder);
  require(spec.shard.whole(),
          "cannot export to {}: this rank has 1 of {} parts of the weights; export from a checkpoint", folder.string(),
          spec.shard.size);
  const Discard temporary{folder.string() + ".tmp-export"};  // also what a killed export left
  std::error_code error;
  fs::remove_all(temporary.path, error);
  if (!error) fs::create_directories(temporary.path, error);
  require(!error, "cannot export to {}: {}", folder.string(), error.message());
  write_file_atomically((temporary.path / kConfigFile).string(), config_to_json(config, dtype));
  write_companions(companions, temporary.path);
  write_weights(ctx, temporary.path, pieces_of(config, spec), params, dtype, max_shard_bytes);
  put_in_place(temporary.path, folder);
}

}  // namespace agoq::model
