#include "train/checkpoint/checkpoint.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include "base/checksum.h"
#include "base/error.h"
#include "base/log.h"
#include "base/text.h"
#include "device/transfer.h"
#include "train/checkpoint/checkpoint_folder.h"

namespace agoq::train {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kSlab = 1 << 22;  // numbers on their way to a device at a time

std::string text_of(std::span<const int64_t> dims) {
  return fmt::format("[{}]", fmt::join(dims, ", "));
}

std::string read_text(const std::string& path) {
  const MappedFile file(path);
  return {reinterpret_cast<const char*>(file.bytes().data()), file.size()};
}

// What `latest` names; a warning and none if that is no checkpoint.
std::optional<int64_t> read_latest(const std::string& checkpoints) {
  const std::string path = fmt::format("{}/{}", checkpoints, kLatestName);
  if (!exists(path)) {
    log_warning("{} is missing; taking the highest step", path);
    return std::nullopt;
  }
  std::error_code error;
  if (!fs::is_regular_file(path, error)) {  // a FIFO would be waited for
    log_warning("{} is no file; taking the highest step", path);
    return std::nullopt;
  }
  try {
    const std::string content = read_text(path);
    const std::optional<int64_t> step = step_of(trim(content));
    if (!step)
      log_warning("{} names no checkpoint ('{}'); taking the highest step", path,
                  printable_line(trim(content).substr(0, 100)));
    return step;
  } catch (const Error& unreadable) {
    log_warning("{}; taking the highest step", unreadable.what());
    return std::nullopt;
  }
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

// What keeps `path` from being taken, as all readers agree; otherwise `checkpoint` is open.
std::string problem_of(const std::string& path, Depth depth, const Readers& readers,
                       std::optional<Checkpoint>& checkpoint) {
  std::string mine;
  try {
    checkpoint.emplace(path);
    if (depth == Depth::Intact) checkpoint->verify_share(readers.rank, readers.ranks);
  } catch (const Error& error) {
    mine = error.what();
  }
  for (const std::string& problem : readers.gather(mine))
    if (!problem.empty()) return problem;
  return "";
}

// The first of the candidates that is complete, or intact.
std::optional<Checkpoint> first_checkpoint(const std::string& checkpoints, std::span<const std::string> candidates,
                                           Depth depth, const Readers& readers) {
  std::string problems;
  for (const std::string& path : candidates) {
    std::optional<Checkpoint> checkpoint;
    const std::string problem = problem_of(path, depth, readers, checkpoint);
    if (problem.empty()) return checkpoint;
    if (readers.rank == 0) log_warning("PASSING OVER the checkpoint {}: {}", path, problem);
    problems += fmt::format("\n  {}: {}", path, problem);
  }
  require(problems.empty(), "{} has checkpoints and none is {}; remove them to start from the beginning:{}",
          checkpoints, depth == Depth::Intact ? "intact" : "complete", problems);
  return std::nullopt;
}

constexpr std::string_view kBetweenPaths("\0", 1);  // the one byte that no path holds

// Paths that rank 0 finds, told to all: folders may look different to others, and all must do alike.
std::vector<std::string> paths_of_rank_0(const Readers& readers,
                                         const std::function<std::vector<std::string>()>& find) {
  std::string problem, found;
  try {
    if (readers.rank == 0) found = join(find(), kBetweenPaths);
  } catch (const std::exception& error) {
    problem = error.what();
  }
  problem = readers.gather(problem).front();
  require(problem.empty(), "{}", problem);
  return split(readers.gather(found).front(), kBetweenPaths[0]);
}

// Without a slash at the end.
fs::path plain(const fs::path& folder) {
  return (folder / "").lexically_normal().parent_path();
}

// A checkpoint by its manifest or, should that be lost, by its name.
bool is_checkpoint(const fs::path& folder) {
  return exists(folder / kManifestName) || step_of(plain(folder).filename().string());
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

void require_fit(const Checkpoint& checkpoint, std::span<const StoredTensor> destination, bool subset) {
  Mismatches mismatches;
  std::set<std::string_view> wanted;
  for (const StoredTensor& tensor : destination) {
    require(wanted.insert(tensor.name).second, "the tensor name '{}' is used twice", tensor.name);
    const ManifestTensor* saved = checkpoint.find(tensor.name);
    if (!saved) {
      mismatches.add(fmt::format("missing: '{}'", tensor.name));
      continue;
    }
    if (saved->dtype != tensor.dtype || saved->shape != tensor.dims)
      mismatches.add(fmt::format("'{}': saved {} {}, expected {} {}", tensor.name, name_of(saved->dtype),
                                 text_of(saved->shape), name_of(tensor.dtype), text_of(tensor.dims)));
  }
  for (const ManifestTensor& saved : checkpoint.manifest().tensors)
    if (!subset && !wanted.contains(saved.name)) mismatches.add(fmt::format("unexpected: '{}'", saved.name));
  mismatches.require_none(checkpoint.path());
}

void fill(const Checkpoint& checkpoint, const ManifestTensor& saved, const StoredPiece& piece, const Context* device) {
  if (!device) return checkpoint.read(saved, piece.at, piece.data.raw());
  std::vector<uint8_t> slab;
  for_row_ranges(piece, kSlab, [&](const Rectangle& at, const Tensor& part) {
    slab.resize(part.bytes());
    checkpoint.read(saved, at, slab.data());
    upload(*device, slab.data(), part);
  });
}

}  // namespace

std::optional<std::string> find_latest_checkpoint(const std::string& checkpoints) {
  const auto last = first_checkpoint(checkpoints, by_preference(checkpoints), Depth::Complete, {});
  return last ? std::optional(last->path()) : std::nullopt;
}

std::optional<Checkpoint> open_latest_checkpoint(const std::string& checkpoints, const Readers& readers) {
  const auto candidates = paths_of_rank_0(readers, [&] { return by_preference(checkpoints); });
  return first_checkpoint(checkpoints, candidates, Depth::Intact, readers);
}

std::optional<Checkpoint> open_checkpoint(const std::string& source, const Readers& readers) {
  // The folder of checkpoints, or nothing and the one that is named.
  const std::vector<std::string> meant = paths_of_rank_0(readers, [&]() -> std::vector<std::string> {
    if (is_checkpoint(source)) return {"", plain(source).string()};
    const auto folder = checkpoints_of(source);
    return folder ? std::vector<std::string>{*folder} : std::vector<std::string>{};
  });
  if (meant.empty()) return std::nullopt;
  if (meant.size() == 1) return open_latest_checkpoint(meant[0], readers);
  std::optional<Checkpoint> checkpoint;
  const std::string problem = problem_of(meant[1], Depth::Intact, readers, checkpoint);
  require(problem.empty(), "{}", problem);
  return checkpoint;
}

std::optional<std::string> find_checkpoint(const std::string& source) {
  if (is_checkpoint(source)) return Checkpoint(plain(source).string()).path();
  const auto folder = checkpoints_of(source);
  return folder ? find_latest_checkpoint(*folder) : std::nullopt;
}

Manifest read_checkpoint_manifest(const std::string& checkpoint) {
  const std::string path = fmt::format("{}/{}", checkpoint, kManifestName);
  return parse_manifest(read_text(path), path);
}

Checkpoint::Checkpoint(std::string path) : path_(std::move(path)), manifest_(read_checkpoint_manifest(path_)) {
  for (const ManifestTensor& tensor : manifest_.tensors) by_name_[tensor.name] = &tensor;
  for (const ManifestFile& listed : manifest_.files) open_file(listed);
  check_entries();
}

void Checkpoint::open_file(const ManifestFile& listed) {
  const std::string file_path = path_ + "/" + listed.name;
  std::error_code error;
  const uint64_t bytes = fs::file_size(file_path, error);
  require(!error, "the checkpoint file {} is missing: {}", file_path, error.message());
  require(bytes == listed.bytes, "{} is damaged: it has {} bytes, saved were {}", file_path, bytes, listed.bytes);
  files_.emplace(listed.name, SafetensorsFile(file_path));
}

// The files hold exactly the pieces that the manifest says, of the same types and shapes.
void Checkpoint::check_entries() const {
  std::map<std::string_view, size_t> listed;  // pieces by file
  for (const ManifestTensor& tensor : manifest_.tensors)
    for (const ManifestPiece& piece : tensor.pieces) {
      ++listed[piece.file];
      const SafetensorsFile& file = files_.at(piece.file);
      const TensorHeader saved = tensor.header(piece.at);
      const TensorEntry* entry = file.find(saved.name);
      require(entry != nullptr, "{} is damaged: tensor '{}' is not in it", file.path(), saved.name);
      require(entry->dtype == saved.dtype && entry->shape == saved.shape,
              "{} is damaged: tensor '{}' is {} {}, saved was {} {}", file.path(), saved.name, entry->format_dtype,
              text_of(entry->shape), name_of(saved.dtype), text_of(saved.shape));
    }
  for (const auto& [name, file] : files_)
    require(file.entries().size() == listed[name] && file.metadata().empty(),
            "{} is damaged: it holds {} tensors, saved were {}", file.path(), file.entries().size(), listed[name]);
}

const ManifestTensor* Checkpoint::find(std::string_view name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : found->second;
}

std::span<const uint8_t> Checkpoint::bytes_of(const ManifestTensor& tensor, const ManifestPiece& piece) const {
  const SafetensorsFile& file = files_.at(piece.file);
  return file.bytes(file.at(tensor.header(piece.at).name));
}

void Checkpoint::verify_piece(const ManifestTensor& tensor, const ManifestPiece& piece) const {
  if (verified_.contains(&piece)) return;
  require(xxh3(bytes_of(tensor, piece)) == piece.checksum,
          "{} is damaged: the checksum of tensor '{}' does not match its bytes", files_.at(piece.file).path(),
          tensor.header(piece.at).name);
  verified_.insert(&piece);
}

void Checkpoint::verify(const ManifestTensor& tensor, const Rectangle& at) const {
  for (const ManifestPiece& piece : tensor.pieces)
    if (!intersection(piece.at, at).empty()) verify_piece(tensor, piece);
}

void Checkpoint::verify() const {
  verify_share(0, 1);
}

void Checkpoint::verify_share(int rank, int ranks) const {
  uint64_t total = 0;
  for (const ManifestFile& file : manifest_.files) total += file.bytes;
  // A piece is of the share in which it begins.
  const uint64_t share = total / static_cast<uint64_t>(ranks) + 1;
  uint64_t begin = 0;
  for (const ManifestTensor& tensor : manifest_.tensors)
    for (const ManifestPiece& piece : tensor.pieces) {
      if (begin / share == static_cast<uint64_t>(rank)) verify_piece(tensor, piece);
      begin += static_cast<uint64_t>(piece.at.count()) * size_of(tensor.dtype);
    }
}

void Checkpoint::read(const ManifestTensor& tensor, const Rectangle& at, uint8_t* out) const {
  verify(tensor, at);
  for (const ManifestPiece& piece : tensor.pieces)
    if (const Rectangle part = intersection(piece.at, at); !part.empty())
      copy_part({bytes_of(tensor, piece).data(), piece.at}, {out, at}, part, size_of(tensor.dtype));
}

void load_checkpoint(const Checkpoint& checkpoint, std::span<const StoredTensor> destination,
                     const LoadOptions& options) {
  for (const StoredTensor& tensor : destination) tensor.check(options.device ? options.device->device() : Device::Cpu);
  require_fit(checkpoint, destination, options.subset);
  for (const StoredTensor& tensor : destination)
    for (const StoredPiece& piece : tensor.pieces) checkpoint.verify(*checkpoint.find(tensor.name), piece.at);
  for (const StoredTensor& tensor : destination)
    for (const StoredPiece& piece : tensor.pieces)
      fill(checkpoint, *checkpoint.find(tensor.name), piece, options.device);
}

Manifest load_checkpoint(const std::string& checkpoint, std::span<const StoredTensor> destination,
                         const LoadOptions& options) {
  const Checkpoint opened(checkpoint);
  load_checkpoint(opened, destination, options);
  return opened.manifest();
}

}  // namespace agoq::train
