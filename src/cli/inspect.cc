#include "cli/inspect.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/finite.h"
#include "base/mapped_file.h"
#include "base/safetensors.h"
#include "base/text.h"
#include "model/model_config.h"
#include "train/checkpoint/checkpoint.h"
#include "train/checkpoint/run_metadata.h"
#include "train/data/token_file.h"

namespace agoq::cli {
namespace {

namespace fs = std::filesystem;

constexpr size_t kListedTensors = 40;

std::string shape_text(const std::vector<int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

struct TensorLine {
  std::string name, dtype;
  std::vector<int64_t> shape;
  uint64_t bytes = 0;
};

void print_tensors(const std::vector<TensorLine>& lines, bool all) {
  Table table({"tensor", "type", "shape", "size"});
  const size_t shown = all ? lines.size() : std::min(kListedTensors, lines.size());
  uint64_t bytes = 0;
  for (size_t i = 0; i < lines.size(); ++i) {
    const TensorLine& line = lines[i];
    if (i < shown) table.add_row({line.name, line.dtype, shape_text(line.shape), human_bytes(line.bytes)});
    bytes += line.bytes;
  }
  if (shown < lines.size()) table.add_row({fmt::format("... {} more (--all lists them)", lines.size() - shown)});
  table.add_rule();
  table.add_row({fmt::format("{} tensors", lines.size()), "", "", human_bytes(bytes)});
  fmt::print("{}", table.text());
}

// Reads everything; the first number that is NaN or infinite is named.
void verify_numbers(const SafetensorsFile& file) {
  std::vector<float> piece;
  for (const TensorEntry& entry : file.entries()) {
    if (entry.dtype != DType::F32 && entry.dtype != DType::BF16 && entry.dtype != DType::F16) continue;
    for (int64_t first = 0; first < entry.count; first += static_cast<int64_t>(piece.size())) {
      piece.resize(static_cast<size_t>(std::min<int64_t>(entry.count - first, 1 << 20)));
      file.read_floats(entry, first, piece);
      const size_t bad = first_not_finite(piece);
      if (bad < piece.size())
        fail("{}: tensor {} has {} at element {}", file.path(), entry.name, piece[bad],
             first + static_cast<int64_t>(bad));
    }
  }
}

void print_model_config(const model::ModelConfig& m) {
  Table table({"model", ""});
  const auto row = [&](const char* what, std::string value) { table.add_row({what, std::move(value)}); };
  row("type", m.model_type);
  row("parameters", fmt::format("{} ({})", human_count(static_cast<uint64_t>(m.parameters())), m.parameters()));
  row("layers", fmt::format("{}", m.layers));
  row("hidden / feed-forward size", fmt::format("{} / {}", m.hidden_size, m.ffn_size));
  row("query / key-value heads, dimension", fmt::format("{} / {}, {}", m.heads.query, m.heads.kv, m.heads.dim));
  row("vocabulary", fmt::format("{}{}", m.vocab_size, m.tied_embeddings ? ", embeddings tied" : ""));
  row("positions",
      fmt::format("{}{}", m.max_positions, m.window > 0 ? fmt::format(", sliding window {}", m.window) : ""));
  fmt::print("{}\n", table.text());
}

}  // namespace

std::vector<fs::path> safetensors_in(const fs::path& folder) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(folder))
    if (entry.path().extension() == ".safetensors") files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  return files;
}

void print_model(const std::string& folder_or_json, const InspectOptions& options) {
  print_model_config(model::find_config(folder_or_json, options.ignore_config_keys));
}

void inspect_safetensors(const std::vector<fs::path>& files, const InspectOptions& options) {
  std::vector<TensorLine> lines;
  for (const fs::path& path : files) {
    const SafetensorsFile file(path.string());
    for (const TensorEntry& e : file.entries()) lines.push_back({e.name, e.format_dtype, e.shape, e.size});
    for (const auto& [key, value] : file.metadata())
      fmt::print("{}: {} = {}\n", path.filename().string(), key, value.substr(0, 200));
    if (options.verify) verify_numbers(file);
  }
  print_tensors(lines, options.all);
  if (options.verify) fmt::print("verified: headers are sound, every number is finite\n");
}

void inspect_checkpoint(const fs::path& folder, const InspectOptions& options) {
  train::Checkpoint checkpoint(folder.string());
  const train::Manifest& manifest = checkpoint.manifest();
  const train::RunMetadata metadata = train::metadata_from_json(manifest.metadata, folder.string());
  const std::string& tokenizer = metadata.settings.tokenizer;
  fmt::print("checkpoint {}: step {}, {} tokens seen, {} updates, {} skipped, tokenizer {}, vocabulary {}\n\n",
             folder.string(), manifest.step, human_count(metadata.tokens), metadata.updates, metadata.skipped,
             tokenizer.empty() ? "unknown" : tokenizer, metadata.vocabulary.empty() ? "unknown" : metadata.vocabulary);
  print_model_config(model::config_from_json(metadata.model, folder.string(), options.ignore_config_keys));
  std::vector<TensorLine> lines;
  for (const train::ManifestTensor& t : manifest.tensors) {
    uint64_t bytes = size_of(t.dtype);
    for (const int64_t extent : t.shape) bytes *= static_cast<uint64_t>(extent);
    lines.push_back({t.name, std::string(name_of(t.dtype)), t.shape, bytes});
  }
  print_tensors(lines, options.all);
  if (!options.verify) return;
  checkpoint.verify();
  fmt::print("verified: the checksums of all {} tensors agree\n", manifest.tensors.size());
}

void inspect_run(const fs::path& folder, const InspectOptions& options) {
  fmt::print("run folder {}\n", folder.string());
  if (const fs::path metrics = folder / "metrics.jsonl"; fs::exists(metrics)) {
    const MappedFile file(metrics.string());
    const std::string_view text(reinterpret_cast<const char*>(file.bytes().data()), file.size());
    const std::vector<std::string> lines = split(trim(text), '\n');
    fmt::print("{} lines of metrics{}\n", lines.size(),
               lines.empty() ? "" : ", the last one:\n  " + printable(lines.back()));
  }
  const auto latest = train::find_latest_checkpoint((folder / "checkpoints").string());
  if (!latest) {
    fmt::print("no checkpoint yet\n");
    return;
  }
  inspect_checkpoint(*latest, options);
}

void inspect_tokens(const InspectOptions& options) {
  train::TokenFileOptions reading;
  reading.vocab_size = options.vocab_size;
  reading.data_dtype = options.data_dtype == "uint16" ? DType::U16 : DType::I32;
  const train::TokenFile file(options.path, reading);
  fmt::print("{}: {}, {} tokens, {} documents{}\n", file.path(), train::name_of(file.format()), file.token_count(),
             file.document_count() > 0 ? fmt::format("{}", file.document_count()) : "unknown",
             file.has_mask() ? ", with a mask of targets" : "");
  std::vector<int32_t> head(static_cast<size_t>(std::min<uint64_t>(file.token_count(), 16)));
  file.read(0, head);
  fmt::print("first tokens: {}\n", fmt::join(head, " "));
  if (!options.verify) return;
  std::vector<int32_t> piece;
  int32_t highest = 0;
  for (uint64_t first = 0; first < file.token_count(); first += piece.size()) {
    piece.resize(static_cast<size_t>(std::min<uint64_t>(file.token_count() - first, 1 << 20)));
    file.read(first, piece);
    highest = std::max(highest, *std::max_element(piece.begin(), piece.end()));
  }
  fmt::print("verified: all tokens can be read, the highest id is {}\n", highest);
}

}  // namespace agoq::cli
