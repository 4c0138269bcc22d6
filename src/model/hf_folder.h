// Weights from and to a Hugging Face folder: config.json, model.safetensors or shards with an index.
#pragma once

#include <cstdint>
#include <filesystem>

#include "model/companions.h"
#include "model/parameters.h"

namespace agoq::model {

// Whether embedding and head are both stored and differ. transformers then leaves them untied, whatever
// tie_word_embeddings says. Without weights in the folder: false.
bool stores_another_head(const std::filesystem::path& folder);

// Reads every parameter, or the rank's shard of it, fp32, bf16 or fp16 in the file, exactly. Missing, unexpected or
// wrongly shaped tensors are errors that name tensor and file, before the first weight changes; so is a NaN or an
// infinity, when it is read. A tied weight may be stored under the head's name.
void import_weights(const Context& ctx, const std::filesystem::path& folder, const ModelConfig& config,
                    const LayerSpec& spec, const Parameters& params);

// Writes a folder that AutoModelForCausalLM loads: config.json, weights as F32, BF16 or F16 (rounded to nearest even
// from the exact fp32 weights), and what belongs to the model and is no weight. It appears complete or not at all. An
// existing folder is replaced only if it is empty or an earlier export of ours. The spec must be that of whole weights.
void export_folder(const Context& ctx, const std::filesystem::path& destination, const ModelConfig& config,
                   const LayerSpec& spec, const Parameters& params, DType dtype, const Companions& companions = {},
                   int64_t max_shard_bytes = 5'000'000'000);

}  // namespace agoq::model
