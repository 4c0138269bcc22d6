#include "ops/attention/attention_cuda.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "device/cuda.h"
#include "ops/attention/attention_documents_cuda.h"
#include "ops/attention/attention_generic_cuda.h"
#include "ops/attention/attention_library_cuda.h"
#include "ops/attention/attention_runs.h"

namespace agoq::ops::cuda {
namespace {

// Who computes, and so in which order the lse lies: [B, Hq, S], [T, Hq] or [Hq, T].
enum class Route { Dense, Packed, Generic };

AttentionLibrary& library(const Context& ctx) {
  return ctx.gpu().library<AttentionLibrary>();
}

// cuDNN's view of the batch: B sequences of S, or documents; forward is described.
AttentionProblem forward_problem(const Context& ctx, const AttentionSpec& spec, int64_t tokens, bool keep_lse) {
  constexpr int64_t kShortest = 128;  // a plan for longer documents serves shorter ones too
  const Heads& heads = spec.heads;
  const Documents& documents = ctx.documents;
  const int64_t whole = documents.sequence_length > 0 ? documents.sequence_length : tokens;
  AttentionProblem p;
  p.packed = documents.longest != whole || documents.count * whole != tokens;
  p.keep_lse = keep_lse;
  p.sequences = p.packed ? padded_documents(documents.count) : documents.count;
  const auto longest = static_cast<uint64_t>(std::max(documents.longest, kShortest));
  p.length = p.packed ? static_cast<int64_t>(std::bit_ceil(longest)) : whole;
  p.query_heads = heads.query, p.kv_heads = heads.kv, p.dim = heads.dim;
  p.window = spec.window < p.length ? spec.window : 0;
  p.scale = spec.scale();
  p.q_row = p.kv_row = heads.cols();
  p.o_row = heads.q_cols(), p.lse_row = heads.query;
  return p;
}

Route route(const Context& ctx, const AttentionProblem& p, const Tensor& qkv) {
  const bool offsets_fit = qkv.count() <= std::numeric_limits<int32_t>::max();
  if (qkv.dtype != DType::BF16 || ctx.documents.count == 0 || (p.packed && !offsets_fit) || !library(ctx).supports(p))
    return Route::Generic;
  return p.packed ? Route::Packed : Route::Dense;
}

LseOrder lse_order(Route route, const AttentionProblem& p, int64_t heads, int64_t tokens) {
  if (route == Route::Packed) return LseOrder::tokens_first(heads, tokens);
  return LseOrder::heads_first(heads, route == Route::Dense ? p.length : tokens);
}

// Cuts the workspace into its parts, from the front.
class Parts {
 public:
  explicit Parts(const Tensor& workspace) : workspace_(workspace) {}
  Tensor take(int64_t bytes) {
    Tensor part = workspace_;
    part.data = workspace_.raw() + used_;
    part.shape = {bytes};
    used_ += bytes;
    return part;
  }

