#include "train/checkpoint.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <iterator>
#include <set>
#include <utility>

#include "base/atomic_file.h"
#include "base/checksum.h"
#include "base/error.h"
#include "base/log.h"
#include "base/text.h"
#include "device/transfer.h"

namespace agoq::train {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kStepPrefix = "step-";
constexpr std::string_view kTemporary = ".tmp-";
constexpr std::string_view kManifest = "manifest.json";
constexpr std::string_view kLatest = "latest";

std::string step_name(int64_t step) {
  return fmt::format("{}{:08}", kStepPrefix, step);
}

// The step of a checkpoint folder's name; none for temporaries and foreign files.
std::optional<int64_t> step_of(std::string_view name) {
  if (!name.starts_with(kStepPrefix)) return std::nullopt;
  name.remove_prefix(kStepPrefix.size());
  int64_t step = 0;
  const auto [rest, error] = std::from_chars(name.data(), name.data() + name.size(), step);
  const bool whole = error == std::errc{} && rest == name.data() + name.size() && step >= 0;
  return whole ? std::optional(step) : std::nullopt;
}

bool is_temporary(std::string_view name) {
  return (name.starts_with(kStepPrefix) || name.starts_with(kLatest)) &&
         name.find(kTemporary) != std::string_view::npos;
}

std::vector<std::string> names_in(const std::string& folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error))
    names.push_back(it->path().filename().string());
  require(!error || error == std::errc::no_such_file_or_directory, "cannot list the folder {}: {}", folder,
          error.message());
  return names;
}

// Checkpoint folders by step.
std::map<int64_t, std::string> steps_in(const std::string& checkpoints) {
  std::map<int64_t, std::string> steps;
  for (const std::string& name : names_in(checkpoints))
    if (const auto step = step_of(name)) steps[*step] = fmt::format("{}/{}", checkpoints, name);
  return steps;
}

bool exists(const std::string& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

void remove_folder(const std::string& path) {
  std::error_code error;
  fs::remove_all(path, error);
  if (error) log_warning("cannot remove {}: {}", path, error.message());
}

// Renamed first, so that a half-removed checkpoint never looks complete.
void remove_checkpoint(const std::string& path) {
  const std::string doomed = fmt::format("{}{}{}", path, kTemporary, getpid());
  const bool renamed = std::rename(path.c_str(), doomed.c_str()) == 0;
  remove_folder(renamed ? doomed : path);
}

// `from` takes the name `to`. What had this name is exchanged in one step where the file system can, and then removed.
void put_in_place(const std::string& from, const std::string& to) {
  if (!exists(to)) return rename_directory_durably(from, to);
  sync_directory(from);
  if (renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_EXCHANGE) == 0) {
    sync_directory(fs::path(to).parent_path().string());
    return remove_folder(from);
  }
  remove_checkpoint(to);
  rename_directory_durably(from, to);
}

std::vector<int64_t> dims_of(const Shape& shape) {
  std::vector<int64_t> dims(static_cast<size_t>(shape.rank()));
  for (size_t i = 0; i < dims.size(); ++i) dims[i] = shape[static_cast<int>(i)];
  return dims;
}

std::string text_of(std::span<const int64_t> dims) {
  return fmt::format("[{}]", fmt::join(dims, ", "));
}

std::span<const uint8_t> bytes_of(const NamedTensor& named) {
  return {named.tensor.raw(), named.tensor.bytes()};
}

void require_tensors(std::span<const NamedTensor> tensors, Device where) {
  std::set<std::string_view> names;
  for (const auto& [name, tensor] : tensors) {
    require(tensor && tensor.device == where, "tensor '{}' is on {}, not on {}", name, name_of(tensor.device),
            name_of(where));
    require(names.insert(name).second, "the tensor name '{}' is used twice", name);
  }
}

using Shard = std::vector<const NamedTensor*>;

