#include <algorithm>
#include <cmath>
#include <numeric>

#include "train/inference.h"

namespace agoq::train {
namespace {

// The last tokens of the text, as one short micro-batch.
class ContextWindow {
 public:
  explicit ContextWindow(int64_t length)
      : zeros_(static_cast<size_t>(length)), positions_(zeros_.size()), weights_(zeros_.size()) {
    std::iota(positions_.begin(), positions_.end(), 0);
  }

  parallel::MicroBatch end_of(const std::vector<int32_t>& text) {
    const size_t kept = std::min(text.size(), zeros_.size());
    tokens_.assign(text.end() - static_cast<std::ptrdiff_t>(kept), text.end());
    const Shape shape = {static_cast<int64_t>(kept)};
    const Tensor tokens = host_tensor(tokens_.data(), shape);
    return {tokens, tokens, host_tensor(weights_.data(), shape), host_tensor(positions_.data(), shape),
            host_tensor(zeros_.data(), shape)};
  }

 private:
  std::vector<int32_t> tokens_, zeros_, positions_;
  std::vector<float> weights_;
};

// Candidates by falling probability, cut by top-k and top-p; probabilities are not normalised.
std::vector<std::pair<float, int32_t>> candidates(std::span<const float> logits, const SamplingOptions& options) {
  std::vector<std::pair<float, int32_t>> all;
  const float most = *std::max_element(logits.begin(), logits.end());
  for (size_t id = 0; id < logits.size(); ++id)
    all.emplace_back(std::exp((logits[id] - most) / static_cast<float>(options.temperature)), static_cast<int32_t>(id));
  std::sort(all.begin(), all.end(),
            [](const auto& a, const auto& b) { return a.first != b.first ? a.first > b.first : a.second < b.second; });
  if (options.top_k > 0) all.resize(std::min(all.size(), static_cast<size_t>(options.top_k)));
  const float total =
      std::accumulate(all.begin(), all.end(), 0.0f, [](float sum, const auto& c) { return sum + c.first; });
  float mass = 0;
  size_t count = 0;
  while (count < all.size() && mass < static_cast<float>(options.top_p) * total) mass += all[count++].first;
  all.resize(std::max<size_t>(count, 1));
  return all;
}

int32_t sample(std::span<const float> logits, const SamplingOptions& options, uint32_t draw_index) {
  if (options.temperature <= 0)
    return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  const auto choices = candidates(logits, options);
  float total = 0;
  for (const auto& choice : choices) total += choice.first;
  const RandomKey key{options.seed, RngStream::Sampling, 0, 0, 0};
  float left = uniform01(key.draw(draw_index)[0]) * total;
  for (const auto& [mass, id] : choices) {
    left -= mass;
    if (left < 0) return id;
  }
  return choices.back().second;
}

}  // namespace

std::vector<int32_t> generate(parallel::TrainingState& state, std::vector<int32_t> prompt,
                              const SamplingOptions& options, const std::function<bool(int32_t)>& on_token) {
  require(!prompt.empty(), "generation needs a prompt of at least one token");
  const int64_t vocab = state.run_spec().model.vocab_size;
  for (const int32_t id : prompt)
    require(id >= 0 && id < vocab, "prompt token {} is outside the vocabulary of {}", id, vocab);
  require(options.top_k >= 0 && options.top_p > 0 && options.top_p <= 1, "need --top-k >= 0 and 0 < --top-p <= 1");
  ContextWindow window(state.run_spec().sequence_length);
  std::vector<int32_t> text = std::move(prompt), fresh;
  for (int64_t n = 0; n < options.max_new_tokens; ++n) {
    const parallel::MicroBatch batch = window.end_of(text);
    int32_t next = 0;
    state.logits(batch, batch.tokens.count() - 1,
                 [&](std::span<const float> logits) { next = sample(logits, options, static_cast<uint32_t>(n)); });
    next = state.groups().world().values(next).front();  // of one mind, also where GPUs differ in a last bit
    if (std::find(options.stop_tokens.begin(), options.stop_tokens.end(), next) != options.stop_tokens.end()) break;
    text.push_back(next);
    fresh.push_back(next);
    if (on_token && !on_token(next)) break;
  }
  return fresh;
}

}  // namespace agoq::train
