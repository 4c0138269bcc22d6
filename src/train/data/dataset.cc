#include "train/data/dataset.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/error.h"

namespace agoq::train {
namespace {

std::vector<double> weights_of(const std::vector<DatasetPart>& parts) {
  std::vector<double> weights;
  weights.reserve(parts.size());
  for (const DatasetPart& part : parts) weights.push_back(part.weight);
  return weights;
}

std::optional<double> number(const std::string& word) {
  double value = 0;
  const auto [rest, error] = std::from_chars(word.data(), word.data() + word.size(), value);
  if (error != std::errc{} || rest != word.data() + word.size()) return std::nullopt;
  return value;
}

struct OpenFile {
  double weight;
  std::shared_ptr<const TokenFile> file;
};

Dataset::DocumentRules documents_of(const TokenFile& file, const BatchSpec& spec) {
  return {spec.reset_position_ids.value_or(file.has_mask()), spec.reset_attention_mask.value_or(file.has_mask()),
          spec.eod_mask_loss, spec.only_eod_token || !file.stores_borders()};
}

std::vector<OpenFile> open_files(const std::vector<std::string>& words, TokenFileOptions options,
                                 const BatchSpec& spec) {
  options.vocab_size = spec.vocab_size;
  std::vector<OpenFile> files;
  for (const auto& [weight, path] : parse_data_path(words)) {
    auto file = std::make_shared<TokenFile>(path, options);
    const Dataset::DocumentRules documents = documents_of(*file, spec);
    if (!documents.matter() || documents.by_token) file->forget_borders();
    files.push_back({weight, std::move(file)});
  }
  return files;
}

// Samples in `tokens` tokens: n S + 1 of them make n samples.
uint64_t samples_in(uint64_t tokens, uint64_t sequence_length) {
  return tokens == 0 ? 0 : (tokens - 1) / sequence_length;
}

DatasetPart whole_file(const OpenFile& open, uint64_t sequence_length) {
  const uint64_t samples = samples_in(open.file->token_count(), sequence_length);
  require(samples > 0, "{} has {} tokens; a sample of sequence length {} needs {}", open.file->path(),
          open.file->token_count(), sequence_length, sequence_length + 1);
  return {open.weight, open.file, 0, samples};
}

struct Split {
  DatasetPart train;
  DatasetPart valid;
};

// The last n S + 1 tokens are held out; what lies before them is for training, and no token is in both.
Split split(const OpenFile& open, uint64_t sequence_length, double fraction) {
  const uint64_t all = whole_file(open, sequence_length).samples;
  const uint64_t tokens = open.file->token_count();
  const uint64_t sample_tokens = sequence_length + 1;
  require(tokens >= 2 * sample_tokens,
          "{} has {} tokens: too few to hold out a sample of {} tokens for validation and train on another; give more "
          "data, "
          "another valid-data-path, or valid-fraction 0",
          open.file->path(), tokens, sample_tokens);
  const auto share = static_cast<uint64_t>(std::llround(static_cast<double>(all) * fraction));
  const uint64_t held_out = std::clamp<uint64_t>(share, 1, samples_in(tokens - sample_tokens, sequence_length));
  const uint64_t first_held_out = tokens - (held_out * sequence_length + 1);
  return {{open.weight, open.file, 0, samples_in(first_held_out, sequence_length)},
          {open.weight, open.file, first_held_out, held_out}};
}

}  // namespace

Dataset::Dataset(std::vector<DatasetPart> parts, const BatchSpec& spec, uint64_t seed, SampleOrder order)
    : parts_(std::move(parts)), spec_(spec), seed_(seed), order_(order), blend_(weights_of(parts_)) {
  require(spec.micro_batch_size > 0 && spec.sequence_length > 0,
          "a micro-batch of {} sequences of {} tokens is impossible; both must be positive", spec.micro_batch_size,
          spec.sequence_length);
  require(spec.tokens() <= std::numeric_limits<int32_t>::max(), "a micro-batch of {} tokens exceeds 2^31",
          spec.tokens());
  const auto length = static_cast<uint64_t>(spec.sequence_length);
  for (const DatasetPart& part : parts_) {
    require(part.samples > 0, "{} gives no sample", part.file->path());
    const uint64_t tokens = part.file->token_count();
    require(part.first_token < tokens && part.samples <= samples_in(tokens - part.first_token, length),
            "{}: {} samples from token {} exceed its {} tokens", part.file->path(), part.samples, part.first_token,
            tokens);
    const DocumentRules d = documents(part);
    require(
        !d.matter() || !d.by_token || spec.eod_token >= 0,
        "{} does not store where documents begin, so --reset-position-ids, --reset-attention-mask (on for data with "
        "a .mask unless --no-reset-position-ids --no-reset-attention-mask are given) and --eod-mask-loss need "
        "--eod-token, the id that ends a document, which is not known",
        part.file->path());
  }
}

void Dataset::fill(uint64_t global_sample, int64_t slot, Batch& batch) const {
  const auto length = static_cast<size_t>(spec_.sequence_length);
  require(slot >= 0 && slot < spec_.micro_batch_size, "slot {} of a micro-batch of {}", slot, spec_.micro_batch_size);
  require(batch.tokens.size() == static_cast<size_t>(spec_.tokens()), "the batch has {} tokens, the dataset makes {}",
          batch.tokens.size(), spec_.tokens());
  const auto [source, index] = blend_.pick(global_sample);
  const DatasetPart& part = parts_[source];
  uint64_t sample = index % part.samples;
  if (order_ == SampleOrder::Shuffled)
    sample = permuted(sample, part.samples, {seed_, static_cast<uint32_t>(source), index / part.samples});

  fill_sample(part, sample, static_cast<size_t>(slot) * length, batch);
}

void Dataset::fill(uint64_t first_global_sample, Batch& batch) const {
  for (int64_t slot = 0; slot < spec_.micro_batch_size; ++slot)
    fill(first_global_sample + static_cast<uint64_t>(slot), slot, batch);
}

void Dataset::fill_sample(const DatasetPart& part, uint64_t sample, size_t begin, Batch& batch) const {
  const auto length = static_cast<size_t>(spec_.sequence_length);
  const uint64_t first = part.first_token + sample * length;
  const auto tokens = std::span(batch.tokens).subspan(begin, length);
  const auto targets = std::span(batch.targets).subspan(begin, length);
  part.file->read(first, tokens);
  std::copy(tokens.begin() + 1, tokens.end(), targets.begin());
  part.file->read(first + length, targets.last(1));
  part.file->read_mask(first + 1, std::span(batch.loss_weights).subspan(begin, length));  // of the targets
  mark_documents(part, first, begin, batch);
}

Dataset::DocumentRules Dataset::documents(const DatasetPart& part) const {
  return documents_of(*part.file, spec_);
}

void Dataset::mark_documents(const DatasetPart& part, uint64_t first, size_t begin, Batch& batch) const {
  const auto length = static_cast<size_t>(spec_.sequence_length);
  const DocumentRules documents = this->documents(part);
  const std::vector<bool> ends = document_ends(part, first, std::span(batch.tokens).subspan(begin, length));
  size_t position_origin = begin;
  size_t attention_origin = begin;
  for (size_t i = 0; i < length; ++i) {
    const size_t t = begin + i;
    batch.positions[t] = static_cast<int32_t>(t - position_origin);
    batch.document_start[t] = static_cast<int32_t>(attention_origin);
    if (!ends[i]) continue;
    if (documents.reset_positions) position_origin = t + 1;
    if (documents.reset_attention) attention_origin = t + 1;
    if (documents.mask_loss) batch.loss_weights[t] = 0;
  }
}

// Which of the tokens, the first of which is `first` of the stream, is its document's last.
std::vector<bool> Dataset::document_ends(const DatasetPart& part, uint64_t first,
                                         std::span<const int32_t> tokens) const {
  std::vector<bool> ends(tokens.size(), false);
  const DocumentRules documents = this->documents(part);
  if (!documents.matter()) return ends;
  if (documents.by_token) {
    for (size_t i = 0; i < tokens.size(); ++i) ends[i] = tokens[i] == spec_.eod_token;
  } else {
    for (const uint64_t start : part.file->document_starts(first + 1, first + 1 + tokens.size()))
      ends[start - first - 1] = true;
  }
  return ends;
}

bool Dataset::has_targets(const DatasetPart& part) const {
  if (!part.file->has_mask() && !spec_.eod_mask_loss) return true;
  BatchSpec one = spec_;
  one.micro_batch_size = 1;
  Batch batch(one);
  const auto length = static_cast<uint64_t>(spec_.sequence_length);
  const uint64_t first = part.first_token + 1;  // that may be a target
  for (uint64_t sample = 0; sample < part.samples; ++sample) {
    const auto target = part.file->next_target(first + sample * length, first + part.samples * length);
    if (!target) return false;
    sample = (*target - first) / length;
    fill_sample(part, sample, 0, batch);
    if (batch.target_weight() > 0) return true;
  }
  return false;
}

void Dataset::require_targets(uint64_t counted) const {
  for (const DatasetPart& part : parts_) {
    const TokenFile& file = *part.file;
    require(has_targets(part),
            "nothing counts for the loss in tokens {} to {} of {}{}{}; there is nothing to learn or to measure",
            part.first_token, part.first_token + part.samples * static_cast<uint64_t>(spec_.sequence_length),
            file.path(), file.has_mask() ? ": " + file.mask_path() + " allows no target there" : "",
            spec_.eod_mask_loss ? " (--eod-mask-loss leaves out what follows the end of a document)" : "");
  }
  if (counted == 0) return;
  Batch batch(spec_);
  for (uint64_t sample = 0; sample < counted; ++sample) {
    fill(sample, 0, batch);
    const auto weights = std::span(batch.loss_weights).first(static_cast<size_t>(spec_.sequence_length));
    if (std::any_of(weights.begin(), weights.end(), [](float weight) { return weight > 0; })) return;
  }
  fail("nothing counts for the loss in the first {} samples of {}; look at more of them, or give other data", counted,
       parts_.front().file->path());
}

std::vector<std::string> Dataset::warnings() const {
  std::vector<std::string> sentences;
  for (const DatasetPart& part : parts_) {
    const DocumentRules d = documents(part);
    const TokenFormat format = part.file->format();
    if (!d.reset_positions && !d.reset_attention) continue;
    if (format == TokenFormat::Megatron && part.file->document_count() == 1 && !d.by_token)
      sentences.push_back(
          fmt::format("{} is one document as a whole, whatever end tokens stand in it, so --reset-position-ids and "
                      "--reset-attention-mask change nothing; tokenize it as one document per text",
                      part.file->path()));
    if (part.file->stores_borders()) continue;
    if (format != TokenFormat::Text)
      sentences.push_back(
          fmt::format("{} does not store where documents begin; they are taken to end with each token {} (--eod-token)",
                      part.file->path(), spec_.eod_token));
    else if (part.file->document_count() <= 1)
      sentences.push_back(
          fmt::format("{} stores no document borders and is read as one document (see --document-separator), so "
                      "--reset-position-ids and --reset-attention-mask change nothing",
                      part.file->path()));
  }
  return sentences;
}

uint64_t Dataset::samples() const {
  uint64_t sum = 0;
  for (const DatasetPart& part : parts_) sum += part.samples;
  return sum;
}

uint64_t Dataset::samples_without_repetition() const {
  uint64_t windows = std::numeric_limits<uint64_t>::max();
  for (size_t s = 0; s < parts_.size(); ++s)
    windows = std::min(windows, parts_[s].samples / blend_.samples_per_window()[s]);
  uint64_t count = windows * blend_.window();
  for (auto pick = blend_.pick(count); pick.index < parts_[pick.source].samples; pick = blend_.pick(count)) ++count;
  return count;
}

std::string Dataset::identity() const {
  nlohmann::ordered_json sources = nlohmann::ordered_json::array();
  for (const DatasetPart& part : parts_)
    sources.push_back({{"weight", part.weight},
                       {"tokens", part.file->token_count()},
                       {"first_token", part.first_token},
                       {"samples", part.samples},
                       {"fingerprint", fmt::format("xxh3:{:016x}", part.file->fingerprint())}});
  return sources.dump();
}

StepBatches::StepBatches(const Dataset& data, int64_t global_batch_size, int data_rank, int data_ranks)
    : data_(data),
      data_rank_(data_rank),
      data_ranks_(data_ranks),
      batches_(static_cast<size_t>(global_batch_size / (data.spec().micro_batch_size * data_ranks)),
               Batch(data.spec())) {}

std::span<Batch> StepBatches::fill(int64_t step) {
  const auto samples = static_cast<uint64_t>(data_.spec().micro_batch_size);
  const auto ranks = static_cast<uint64_t>(data_ranks_);
  uint64_t micro_batch = static_cast<uint64_t>(step) * batches_.size() * ranks + static_cast<uint64_t>(data_rank_);
  for (Batch& batch : batches_) {
    data_.fill(micro_batch * samples, batch);
    micro_batch += ranks;
  }
  return batches_;
}

std::vector<WeightedPath> parse_data_path(const std::vector<std::string>& words) {
  require(!words.empty(), "no data: give data-path a file, or weights and files in turn (0.7 a 0.3 b)");
  if (words.size() == 1) return {{1.0, words[0]}};
  require(words.size() % 2 == 0, "data-path has {} words; give one file, or weights and files in turn (0.7 a 0.3 b)",
          words.size());
  std::vector<WeightedPath> paths;
  for (size_t i = 0; i < words.size(); i += 2) {
    const std::optional<double> weight = number(words[i]);
    require(weight && *weight > 0 && std::isfinite(*weight),
            "data-path: '{}' stands where a positive weight is expected, as in 0.7 a 0.3 b", words[i]);
    paths.push_back({*weight, words[i + 1]});
  }
  return paths;
}

bool Datasets::resets_attention() const {
  const auto resets = [](const Dataset& data) {
    return std::any_of(data.parts().begin(), data.parts().end(),
                       [&](const DatasetPart& part) { return data.documents(part).reset_attention; });
  };
  return resets(train) || (valid && resets(*valid));
}

Datasets open_datasets(const DataConfig& config, const BatchSpec& spec) {
  require(config.valid_fraction >= 0 && config.valid_fraction < 1, "valid-fraction is {}, it must lie in [0, 1)",
          config.valid_fraction);
  require(spec.sequence_length > 0, "the sequence length is {}, it must be positive", spec.sequence_length);
  const auto length = static_cast<uint64_t>(spec.sequence_length);
  const bool held_out = config.valid_data_path.empty() && config.valid_fraction > 0;
  std::vector<DatasetPart> train, valid;
  for (const OpenFile& open : open_files(config.data_path, config.files, spec)) {
    if (held_out) {
      const auto parts = split(open, length, config.valid_fraction);
      train.push_back(parts.train);
      valid.push_back(parts.valid);
    } else {
      train.push_back(whole_file(open, length));
    }
  }
  if (!config.valid_data_path.empty())
    for (const OpenFile& open : open_files(config.valid_data_path, config.files, spec))
      valid.push_back(whole_file(open, length));

  Datasets result{Dataset(std::move(train), spec, config.seed, SampleOrder::Shuffled), std::nullopt};
  if (!valid.empty()) result.valid.emplace(std::move(valid), spec, config.seed, SampleOrder::Sequential);
  return result;
}

Dataset open_evaluation_dataset(const DataConfig& config, const BatchSpec& spec) {
  require(spec.sequence_length > 0, "the sequence length is {}, it must be positive", spec.sequence_length);
  std::vector<DatasetPart> parts;
  for (const OpenFile& open : open_files(config.data_path, config.files, spec))
    parts.push_back(whole_file(open, static_cast<uint64_t>(spec.sequence_length)));
  return Dataset(std::move(parts), spec, config.seed, SampleOrder::Sequential);
}

}  // namespace agoq::train
