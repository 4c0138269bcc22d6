#include "model/weight_files.h"

#include <algorithm>
#include <set>

#include "base/error.h"
#include "base/finite.h"
#include "base/read_json.h"

namespace agoq::model {
namespace {

namespace fs = std::filesystem;
using SortedJson = nlohmann::json;  // by key

// File by tensor. Of a folder with experts it has some 100,000 lines.
std::map<std::string, std::string> read_index(const std::string& path) {
  constexpr JsonLimits kLimits = {.bytes = size_t{64} << 20, .depth = 8, .keys = 1'000'000};
  try {
    const SortedJson json = read_json<SortedJson>(path, kLimits);
    auto places = json.at("weight_map").get<std::map<std::string, std::string>>();
    for (const auto& [tensor, file] : places)
      require(fs::path(file).filename() == file && file.ends_with(".safetensors"),
              "{}: tensor '{}' is said to be in '{}', which is no safetensors file of this folder", path, tensor, file);
    return places;
  } catch (const SortedJson::exception& e) {
    fail("{} is not an index of safetensors shards: {}", path, e.what());
  }
}

}  // namespace

WeightFiles::WeightFiles(const fs::path& folder) {
  require(exist_in(folder), "{} has neither {} nor {}; other formats must be saved as safetensors first",
          folder.string(), kSingleFile, kIndexFile);
  if (!fs::exists(folder / kSingleFile)) {
    add_shards(folder);
    return;
  }
  const SafetensorsFile& file = open(folder / kSingleFile);
  for (const TensorEntry& entry : file.entries()) tensors_[entry.name] = {&file, &entry};
}

bool WeightFiles::exist_in(const fs::path& folder) {
  return fs::exists(folder / kSingleFile) || fs::exists(folder / kIndexFile);
}

const WeightFiles::FileTensor* WeightFiles::find(const std::string& name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second;
}

const SafetensorsFile& WeightFiles::open(const fs::path& path) {
  return *files_.emplace_back(std::make_unique<SafetensorsFile>(path.string()));
}

void WeightFiles::add_shards(const fs::path& folder) {
  const std::string index = (folder / kIndexFile).string();
  std::map<std::string, const SafetensorsFile*> shards;
  for (const auto& [tensor, name] : read_index(index)) {
    const SafetensorsFile*& file = shards[name];
    if (file == nullptr) file = &open(folder / name);
    const TensorEntry* entry = file->find(tensor);
    require(entry != nullptr, "{} says that tensor '{}' is in {}, where it is not", index, tensor, name);
    tensors_[tensor] = {file, entry};
  }
}

void read_finite(const SafetensorsFile& file, const TensorEntry& entry, int64_t first, std::span<float> out) {
  file.read_floats(entry, first, out);
  const size_t bad = first_not_finite(out);
  if (bad < out.size())
    fail("tensor '{}' of {} has {} at element {}: these weights are damaged", entry.name, file.path(), out[bad],
         first + static_cast<int64_t>(bad));
}

}  // namespace agoq::model
