#include <algorithm>
#include <cmath>
#include <numeric>

#include "train/inference.h"

namespace agoq::train {
namespace {

// The prompt's last tokens, padded behind to the fixed length of a micro-batch; causal attention never sees the
// padding.
struct Window {
  explicit Window(const parallel::Job& job)
      : tokens(static_cast<size_t>(job.tokens())),
        zeros(tokens.size()),
        positions(tokens.size()),
        weights(tokens.size()) {
    for (size_t t = 0; t < positions.size(); ++t)
      positions[t] = static_cast<int32_t>(static_cast<int64_t>(t) % job.sequence_length);
    for (size_t t = 0; t < zeros.size(); ++t)
      zeros[t] = static_cast<int32_t>(static_cast<int64_t>(t) / job.sequence_length * job.sequence_length);
  }

  // Returns the row that predicts the next token.
  int64_t fill(const std::vector<int32_t>& text, int64_t sequence_length) {
    const size_t kept = std::min(text.size(), static_cast<size_t>(sequence_length));
    std::fill(tokens.begin(), tokens.end(), 0);
    std::copy(text.end() - static_cast<std::ptrdiff_t>(kept), text.end(), tokens.begin());
    return static_cast<int64_t>(kept) - 1;
  }

  parallel::MicroBatch view() {
    const auto ints = [](std::vector<int32_t>& v) { return host_tensor(v.data(), {static_cast<int64_t>(v.size())}); };
    return {ints(tokens), ints(tokens), host_tensor(weights.data(), {static_cast<int64_t>(weights.size())}),
            ints(positions), ints(zeros)};
  }

  std::vector<int32_t> tokens, zeros, positions;
  std::vector<float> weights;
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
  const RandomKey key{options.seed, Purpose::Sampling, 0, 0, 0};
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
  const int64_t vocab = state.job().model.vocab_size;
  for (const int32_t id : prompt)
    require(id >= 0 && id < vocab, "prompt token {} is outside the vocabulary of {}", id, vocab);
  require(options.top_k >= 0 && options.top_p > 0 && options.top_p <= 1, "need --top-k >= 0 and 0 < --top-p <= 1");
  Window window(state.job());
  std::vector<int32_t> text = std::move(prompt), fresh;
  for (int64_t n = 0; n < options.max_new_tokens; ++n) {
    const int64_t row = window.fill(text, state.job().sequence_length);
    int32_t next = 0;
    state.logits(window.view(), row,
                 [&](std::span<const float> logits) { next = sample(logits, options, static_cast<uint32_t>(n)); });
    if (next == options.stop_token) break;
    text.push_back(next);
    fresh.push_back(next);
    if (on_token && !on_token(next)) break;
  }
  return fresh;
}

}  // namespace agoq::train
