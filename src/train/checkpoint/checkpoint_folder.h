// Names in a folder of checkpoints, shared by those who write and read it:
//
//   checkpoints/step-00000100/shard-00000.safetensors ... manifest.json
//   checkpoints/step-00000200.tmp-4711/                   being written, or left behind by a process that was killed
//   checkpoints/latest                                    the name of the newest complete folder
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace agoq::train {

inline constexpr std::string_view kManifestName = "manifest.json";
inline constexpr std::string_view kLatestName = "latest";
inline constexpr std::string_view kTemporaryMark = ".tmp-";

std::string step_name(int64_t step);
// The step of a checkpoint folder's name; none for temporaries and foreign files.
std::optional<int64_t> step_of(std::string_view name);
bool is_temporary(std::string_view name);

bool exists(const std::string& path);
std::vector<std::string> names_in(const std::string& folder);  // none if there is no such folder
// Paths of checkpoint folders, by step.
std::map<int64_t, std::string> steps_in(const std::string& checkpoints);

}  // namespace agoq::train
