#include "train/checkpoint/checkpoint_folder.h"

#include <charconv>
#include <filesystem>

#include "base/error.h"

namespace agoq::train {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kStepPrefix = "step-";

}  // namespace

std::string step_name(int64_t step) {
  return fmt::format("{}{:08}", kStepPrefix, step);
}

std::optional<int64_t> step_of(std::string_view name) {
  if (!name.starts_with(kStepPrefix)) return std::nullopt;
  name.remove_prefix(kStepPrefix.size());
  int64_t step = 0;
  const auto [rest, error] = std::from_chars(name.data(), name.data() + name.size(), step);
  const bool whole = error == std::errc{} && rest == name.data() + name.size() && step >= 0;
  return whole ? std::optional(step) : std::nullopt;
}

bool is_temporary(std::string_view name) {
  return (name.starts_with(kStepPrefix) || name.starts_with(kLatestName)) &&
         name.find(kTemporaryMark) != std::string_view::npos;
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

}  // namespace agoq::train