// In the given order; inside a file wide types come first, so that every tensor is aligned for its type.
std::vector<Shard> make_shards(std::span<const NamedTensor> tensors, uint64_t limit) {
  std::vector<Shard> shards;
  uint64_t filled = 0;
  for (const NamedTensor& named : tensors) {
    const uint64_t bytes = named.tensor.bytes();
    if (shards.empty() || (filled > 0 && bytes > limit - std::min(limit, filled))) {
      shards.emplace_back();
      filled = 0;
    }
    shards.back().push_back(&named);
    filled += bytes;
  }
  for (Shard& shard : shards)
    std::stable_sort(shard.begin(), shard.end(), [](const NamedTensor* a, const NamedTensor* b) {
      return size_of(a->tensor.dtype) > size_of(b->tensor.dtype);
    });
  return shards;
}

void write_shard(const std::string& folder, const std::string& file, const Shard& shard, Manifest& manifest) {
  std::vector<TensorHeader> headers;
  for (const NamedTensor* named : shard)
    headers.push_back({named->name, named->tensor.dtype, dims_of(named->tensor.shape)});
  SafetensorsWriter writer(folder + "/" + file, headers);
  for (const NamedTensor* named : shard) writer.write(named->name, bytes_of(*named));
  writer.commit();
  manifest.files.push_back({file, writer.bytes_written()});
  for (const TensorHeader& header : headers)
    manifest.tensors.push_back({header.name, header.dtype, header.shape, file, writer.checksum(header.name)});
}

void write_checkpoint(const std::string& folder, Manifest manifest, std::span<const NamedTensor> tensors,
                      uint64_t shard_bytes) {
  fs::create_directories(folder);
  const std::vector<Shard> shards = make_shards(tensors, shard_bytes);
  for (size_t i = 0; i < shards.size(); ++i)
    write_shard(folder, fmt::format("shard-{:05}.safetensors", i), shards[i], manifest);
  write_file_atomically(fmt::format("{}/{}", folder, kManifest), manifest_text(manifest));
}

void remove_leftovers(const std::string& checkpoints) {
  for (const std::string& name : names_in(checkpoints))
    if (is_temporary(name)) remove_folder(fmt::format("{}/{}", checkpoints, name));
}

// Steps after this one, left by a run that was set back, are neither counted nor removed.
void prune(const std::string& checkpoints, int64_t step, int64_t keep_last) {
  if (keep_last <= 0) return;
  const auto steps = steps_in(checkpoints);
  int64_t kept = 0;
  for (auto it = std::make_reverse_iterator(steps.upper_bound(step)); it != steps.rend(); ++it)
    if (++kept > keep_last) remove_checkpoint(it->second);
}

std::string read_text(const std::string& path) {
  const MappedFile file(path);
  return {reinterpret_cast<const char*>(file.bytes().data()), file.size()};
}

// What `latest` names; a warning and none if that is no checkpoint.
std::optional<int64_t> read_latest(const std::string& checkpoints) {
  const std::string path = fmt::format("{}/{}", checkpoints, kLatest);
  const std::string content = exists(path) ? read_text(path) : "";
  const std::optional<int64_t> step = step_of(trim(content));
  if (!step && content.empty()) log_warning("{} is missing; taking the highest step", path);
  if (!step && !content.empty())
    log_warning("{} names no checkpoint ('{}'); taking the highest step", path, trim(content).substr(0, 100));
  return step;
}

// Checkpoint folders, the one that is wanted first: what `latest` names, then by falling step.
std::vector<std::string> by_preference(const std::string& checkpoints) {
  const auto steps = steps_in(checkpoints);
  std::vector<std::string> paths;
  for (const auto& [step, path] : steps) paths.push_back(path);
  std::reverse(paths.begin(), paths.end());
  if (paths.empty()) return paths;
  const auto latest = read_latest(checkpoints);
  if (!latest) return paths;
  const auto found = steps.find(*latest);
  const std::string named =
      found != steps.end() ? found->second : fmt::format("{}/{}", checkpoints, step_name(*latest));
  std::erase(paths, named);
  paths.insert(paths.begin(), named);
  return paths;
}

enum class Depth : uint8_t { Complete, Intact };  // sizes and headers, or every byte

