// How a GPU's attention is cut into calls of cuDNN, and the memory that they need: known without a GPU.
#pragma once

#include "device/context.h"
#include "ops/heads.h"

namespace agoq::ops {

// A call of the backward pass takes `sequences` of the B sequences and `kv_heads` of the key/value heads with their
// query heads; one of them is all there are. `workspace` bytes are an upper bound of what cuDNN asks for.
struct AttentionRun {
  int64_t sequences = 0, kv_heads = 0;
  int64_t workspace = 0;
};

// Calls are cut until they need no more than this, if they can be.
inline constexpr int64_t kMostRunBytes = int64_t{1} << 30;
// The deterministic one, which keeps the S x S gradients of the scores of its heads, gets more before it is given up.
inline constexpr int64_t kMostDeterministicBytes = int64_t{9} << 28;

// Every sequence one document, [B, S].
AttentionRun dense_run(const Heads& heads, int64_t sequences, int64_t length, bool deterministic);
// Several documents in T tokens; cuDNN's sums are then as long as the rows of dq, dk and dv, which are therefore made
// in compact tensors and copied to their places. q, k and v are copied too, since a gradient must lie as its operand
// does (attention_library_cuda.h).
AttentionRun packed_run(const Heads& heads, int64_t tokens);
bool deterministic_fits(const AttentionRun& run);

// What cuDNN is told of each document (attention_documents_cuda.h): so many int32 numbers for `documents`.
inline constexpr int64_t kDocumentArrays = 5;
int64_t document_ints(int64_t documents);
// Documents are filled up with empty ones to a power of two, so that few plans serve all batches.
int64_t padded_documents(int64_t documents);

// Where things lie in the workspace of one call of the op.
struct AttentionWorkspace {
  int64_t library = 0;    // bytes for cuDNN
  int64_t documents = 0;  // bytes of document_ints
  int64_t q = 0, kv = 0;  // bytes of compact q and dq each, of k, v, dk and dv each
  int64_t bytes() const { return library + documents + 2 * q + 4 * kv; }
};
AttentionWorkspace forward_workspace(int64_t documents);
AttentionWorkspace dense_workspace(const AttentionRun& run);
AttentionWorkspace packed_workspace(const Heads& heads, int64_t tokens, int64_t documents);

// Bytes that suffice whatever documents a batch of T tokens has, for cuDNN and for the generic kernels.
int64_t attention_workspace(const Context& ctx, const Heads& heads, int64_t tokens);
int64_t attention_backward_workspace(const Context& ctx, const Heads& heads, int64_t tokens);

}  // namespace agoq::ops
