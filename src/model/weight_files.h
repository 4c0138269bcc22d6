// The safetensors files of a Hugging Face folder as one table of tensors.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/safetensors.h"

namespace agoq::model {

inline constexpr const char* kSingleFile = "model.safetensors";
inline constexpr const char* kIndexFile = "model.safetensors.index.json";

class WeightFiles {
 public:
  struct FileTensor {
    const SafetensorsFile* file = nullptr;
    const TensorEntry* entry = nullptr;
  };

  // model.safetensors, or shards. Of shards the index decides: a tensor counts in the file that the index names, and
  // one that the index does not list is not there. Throws if the folder has neither.
  explicit WeightFiles(const std::filesystem::path& folder);
  static bool exist_in(const std::filesystem::path& folder);

  const std::map<std::string, FileTensor>& tensors() const { return tensors_; }
  const FileTensor* find(const std::string& name) const;  // null if absent

 private:
  const SafetensorsFile& open(const std::filesystem::path& path);
  void add_shards(const std::filesystem::path& folder);

  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, FileTensor> tensors_;
};

// Elements [first, first + out.size()) of the tensor as float. Throws on a NaN or an infinity and names tensor, file
// and element: a model with one computes nothing else.
void read_finite(const SafetensorsFile& file, const TensorEntry& entry, int64_t first, std::span<float> out);

}  // namespace agoq::model