std::optional<Checkpoint> last_checkpoint(const std::string& checkpoints, Depth depth) {
  std::string problems;
  for (const std::string& path : by_preference(checkpoints)) {
    try {
      Checkpoint checkpoint(path);
      if (depth == Depth::Intact) checkpoint.verify();
      return checkpoint;
    } catch (const Error& error) {
      log_warning("PASSING OVER the checkpoint {}: {}", path, error.what());
      problems += fmt::format("\n  {}: {}", path, error.what());
    }
  }
  require(problems.empty(), "{} has checkpoints and none is {}; remove them to start from the beginning:{}",
          checkpoints, depth == Depth::Intact ? "intact" : "complete", problems);
  return std::nullopt;
}

// Without a slash at the end.
fs::path plain(const fs::path& folder) {
  return (folder / "").lexically_normal().parent_path();
}

// A checkpoint by its manifest or, should that be lost, by its name.
bool is_checkpoint(const fs::path& folder) {
  return exists(folder / kManifest) || step_of(plain(folder).filename().string());
}

// The folder with the checkpoints of a run folder, or of itself; none if there is no checkpoint.
std::optional<std::string> checkpoints_of(const fs::path& source) {
  if (source.empty()) return std::nullopt;
  for (const fs::path& folder : {source / "checkpoints", source})
    if (!steps_in(folder.string()).empty()) return folder.string();
  return std::nullopt;
}

// Tensor by tensor what keeps the destination from being filled; at most `kShown` lines of each kind.
class Mismatches {
 public:
  void add(std::string line) {
    if (++count_ <= kShown) lines_ += "\n  " + std::move(line);
  }
  void require_none(const std::string& path) const {
    require(count_ == 0, "the checkpoint {} does not fit the model:{}{}", path, lines_,
            count_ > kShown ? fmt::format("\n  and {} more", count_ - kShown) : "");
  }

 private:
  static constexpr size_t kShown = 20;
  size_t count_ = 0;
  std::string lines_;
};

void require_fit(const Checkpoint& checkpoint, std::span<const NamedTensor> destination, bool subset) {
  Mismatches mismatches;
  std::set<std::string_view> wanted;
  for (const auto& [name, tensor] : destination) {
    wanted.insert(name);
    const ManifestTensor* saved = checkpoint.find(name);
    if (!saved) {
      mismatches.add(fmt::format("missing: '{}'", name));
      continue;
    }
    const std::vector<int64_t> dims = dims_of(tensor.shape);
    if (saved->dtype != tensor.dtype || saved->shape != dims)
      mismatches.add(fmt::format("'{}': saved {} {}, expected {} {}", name, name_of(saved->dtype),
                                 text_of(saved->shape), name_of(tensor.dtype), text_of(dims)));
  }
  for (const ManifestTensor& saved : checkpoint.manifest().tensors)
    if (!subset && !wanted.contains(saved.name)) mismatches.add(fmt::format("unexpected: '{}'", saved.name));
  mismatches.require_none(checkpoint.path());
}

}  // namespace

std::string save_checkpoint(const std::string& checkpoints, int64_t step, std::span<const NamedTensor> tensors,
                            const std::string& metadata_json, const SaveOptions& options) {
  require(step >= 0, "a checkpoint of step {} is impossible", step);
  require_tensors(tensors, Device::Cpu);
  std::string path = checkpoints + "/" + step_name(step);
  const std::string temporary = fmt::format("{}{}{}", path, kTemporary, getpid());
  try {
    fs::create_directories(checkpoints);
    remove_leftovers(checkpoints);
    write_checkpoint(temporary, Manifest{step, {}, {}, metadata_json}, tensors, options.shard_bytes);
    put_in_place(temporary, path);
    write_file_atomically(fmt::format("{}/{}", checkpoints, kLatest), step_name(step) + "\n");
  } catch (const std::exception& e) {
    remove_folder(temporary);
    fail("the checkpoint of step {} was not saved: {}", step, e.what());
  }
  prune(checkpoints, step, options.keep_last);
  return path;
}

std::optional<std::string> find_latest_checkpoint(const std::string& checkpoints) {
  const auto last = last_checkpoint(checkpoints, Depth::Complete);
  return last ? std::optional(last->path()) : std::nullopt;
}

std::optional<Checkpoint> open_latest_checkpoint(const std::string& checkpoints) {
  return last_checkpoint(checkpoints, Depth::Intact);
}

