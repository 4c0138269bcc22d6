// Samples of sequence_length + 1 tokens from one or several token files, as Megatron-LM's GPT dataset cuts them:
// documents lie end to end, and sample i covers stream tokens [i S, i S + S], so that its last target is the next
// sample's first token.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "train/data/batch.h"
#include "train/data/sample_order.h"
#include "train/data/token_file.h"

namespace agoq::train {

// A range of one file's stream: samples i in [0, samples) begin at token first_token + i S.
struct DatasetPart {
  double weight = 1;
  std::shared_ptr<const TokenFile> file;
  uint64_t first_token = 0;
  uint64_t samples = 0;
};

enum class SampleOrder : uint8_t { Shuffled, Sequential };

class Dataset {
 public:
  Dataset(std::vector<DatasetPart> parts, const BatchSpec& spec, uint64_t seed, SampleOrder order);

  // Writes the global sample (counted over all steps and data ranks) into sequence `slot` of the batch. Which text that
  // is depends on the seed and this number alone; each epoch of each source has its own order. Different slots may be
  // filled by different threads.
  void fill(uint64_t global_sample, int64_t slot, Batch& batch) const;
  void fill(uint64_t first_global_sample, Batch& batch) const;  // all slots, consecutive samples

  const BatchSpec& spec() const { return spec_; }
  const std::vector<DatasetPart>& parts() const { return parts_; }
  uint64_t samples() const;                     // of all parts: one pass over everything
  uint64_t samples_without_repetition() const;  // how many global samples come before a part begins again

  // An Error where nothing in a part counts for the loss, or nothing in the first `counted` global samples (0: of each
  // part alone).
  void require_targets(uint64_t counted = 0) const;
  // What a person should know of the data and these settings; a sentence each.
  std::vector<std::string> warnings() const;

  // How a part's documents are dealt with.
  struct DocumentRules {
    bool reset_positions, reset_attention, mask_loss;
    bool by_token;  // they end with the end-of-document token
    bool matter() const { return reset_positions || reset_attention || mask_loss; }
  };
  DocumentRules documents(const DatasetPart& part) const;

  // JSON of what a resumed run must find unchanged: per part weight, tokens, samples and fingerprint. Names of files do
  // not matter.
  std::string identity() const;

 private:
  void fill_sample(const DatasetPart& part, uint64_t sample, size_t begin, Batch& batch) const;
  void mark_documents(const DatasetPart& part, uint64_t first, size_t begin, Batch& batch) const;
  std::vector<bool> document_ends(const DatasetPart& part, uint64_t first, std::span<const int32_t> tokens) const;
  bool has_targets(const DatasetPart& part) const;

  std::vector<DatasetPart> parts_;
  BatchSpec spec_;
  uint64_t seed_;
  SampleOrder order_;
  Blend blend_;
};

// The micro-batches of a training step that one data rank computes, in arrays that serve every step. Data ranks take
// the micro-batches of the step in turn.
class StepBatches {
 public:
  // The global batch is a whole number of micro-batches for every data rank.
  StepBatches(const Dataset& data, int64_t global_batch_size, int data_rank = 0, int data_ranks = 1);
  // Of the step (from 0); valid until the next call.
  std::span<Batch> fill(int64_t step);

 private:
  const Dataset& data_;
  int data_rank_, data_ranks_;
  std::vector<Batch> batches_;
};

struct WeightedPath {
  double weight = 1;
  std::string path;
};
// One path, or weights and paths in turn: "0.7 a 0.3 b".
std::vector<WeightedPath> parse_data_path(const std::vector<std::string>& words);

struct DataConfig {
  std::vector<std::string> data_path;
  std::vector<std::string> valid_data_path;  // empty: the end of every source of data_path is held out
  double valid_fraction = 0.05;              // so much of it; 0: there is no validation data
  TokenFileOptions files;                    // vocab_size is taken from the BatchSpec
  uint64_t seed = 0;
};

struct Datasets {
  Dataset train;
  std::optional<Dataset> valid;   // in order, never shuffled
  bool resets_attention() const;  // somewhere: a sequence may hold several documents
};
// Training and validation never share a token.
Datasets open_datasets(const DataConfig& config, const BatchSpec& spec);

// One data path in its order, for evaluation alone.
Dataset open_evaluation_dataset(const DataConfig& config, const BatchSpec& spec);

}  // namespace agoq::train
