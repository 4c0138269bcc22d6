#include "train/checkpoint/checkpoint_save.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <filesystem>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>
#include <utility>
#include <vector>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/log.h"
#include "base/safetensors.h"
#include "train/checkpoint/checkpoint_folder.h"
#include "train/checkpoint/manifest.h"

namespace agoq::train {
namespace {

namespace fs = std::filesystem;

void remove_folder(const std::string& path) {
  std::error_code error;
  fs::remove_all(path, error);
  if (error) log_warning("cannot remove {}: {}", path, error.message());
}

// Renamed first, so that a half-removed checkpoint never looks complete.
void remove_checkpoint(const std::string& path) {
  const std::string doomed = fmt::format("{}{}{}", path, kTemporaryMark, getpid());
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

struct Draft {
  int64_t step = 0;
  std::string name;   // of the temporary folder
  std::string error;  // why there is none
};

std::string text_of(const Draft& draft) {
  const nlohmann::json json = {{"step", draft.step}, {"name", draft.name}, {"error", draft.error}};
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

Draft parse_draft(const std::string& text) {
  try {
    const auto json = nlohmann::json::parse(text);
    return {json.at("step").get<int64_t>(), json.at("name").get<std::string>(), json.at("error").get<std::string>()};
  } catch (const nlohmann::json::exception&) {
    fail("'{}' is no draft of a checkpoint: pass on what draft_checkpoint() returned on rank 0", text);
  }
}

std::string host_name() {
  std::array<char, 256> name{};
  return gethostname(name.data(), name.size() - 1) == 0 ? name.data() : "unknown";
}

// A piece that this rank writes.
struct TensorPiece {
  const StoredTensor* tensor = nullptr;
  const StoredPiece* piece = nullptr;
};
using Shard = std::vector<TensorPiece>;

// Empty ones only where the tensor itself is empty.
std::vector<TensorPiece> own_parts(std::span<const StoredTensor> tensors) {
  std::vector<TensorPiece> parts;
  std::set<std::string_view> names;
  for (const StoredTensor& tensor : tensors) {
    tensor.check(Device::Cpu);
    require(tensor.name.find('@') == std::string::npos, "tensor '{}': a name must not hold '@'", tensor.name);
    const size_t before = parts.size();
    for (const StoredPiece& piece : tensor.pieces)
      if (!piece.replica && (!piece.at.empty() || piece.at == tensor.whole())) parts.push_back({&tensor, &piece});
    require(parts.size() == before || names.insert(tensor.name).second, "the tensor name '{}' is used twice",
            tensor.name);
  }
  return parts;
}

// In the given order; inside a file wide types come first, so that every piece is aligned for its type.
std::vector<Shard> make_shards(std::span<const TensorPiece> parts, uint64_t limit) {
  std::vector<Shard> shards;
  uint64_t filled = 0;
  for (const TensorPiece& part : parts) {
    const uint64_t bytes = part.piece->data.bytes();
    if (shards.empty() || (filled > 0 && bytes > limit - std::min(limit, filled))) {
      shards.emplace_back();
      filled = 0;
    }
    shards.back().push_back(part);
    filled += bytes;
  }
  for (Shard& shard : shards)
    std::stable_sort(shard.begin(), shard.end(), [](const TensorPiece& a, const TensorPiece& b) {
      return size_of(a.tensor->dtype) > size_of(b.tensor->dtype);
    });
  return shards;
}

std::string shard_name(const SaveOptions& options, size_t number) {
  return options.ranks == 1 ? fmt::format("shard-{:05}.safetensors", number)
                            : fmt::format("shard-{:05}-{:05}.safetensors", options.rank, number);
}

// Writes shards into a folder, and notes what is where.
class ShardWriter {
 public:
  ShardWriter(std::string folder, ManifestFragment& fragment) : folder_(std::move(folder)), fragment_(fragment) {}

  void write(const std::string& file, const Shard& shard) {
    std::vector<TensorHeader> headers;
    for (const TensorPiece& part : shard) headers.push_back(entry_of(*part.tensor).header(part.piece->at));
    SafetensorsWriter writer(folder_ + "/" + file, headers);
    for (size_t i = 0; i < shard.size(); ++i) {
      const Tensor& data = shard[i].piece->data;
      writer.write(headers[i].name, {data.raw(), data.bytes()});
    }
    writer.commit();
    fragment_.files.push_back({file, writer.bytes_written()});
    for (size_t i = 0; i < shard.size(); ++i)
      entry_of(*shard[i].tensor).pieces.push_back({shard[i].piece->at, file, writer.checksum(headers[i].name)});
  }

 private:
  ManifestTensor& entry_of(const StoredTensor& tensor) {
    const auto [place, is_new] = places_.emplace(tensor.name, fragment_.tensors.size());
    if (is_new) fragment_.tensors.push_back({tensor.name, tensor.dtype, tensor.dims, {}});
    return fragment_.tensors[place->second];
  }

  std::string folder_;
  ManifestFragment& fragment_;
  std::map<std::string_view, size_t> places_;
};

void write_shards(const std::string& folder, std::span<const StoredTensor> tensors, const SaveOptions& options,
                  ManifestFragment& fragment) {
  require(fs::is_directory(folder),
          "the folder {} that rank 0 has made is not seen on host {}: checkpoints must lie on a file system that all "
          "ranks share; give a --save there",
          folder, host_name());
  const std::vector<Shard> shards = make_shards(own_parts(tensors), options.shard_bytes);
  ShardWriter writer(folder, fragment);
  for (size_t i = 0; i < shards.size(); ++i) writer.write(shard_name(options, i), shards[i]);
}

void remove_leftovers(const std::string& checkpoints) {
  for (const std::string& name : names_in(checkpoints))
    if (is_temporary(name)) remove_folder(fmt::format("{}/{}", checkpoints, name));
}

// A folder in its place is passed over, by readers too: they take the highest step.
void name_latest(const std::string& checkpoints, int64_t step) {
  const std::string path = fmt::format("{}/{}", checkpoints, kLatestName);
  std::error_code ignored;
  if (fs::symlink_status(path, ignored).type() == fs::file_type::directory)
    log_warning("{} is a folder, so it does not name the checkpoint of step {}; remove it", path, step);
  else
    write_file_atomically(path, step_name(step) + "\n");
}

// Steps after this one, left by a run that was set back, are neither counted nor removed.
void prune(const std::string& checkpoints, int64_t step, int64_t keep_last) {
  if (keep_last <= 0) return;
  const auto steps = steps_in(checkpoints);
  int64_t kept = 0;
  for (auto it = std::make_reverse_iterator(steps.upper_bound(step)); it != steps.rend(); ++it)
    if (++kept > keep_last) remove_checkpoint(it->second);
}

// One of every rank, in rank order, none of them failed.
std::vector<ManifestFragment> read_fragments(std::span<const std::string> texts, const SaveOptions& options) {
  require(std::ssize(texts) == options.ranks, "{} parts of the manifest, of {} ranks", texts.size(), options.ranks);
  std::vector<ManifestFragment> fragments;
  std::string problems;
  for (const std::string& text : texts) {
    const ManifestFragment& fragment = fragments.emplace_back(parse_fragment(text));
    require(fragment.rank == std::ssize(fragments) - 1, "the part of the manifest of rank {} stands at place {}",
            fragment.rank, fragments.size() - 1);
    if (fragment.error.empty()) continue;
    const std::string who = options.ranks == 1 ? "" : fmt::format("rank {}: ", fragment.rank);
    problems += (problems.empty() ? "" : "\n  ") + who + fragment.error;
  }
  require(problems.empty(), "{}", problems);
  return fragments;
}

void require_files(const std::string& folder, std::span<const ManifestFragment> fragments) {
  for (const ManifestFragment& fragment : fragments)
    for (const ManifestFile& file : fragment.files) {
      std::error_code error;
      const uint64_t bytes = fs::file_size(fmt::format("{}/{}", folder, file.name), error);
      require(!error && bytes == file.bytes,
              "rank {} has written {} with {} bytes to {}, and rank 0 on host {} sees {}: checkpoints must lie on a "
              "file system that all ranks share; give a --save there",
              fragment.rank, file.name, file.bytes, folder, host_name(),
              error ? "no such file" : fmt::format("{} bytes", bytes));
    }
}

}  // namespace

std::string draft_checkpoint(const std::string& checkpoints, int64_t step) {
  Draft draft{step, fmt::format("{}{}{}", step_name(step), kTemporaryMark, getpid()), ""};
  try {
    require(step >= 0, "a checkpoint of step {} is impossible", step);
    fs::create_directories(checkpoints);
    remove_leftovers(checkpoints);
    fs::create_directory(fmt::format("{}/{}", checkpoints, draft.name));
  } catch (const std::exception& e) {
    draft.error = e.what();
  }
  return text_of(draft);
}

int64_t step_of_draft(const std::string& draft) {
  return parse_draft(draft).step;
}

std::string write_fragment(const std::string& checkpoints, const std::string& draft,
                           std::span<const StoredTensor> tensors, const SaveOptions& options) {
  ManifestFragment fragment;
  fragment.rank = options.rank;
  try {
    const Draft begun = parse_draft(draft);
    if (begun.error.empty()) write_shards(fmt::format("{}/{}", checkpoints, begun.name), tensors, options, fragment);
  } catch (const std::exception& e) {
    fragment = {options.rank, e.what(), {}, {}};
  }
  return fragment_text(fragment);
}

std::string commit_checkpoint(const std::string& checkpoints, const std::string& draft,
                              std::span<const std::string> fragments, const std::string& metadata_json,
                              const SaveOptions& options) {
  const Draft begun = parse_draft(draft);
  const std::string temporary = fmt::format("{}/{}", checkpoints, begun.name);
  std::string path = fmt::format("{}/{}", checkpoints, step_name(begun.step));
  try {
    require(begun.error.empty(), "{}", begun.error);
    const std::vector<ManifestFragment> parts = read_fragments(fragments, options);
    require_files(temporary, parts);
    const Manifest manifest = merge_fragments(begun.step, metadata_json, parts);
    write_file_atomically(fmt::format("{}/{}", temporary, kManifestName), manifest_text(manifest));
    put_in_place(temporary, path);
    name_latest(checkpoints, begun.step);
  } catch (const std::exception& e) {
    remove_folder(temporary);
    fail("the checkpoint of step {} was not saved: {}", begun.step, e.what());
  }
  prune(checkpoints, begun.step, options.keep_last);
  return path;
}

std::string save_checkpoint(const std::string& checkpoints, int64_t step, std::span<const StoredTensor> tensors,
                            const std::string& metadata_json, const SaveOptions& options) {
  const std::string draft = draft_checkpoint(checkpoints, step);
  const std::string fragment = write_fragment(checkpoints, draft, tensors, options);
  return commit_checkpoint(checkpoints, draft, {&fragment, 1}, metadata_json, options);
}

}  // namespace agoq::train