 private:
  const Tensor& workspace_;
  int64_t used_ = 0;
};

// Address of an element of a matrix of bf16 or fp32.
void* element(const Tensor& matrix, int64_t row, int64_t col) {
  return matrix.raw() + (row * matrix.cols() + col) * static_cast<int64_t>(size_of(matrix.dtype));
}

void set_inputs(AttentionOperands& operands, const Tensor& qkv, const Heads& heads, int64_t token, int64_t kv_head) {
  operands.set(AttentionOperand::Q, element(qkv, token, kv_head * heads.group() * heads.dim));
  operands.set(AttentionOperand::K, element(qkv, token, heads.k_begin() + kv_head * heads.dim));
  operands.set(AttentionOperand::V, element(qkv, token, heads.v_begin() + kv_head * heads.dim));
}

void set_documents(AttentionOperands& operands, const DocumentArrays& documents) {
  operands.set(AttentionOperand::Lengths, documents.lengths);
  operands.set(AttentionOperand::QOffsets, documents.q);
  operands.set(AttentionOperand::KvOffsets, documents.kv);
  operands.set(AttentionOperand::OOffsets, documents.o);
  operands.set(AttentionOperand::LseOffsets, documents.lse);
}

// The problem of one run of the backward pass.
AttentionProblem backward_problem(const AttentionProblem& forward, const AttentionRun& run, const Heads& heads) {
  AttentionProblem p = forward;
  p.backward = true;
  p.kv_heads = run.kv_heads;
  p.query_heads = run.kv_heads * heads.group();
  return p;
}

void dense_backward(const Context& ctx, const AttentionGradient& g, const Heads& heads, const AttentionRun& run,
                    const AttentionProblem& p, const Tensor& workspace) {
  const int64_t tokens = g.qkv.shape[0], step = run.sequences * p.length;
  const auto* lse = g.lse.as<float>();
  for (int64_t token = 0; token < tokens; token += step)
    for (int64_t head = 0; head < heads.kv; head += run.kv_heads) {
      const int64_t q_column = head * heads.group() * heads.dim;
      AttentionOperands operands;
      set_inputs(operands, g.qkv, heads, token, head);
      operands.set(AttentionOperand::O, element(g.o, token, q_column));
      operands.set(AttentionOperand::DO, element(g.d_o, token, q_column));
      operands.set(AttentionOperand::Lse, lse + token * heads.query + head * heads.group() * p.length);
      operands.set(AttentionOperand::DQ, element(g.dqkv, token, q_column));
      operands.set(AttentionOperand::DK, element(g.dqkv, token, heads.k_begin() + head * heads.dim));
      operands.set(AttentionOperand::DV, element(g.dqkv, token, heads.v_begin() + head * heads.dim));
      library(ctx).run(ctx, p, operands, workspace);
    }
}

// Some columns of a matrix of bf16: the address of the first, and the elements from one row to the next.
struct ColumnSlice {
  void* first = nullptr;
  int64_t row = 0;
  size_t pitch() const { return static_cast<size_t>(row) * sizeof(Bf16); }
};

void copy(const Context& ctx, const ColumnSlice& from, const ColumnSlice& to, int64_t rows, int64_t columns) {
  AGOQ_CUDA_CHECK(cudaMemcpy2DAsync(to.first, to.pitch(), from.first, from.pitch(),
                                    static_cast<size_t>(columns) * sizeof(Bf16), static_cast<size_t>(rows),
                                    cudaMemcpyDeviceToDevice, ctx.stream()));
}

void packed_backward(const Context& ctx, const AttentionGradient& g, const Heads& heads, const AttentionRun& run,
                     const AttentionProblem& p, const Tensor& workspace) {
  const int64_t tokens = g.qkv.shape[0];
  const AttentionWorkspace sizes = packed_workspace(heads, tokens, ctx.documents.count);
  Parts parts(workspace);
  const Tensor library_workspace = parts.take(sizes.library), ints = parts.take(sizes.documents);
  const auto q_columns = [&] { return ColumnSlice{parts.take(sizes.q).data, p.q_row}; };
  const auto kv_columns = [&] { return ColumnSlice{parts.take(sizes.kv).data, p.kv_row}; };
  const ColumnSlice q = q_columns(), dq = q_columns(), k = kv_columns(), dk = kv_columns(), v = kv_columns(),
                    dv = kv_columns();
  const DocumentArrays documents =
      expand_documents(ctx, tokens, {p.q_row, p.kv_row, p.o_row, p.lse_row}, reinterpret_cast<int32_t*>(ints.raw()));
  const auto columns_of = [](const Tensor& matrix, int64_t column) {
    return ColumnSlice{element(matrix, 0, column), matrix.cols()};
  };
  for (int64_t head = 0; head < heads.kv; head += run.kv_heads) {
    const int64_t q_column = head * heads.group() * heads.dim, kv_column = head * heads.dim;
    copy(ctx, columns_of(g.qkv, q_column), q, tokens, p.q_row);
    copy(ctx, columns_of(g.qkv, heads.k_begin() + kv_column), k, tokens, p.kv_row);
    copy(ctx, columns_of(g.qkv, heads.v_begin() + kv_column), v, tokens, p.kv_row);
    AttentionOperands operands;
    set_documents(operands, documents);
    operands.set(AttentionOperand::Q, q.first);
    operands.set(AttentionOperand::K, k.first);
    operands.set(AttentionOperand::V, v.first);
    operands.set(AttentionOperand::O, element(g.o, 0, q_column));
    operands.set(AttentionOperand::DO, element(g.d_o, 0, q_column));
    operands.set(AttentionOperand::Lse, g.lse.as<float>() + head * heads.group());
    operands.set(AttentionOperand::DQ, dq.first);
    operands.set(AttentionOperand::DK, dk.first);
    operands.set(AttentionOperand::DV, dv.first);
    library(ctx).run(ctx, p, operands, library_workspace);
    copy(ctx, dq, columns_of(g.dqkv, q_column), tokens, p.q_row);
    copy(ctx, dk, columns_of(g.dqkv, heads.k_begin() + kv_column), tokens, p.kv_row);
    copy(ctx, dv, columns_of(g.dqkv, heads.v_begin() + kv_column), tokens, p.kv_row);
  }
}

}  // namespace

void attention(const Context& ctx, const Tensor& qkv, const AttentionSpec& spec, const Tensor& o, const Tensor& lse,
               const Tensor& workspace) {
  const int64_t tokens = qkv.shape[0];
  const AttentionProblem p = forward_problem(ctx, spec, tokens, static_cast<bool>(lse));
  const Route taken = route(ctx, p, qkv);
  if (taken == Route::Generic) return generic_attention(ctx, qkv, spec, o, lse);
  const AttentionWorkspace sizes = forward_workspace(ctx.documents.count);
  Parts parts(workspace);
  const Tensor library_workspace = parts.take(sizes.library), ints = parts.take(sizes.documents);
  AttentionOperands operands;
  set_inputs(operands, qkv, spec.heads, 0, 0);
  operands.set(AttentionOperand::O, o.data);
  if (taken == Route::Packed)
    set_documents(operands, expand_documents(ctx, tokens, {p.q_row, p.kv_row, p.o_row, p.lse_row},
                                             reinterpret_cast<int32_t*>(ints.raw())));
  if (lse) operands.set(AttentionOperand::Lse, lse.data);
  library(ctx).run(ctx, p, operands, library_workspace);
}

void attention_backward(const Context& ctx, const AttentionGradient& g, const AttentionSpec& spec,
                        const Tensor& workspace) {
  const Heads& heads = spec.heads;
  const int64_t tokens = g.qkv.shape[0];
  const AttentionProblem forward = forward_problem(ctx, spec, tokens, true);
  const Route taken = route(ctx, forward, g.qkv);
  if (taken == Route::Dense) {
    const AttentionRun run = dense_run(heads, forward.sequences, forward.length, ctx.deterministic);
    AttentionProblem p = backward_problem(forward, run, heads);
    p.sequences = run.sequences;
    p.deterministic = ctx.deterministic;
    if ((!ctx.deterministic || deterministic_fits(run)) && library(ctx).supports(p))
      return dense_backward(ctx, g, heads, run, p, workspace);
  }
  // For packed documents cuDNN's deterministic sums are S x S for each, and its workspace is bounded by T alone only if
  // D is a multiple of 16.
  if (taken == Route::Packed && !ctx.deterministic && heads.dim % 16 == 0) {
    const AttentionRun run = packed_run(heads, tokens);
    AttentionProblem p = backward_problem(forward, run, heads);
    p.tokens = tokens;
    p.q_row = p.query_heads * heads.dim;
    p.kv_row = p.kv_heads * heads.dim;
    if (library(ctx).supports(p)) return packed_backward(ctx, g, heads, run, p, workspace);
  }
  generic_attention_backward(ctx, g, spec, lse_order(taken, forward, heads.query, tokens),
                             reinterpret_cast<float*>(workspace.raw()));
}

AttentionUse attention_use(Gpu& gpu) {
  return gpu.library<AttentionLibrary>().use();
}

}  // namespace agoq::ops::cuda
