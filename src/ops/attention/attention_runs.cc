#include "ops/attention/attention_runs.h"

#include <algorithm>
#include <bit>

namespace agoq::ops {
namespace {

constexpr int64_t kTile = 128;                     // cuDNN's tiles, along queries and keys, are no longer
constexpr int64_t kSlack = int64_t{4} << 20;       // for its counters and for alignment
constexpr int64_t kVector = 16;                    // bytes of alignment that it needs
constexpr int64_t kFp32 = 4, kBf16 = 2, kInt = 4;  // bytes

int64_t round_up(int64_t n, int64_t to) {
  return (n + to - 1) / to * to;
}

// fp32 sums of dq (or, deterministic, the S x S gradients of the scores), of dk and dv for every query head where
// several share a key, and one number a row.
int64_t dense_bytes(const Heads& heads, const AttentionRun& run, int64_t length, bool deterministic) {
  const int64_t padded = round_up(length, kTile), rows = run.sequences * run.kv_heads * heads.group() * padded;
  int64_t per_row = kFp32 + (deterministic ? padded * kBf16 : heads.dim * kFp32);
  if (heads.group() > 1) per_row += 2 * heads.dim * kFp32;
  return rows * per_row + kSlack;
}

int64_t packed_bytes(const Heads& heads, int64_t kv_heads, int64_t tokens) {
  const int64_t q_heads = kv_heads * heads.group();
  int64_t per_token = heads.query * kFp32 + q_heads * heads.dim * kFp32;
  if (heads.group() > 1) per_token += 2 * q_heads * heads.dim * kFp32;
  return tokens * per_token + kSlack;
}

// The most heads that divide Hkv, can begin anywhere among the lse of `per_head` numbers each, and satisfy `fits`;
// otherwise the least.
template <class Fits>
int64_t choose_kv_heads(const Heads& heads, int64_t per_head, Fits&& fits) {
  int64_t least = heads.kv;
  for (int64_t n = heads.kv; n > 0; --n) {
    if (heads.kv % n != 0 || (n < heads.kv && n * heads.group() * per_head * kFp32 % kVector != 0)) continue;
    least = n;
    if (fits(n)) break;
  }
  return least;
}

}  // namespace

AttentionRun dense_run(const Heads& heads, int64_t sequences, int64_t length, bool deterministic) {
  const auto fits = [&](AttentionRun run) { return dense_bytes(heads, run, length, deterministic) <= kMostRunBytes; };
  AttentionRun run{sequences, heads.kv, 0};
  while (run.sequences > 1 && (sequences % run.sequences != 0 || !fits(run))) --run.sequences;
  if (run.sequences == 1) run.kv_heads = choose_kv_heads(heads, length, [&](int64_t n) { return fits({1, n, 0}); });
  run.workspace = dense_bytes(heads, run, length, deterministic);
  return run;
}

AttentionRun packed_run(const Heads& heads, int64_t tokens) {
  const int64_t kv_heads =
      choose_kv_heads(heads, 1, [&](int64_t n) { return packed_bytes(heads, n, tokens) <= kMostRunBytes; });
  return {1, kv_heads, packed_bytes(heads, kv_heads, tokens)};
}

bool deterministic_fits(const AttentionRun& run) {
  return run.workspace <= kMostDeterministicBytes;
}

int64_t padded_documents(int64_t documents) {
  return static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(documents)));
}

int64_t document_ints(int64_t documents) {
  return kDocumentArrays * round_up(padded_documents(documents) + 1, kVector / kInt);
}

AttentionWorkspace forward_workspace(int64_t documents) {
  return {kSlack, round_up(document_ints(documents) * kInt, 256), 0, 0};
}

AttentionWorkspace dense_workspace(const AttentionRun& run) {
  return {round_up(run.workspace, 256), 0, 0, 0};
}

AttentionWorkspace packed_workspace(const Heads& heads, int64_t tokens, int64_t documents) {
  const AttentionRun run = packed_run(heads, tokens);
  const int64_t column = round_up(tokens * run.kv_heads * heads.dim * kBf16, 256);
  return {round_up(run.workspace, 256), round_up(document_ints(documents) * kInt, 256), column * heads.group(), column};
}

int64_t attention_workspace(const Context& ctx, const Heads&, int64_t tokens) {
  return ctx.compute() == DType::BF16 ? forward_workspace(tokens).bytes() : 0;
}

int64_t attention_backward_workspace(const Context& ctx, const Heads& heads, int64_t tokens) {
  const int64_t generic = heads.query * tokens * kFp32;
  if (ctx.compute() != DType::BF16) return generic;
  const int64_t most = ctx.documents.sequence_length > 0 ? std::min(ctx.documents.sequence_length, tokens) : tokens;
  const AttentionRun dense = dense_run(heads, tokens / most, most, ctx.deterministic);
  if (ctx.deterministic) return std::max(generic, deterministic_fits(dense) ? dense_workspace(dense).bytes() : 0);
  return std::max({generic, dense_workspace(dense).bytes(), packed_workspace(heads, tokens, tokens).bytes()});
}

}  // namespace agoq::ops
