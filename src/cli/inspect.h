// What `agoq inspect` prints of each kind of thing.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace agoq::cli {

struct InspectOptions {
  std::string path;
  bool verify = false;
  bool all = false;
  int64_t vocab_size = 0;
  std::string data_dtype = "uint16";
  std::string ignore_config_keys;
};

void inspect_run(const std::filesystem::path& folder, const InspectOptions& options);
void inspect_checkpoint(const std::filesystem::path& folder, const InspectOptions& options);
void inspect_safetensors(const std::vector<std::filesystem::path>& files, const InspectOptions& options);
void inspect_tokens(const InspectOptions& options);
void print_model(const std::string& folder_or_json, const InspectOptions& options);

std::vector<std::filesystem::path> safetensors_in(const std::filesystem::path& folder);  // sorted

}  // namespace agoq::cli
