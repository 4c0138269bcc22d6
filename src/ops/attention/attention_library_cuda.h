// cuDNN's attention on one GPU: its handle and the plans made so far.
#pragma once

#include <cudnn.h>

#include <compare>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>

#include "device/context.h"
#include "ops/attention/attention_cuda.h"

namespace cudnn_frontend::graph {
class Graph;
}

namespace agoq::ops::cuda {

// All that a plan depends on. Rows are those of whole tensors; a plan may be for some of their heads.
struct AttentionProblem {
  bool backward = false, deterministic = false;
  bool keep_lse = true;   // of forward
  bool packed = false;    // several documents in T tokens, given by offsets; else [sequences, length]
  int64_t sequences = 0;  // or documents
  int64_t length = 0;     // of each, or of the longest document
  int64_t tokens = 0;     // T, of a packed backward pass
  int64_t query_heads = 0, kv_heads = 0, dim = 0;
  int64_t window = 0;  // 0: none
  float scale = 0;
  // Elements from one token to the next. A gradient lies as its operand does: of packed documents cuDNN adds up dq at
  // the offsets of q, whatever those of dq say, and 9.14 writes dk and dv at those of k and v.
  int64_t q_row = 0, kv_row = 0, o_row = 0, lse_row = 0;
  auto operator<=>(const AttentionProblem&) const = default;
};

enum class AttentionOperand : int64_t {
  Q = 1,
  K,
  V,
  O,
  Lse,
  DO,
  DQ,
  DK,
  DV,
  Lengths,
  QOffsets,
  KvOffsets,
  OOffsets,
  LseOffsets
};
// Addresses by Operand.
class AttentionOperands {
 public:
  void set(AttentionOperand operand, const void* address) {
    addresses_[static_cast<int64_t>(operand)] = const_cast<void*>(address);
  }
  std::unordered_map<int64_t, void*>& addresses() { return addresses_; }

 private:
  std::unordered_map<int64_t, void*> addresses_;
};

class AttentionLibrary {
 public:
  explicit AttentionLibrary(Gpu& gpu);
  ~AttentionLibrary();
  AttentionLibrary(const AttentionLibrary&) = delete;
  AttentionLibrary& operator=(const AttentionLibrary&) = delete;

  // Whether cuDNN can; if it cannot, says so once.
  bool supports(const AttentionProblem& problem);
  // On the stream of the context. Error if the plan asks for more workspace than there is; calls on several streams at
  // once each need one of their own.
  void run(const Context& ctx, const AttentionProblem& problem, AttentionOperands operands, const Tensor& workspace);
  AttentionUse use() const { return {static_cast<int64_t>(plans_.size()), calls_}; }

 private:
  struct AttentionPlan {
    std::shared_ptr<cudnn_frontend::graph::Graph> graph;  // null: not supported
    int64_t workspace = 0;
  };
  const AttentionPlan& plan(const AttentionProblem& problem);

  cudnnHandle_t handle_ = nullptr;
  std::map<AttentionProblem, AttentionPlan> plans_;
  int64_t calls_ = 0;
};

}  // namespace agoq::ops::cuda
