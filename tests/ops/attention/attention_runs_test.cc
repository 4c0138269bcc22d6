#include "ops/attention/attention_runs.h"

#include <gtest/gtest.h>

namespace agoq::ops {
namespace {

const Heads kLlama3_8B{32, 8, 128}, kLlama2_13B{40, 40, 128}, kSmall{6, 2, 64};
constexpr int64_t kMiB = int64_t{1} << 20;

void expect_whole_parts(const AttentionRun& run, const Heads& heads, int64_t sequences) {
  EXPECT_EQ(sequences % run.sequences, 0);
  EXPECT_EQ(heads.kv % run.kv_heads, 0);
  EXPECT_TRUE(run.sequences == 1 || run.kv_heads == heads.kv);
}

TEST(AttentionRuns, SmallBatchesAreOneCall) {
  for (const bool deterministic : {false, true}) {
    const AttentionRun run = dense_run(kSmall, 4, 512, deterministic);
    EXPECT_EQ(run.sequences, 4);
    EXPECT_EQ(run.kv_heads, 2);
  }
  EXPECT_EQ(packed_run(kLlama3_8B, 8192).kv_heads, 8);
}

TEST(AttentionRuns, LargeOnesAreCutAlongSequencesThenHeads) {
  for (const Heads& heads : {kLlama3_8B, kLlama2_13B})
    for (const int64_t length : {2048, 8192, 32768, 65536})
      for (const int64_t sequences : {1, 3, 4, 32}) {
        const AttentionRun run = dense_run(heads, sequences, length, false);
        expect_whole_parts(run, heads, sequences);
        EXPECT_LE(run.workspace, kMostRunBytes);
      }
  EXPECT_EQ(dense_run(kLlama3_8B, 4, 8192, false).sequences, 2);
  EXPECT_EQ(dense_run(kLlama3_8B, 1, 65536, false).kv_heads, 2);
  EXPECT_LE(packed_run(kLlama3_8B, 65536).workspace, kMostRunBytes);
}

TEST(AttentionRuns, WorkspaceHoldsTheSumsThatCudnnKeeps) {
  const Heads& h = kLlama3_8B;
  // fp32 dq, and the gradients of keys and values of every query head; one number a row.
  EXPECT_GE(dense_run(h, 1, 8192, false).workspace, 8192 * 32 * (128 * 4 + 2 * 128 * 2 + 4));
  const AttentionRun deterministic = dense_run(h, 1, 8192, true);
  EXPECT_GE(deterministic.workspace, deterministic.kv_heads * 4 * int64_t{8192} * 8192 * 2);
  EXPECT_LE(deterministic.workspace, kMostRunBytes);
}

TEST(AttentionRuns, DeterministicSumsGrowUntilTheyAreGivenUp) {
  EXPECT_TRUE(deterministic_fits(dense_run(kLlama3_8B, 1, 16384, true)));
  EXPECT_FALSE(deterministic_fits(dense_run(kLlama3_8B, 1, 65536, true)));
}

TEST(AttentionRuns, LseOfCutHeadsIsAligned) {
  // Three query heads a key head: the lse of a single one would begin 12 bytes into a token's.
  const AttentionRun run = packed_run({24, 8, 256}, 65536);
  EXPECT_EQ(run.kv_heads * 3 * 4 % 16, 0);
}

TEST(AttentionRuns, OneWorkspaceServesEveryBatch) {
  Arena arena(Device::Meta, 0);
  Context ctx(arena, Device::Cuda, DType::BF16);
  ctx.documents.sequence_length = 2048;
  const int64_t most = attention_backward_workspace(ctx, kLlama3_8B, 8192);
  EXPECT_GE(most, dense_workspace(dense_run(kLlama3_8B, 4, 2048, false)).bytes());
  for (const int64_t documents : {1, 5, 1000, 8192})
    EXPECT_GE(most, packed_workspace(kLlama3_8B, 8192, documents).bytes());
  EXPECT_LE(attention_workspace(ctx, kLlama3_8B, 8192), 16 * kMiB);
  ctx.documents.sequence_length = 65536;
  EXPECT_LE(attention_backward_workspace(ctx, kLlama3_8B, 65536), kMostRunBytes + 256 * kMiB);
  ctx.deterministic = true;  // too long: the generic kernels' sums, one number a row
  EXPECT_EQ(attention_backward_workspace(ctx, kLlama3_8B, 65536), 65536 * 32 * 4);
}

TEST(AttentionRuns, DocumentsAreFilledUpToAPowerOfTwo) {
  EXPECT_EQ(padded_documents(1), 1);
  EXPECT_EQ(padded_documents(5), 8);
  EXPECT_EQ(padded_documents(8), 8);
  for (const int64_t n : {1, 5, 8, 100}) EXPECT_GE(document_ints(n), kDocumentArrays * (padded_documents(n) + 1));
}

}  // namespace
}  // namespace agoq::ops
