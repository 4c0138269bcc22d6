// One micro-batch on the host: micro_batch_size sequences of sequence_length tokens, flattened to T tokens.
#pragma once

#include <cstddef>
#include <cstdint>
#include <numeric>
#include <optional>
#include <vector>

namespace agoq::train {

// The flags are Megatron-LM's: what happens where a document ends inside a sequence. Data that stores where documents
// begin (a Megatron-LM .idx) decides; in other data the end-of-document token does.
struct BatchSpec {
  int64_t micro_batch_size = 1;
  int64_t sequence_length = 1024;
  int64_t vocab_size = 0;
  std::optional<bool> reset_position_ids;    // positions count from 0 again; none: where the data has a mask
  std::optional<bool> reset_attention_mask;  // attention does not reach back; none: where the data has a mask
  bool eod_mask_loss = false;                // predicting the next document's first token does not count
  int32_t eod_token = -1;                    // -1: unknown
  bool only_eod_token = false;               // ends documents whatever the data stores, as it did in older runs

  int64_t tokens() const { return micro_batch_size * sequence_length; }  // T
};

struct Batch {
  explicit Batch(const BatchSpec& spec) : Batch(static_cast<size_t>(spec.tokens())) {}

  std::vector<int32_t> tokens;      // [T]
  std::vector<int32_t> targets;     // [T] the token that follows
  std::vector<float> loss_weights;  // [T] 0 where the prediction does not count
  std::vector<int32_t> positions;   // [T] position in the document, or in the sequence
  std::vector<int32_t>
      document_start;  // [T] index in this micro-batch of the first token that this token may attend to

  // What the summed loss of this micro-batch weighs; may be 0.
  double target_weight() const { return std::accumulate(loss_weights.begin(), loss_weights.end(), 0.0); }

 private:
  explicit Batch(size_t t) : tokens(t), targets(t), loss_weights(t), positions(t), document_start(t) {}
};

}  // namespace agoq::train