std::optional<Checkpoint> open_checkpoint(const std::string& source) {
  if (is_checkpoint(source)) {
    std::optional<Checkpoint> checkpoint(std::in_place, plain(source).string());
    checkpoint->verify();
    return checkpoint;
  }
  const auto folder = checkpoints_of(source);
  return folder ? open_latest_checkpoint(*folder) : std::nullopt;
}

std::optional<std::string> find_checkpoint(const std::string& source) {
  if (is_checkpoint(source)) return Checkpoint(plain(source).string()).path();
  const auto folder = checkpoints_of(source);
  return folder ? find_latest_checkpoint(*folder) : std::nullopt;
}

Manifest read_checkpoint_manifest(const std::string& checkpoint) {
  const std::string path = fmt::format("{}/{}", checkpoint, kManifest);
  return parse_manifest(read_text(path), path);
}

Checkpoint::Checkpoint(std::string path) : path_(std::move(path)), manifest_(read_checkpoint_manifest(path_)) {
  for (const ManifestTensor& tensor : manifest_.tensors) by_name_[tensor.name] = &tensor;
  for (const ManifestFile& listed : manifest_.files) {
    const std::string file_path = path_ + "/" + listed.name;
    std::error_code error;
    const uint64_t bytes = fs::file_size(file_path, error);
    require(!error, "the checkpoint file {} is missing: {}", file_path, error.message());
    require(bytes == listed.bytes, "{} is damaged: it has {} bytes, saved were {}", file_path, bytes, listed.bytes);
    check_file(files_.emplace(listed.name, SafetensorsFile(file_path)).first->second);
  }
}

// The file holds exactly the tensors that the manifest says, of the same types and shapes.
void Checkpoint::check_file(const SafetensorsFile& file) const {
  const std::string name = fs::path(file.path()).filename().string();
  size_t listed = 0;
  for (const ManifestTensor& tensor : manifest_.tensors) {
    if (tensor.file != name) continue;
    ++listed;
    const TensorEntry* entry = file.find(tensor.name);
    require(entry != nullptr, "{} is damaged: tensor '{}' is not in it", file.path(), tensor.name);
    require(entry->dtype == tensor.dtype && entry->shape == tensor.shape,
            "{} is damaged: tensor '{}' is {} {}, saved was {} {}", file.path(), tensor.name, entry->format_dtype,
            text_of(entry->shape), name_of(tensor.dtype), text_of(tensor.shape));
  }
  require(file.entries().size() == listed && file.metadata().empty(),
          "{} is damaged: it holds {} tensors, saved were {}", file.path(), file.entries().size(), listed);
}

const ManifestTensor* Checkpoint::find(std::string_view name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : found->second;
}

std::span<const uint8_t> Checkpoint::verified_bytes(const ManifestTensor& tensor) const {
  const SafetensorsFile& file = files_.at(tensor.file);
  const std::span<const uint8_t> bytes = file.bytes(file.at(tensor.name));
  require(verified_ || xxh3(bytes) == tensor.checksum,
          "{} is damaged: the checksum of tensor '{}' does not match its bytes", file.path(), tensor.name);
  return bytes;
}

void Checkpoint::verify() {
  for (const ManifestTensor& tensor : manifest_.tensors) verified_bytes(tensor);
  verified_ = true;
}

void load_checkpoint(const Checkpoint& checkpoint, std::span<const NamedTensor> destination,
                     const LoadOptions& options) {
  require_tensors(destination, options.device ? options.device->device() : Device::Cpu);
  require_fit(checkpoint, destination, options.subset);
  std::vector<std::span<const uint8_t>> sources;
  for (const NamedTensor& named : destination)
    sources.push_back(checkpoint.verified_bytes(*checkpoint.find(named.name)));
  for (size_t i = 0; i < destination.size(); ++i) {
    if (sources[i].empty()) continue;
    if (options.device)
      upload(*options.device, sources[i].data(), destination[i].tensor);
    else
      std::memcpy(destination[i].tensor.raw(), sources[i].data(), sources[i].size());
  }
}

Manifest load_checkpoint(const std::string& checkpoint, std::span<const NamedTensor> destination,
                         const LoadOptions& options) {
  const Checkpoint opened(checkpoint);
  load_checkpoint(opened, destination, options);
  return opened.manifest();
}

}  // namespace agoq::train
