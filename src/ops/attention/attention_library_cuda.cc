#include "ops/attention/attention_library_cuda.h"

#define CUDNN_FRONTEND_SKIP_JSON_LIB
#include <cudnn_frontend.h>

#include "base/error.h"
#include "base/log.h"
#include "ops/library_versions.h"

namespace agoq::ops {
namespace {

constexpr LibraryVersion::Number kOldestCudnn = {9, 14, 0};

}  // namespace
}  // namespace agoq::ops

namespace agoq::ops::cuda {
namespace {

namespace fe = cudnn_frontend;
using fe::graph::Tensor_attributes;
using TensorPtr = std::shared_ptr<Tensor_attributes>;

void check(cudnnStatus_t status, const char* what) {
  if (status != CUDNN_STATUS_SUCCESS) [[unlikely]]
    fail("{}: {}", what, cudnnGetErrorString(status));
}
#define AGOQ_CUDNN_CHECK(call) check((call), #call)

std::string text(const AttentionProblem& p) {
  return fmt::format("{}{} attention of {} {} of {} tokens, {} query and {} key/value heads of {}",
                     p.deterministic ? "deterministic " : "", p.backward ? "backward" : "forward", p.sequences,
                     p.packed ? "documents" : "sequences", p.length, p.query_heads, p.kv_heads, p.dim);
}

// Tensors of cuDNN are [B, heads, S, D]; ours are rows of tokens that hold heads, described by strides.
class GraphBuilder {
 public:
  explicit GraphBuilder(const AttentionProblem& problem) : p_(problem), graph_(std::make_shared<fe::graph::Graph>()) {
    graph_->set_io_data_type(fe::DataType_t::BFLOAT16)
        .set_intermediate_data_type(fe::DataType_t::FLOAT)
        .set_compute_data_type(fe::DataType_t::FLOAT);
    if (p_.packed) {
      lengths_ = ints(AttentionOperand::Lengths, p_.sequences);
      q_offsets_ = ints(AttentionOperand::QOffsets, p_.sequences + 1);
      kv_offsets_ = ints(AttentionOperand::KvOffsets, p_.sequences + 1);
      o_offsets_ = ints(AttentionOperand::OOffsets, p_.sequences + 1);
      if (p_.backward || p_.keep_lse) lse_offsets_ = ints(AttentionOperand::LseOffsets, p_.sequences + 1);
    }
  }

  std::shared_ptr<fe::graph::Graph> forward() {
    const TensorPtr q = input(AttentionOperand::Q, p_.query_heads, p_.q_row, q_offsets_);
    const TensorPtr k = input(AttentionOperand::K, p_.kv_heads, p_.kv_row, kv_offsets_);
    const TensorPtr v = input(AttentionOperand::V, p_.kv_heads, p_.kv_row, kv_offsets_);
    auto options = fe::graph::SDPA_attributes().set_name("attention").set_generate_stats(p_.keep_lse);
    mask(options);
    auto [o, lse] = graph_->sdpa(q, k, v, options);
    describe(o, AttentionOperand::O, p_.query_heads, p_.o_row, o_offsets_)->set_output(true);
    if (p_.keep_lse) describe_lse(lse)->set_output(true);
    return graph_;
  }

  std::shared_ptr<fe::graph::Graph> backward() {
    const TensorPtr q = input(AttentionOperand::Q, p_.query_heads, p_.q_row, q_offsets_);
    const TensorPtr k = input(AttentionOperand::K, p_.kv_heads, p_.kv_row, kv_offsets_);
    const TensorPtr v = input(AttentionOperand::V, p_.kv_heads, p_.kv_row, kv_offsets_);
    const TensorPtr o = input(AttentionOperand::O, p_.query_heads, p_.o_row, o_offsets_);
    const TensorPtr d_o = input(AttentionOperand::DO, p_.query_heads, p_.o_row, o_offsets_);
    const TensorPtr lse = graph_->tensor(Tensor_attributes());
    describe_lse(lse);
    auto options =
        fe::graph::SDPA_backward_attributes().set_name("attention").set_deterministic_algorithm(p_.deterministic);
    mask(options);
    if (p_.packed) options.set_max_total_seq_len_q(p_.tokens).set_max_total_seq_len_kv(p_.tokens);
    auto [dq, dk, dv] = graph_->sdpa_backward(q, k, v, o, d_o, lse, options);
    describe(dq, AttentionOperand::DQ, p_.query_heads, p_.q_row, q_offsets_)->set_output(true);
    describe(dk, AttentionOperand::DK, p_.kv_heads, p_.kv_row, kv_offsets_)->set_output(true);
    describe(dv, AttentionOperand::DV, p_.kv_heads, p_.kv_row, kv_offsets_)->set_output(true);
    return graph_;
  }

 private:
  TensorPtr ints(AttentionOperand operand, int64_t n) {
    return graph_->tensor(Tensor_attributes()
                              .set_uid(static_cast<int64_t>(operand))
                              .set_dim({n, 1, 1, 1})
                              .set_stride({1, 1, 1, 1})
                              .set_data_type(fe::DataType_t::INT32));
  }
  TensorPtr describe(const TensorPtr& t, AttentionOperand operand, int64_t heads, int64_t row,
                     const TensorPtr& offsets) {
    t->set_uid(static_cast<int64_t>(operand))
        .set_dim({p_.sequences, heads, p_.length, p_.dim})
        .set_stride({p_.length * row, p_.dim, row, 1});
    if (offsets) t->set_ragged_offset(offsets);
    return t;
  }
  TensorPtr input(AttentionOperand operand, int64_t heads, int64_t row, const TensorPtr& offsets) {
    return describe(graph_->tensor(Tensor_attributes()), operand, heads, row, offsets);
  }
  // [B, heads, S], or packed [T, all heads].
  TensorPtr describe_lse(const TensorPtr& t) {
    t->set_uid(static_cast<int64_t>(AttentionOperand::Lse)).set_data_type(fe::DataType_t::FLOAT);
    t->set_dim({p_.sequences, p_.query_heads, p_.length, 1});
    if (p_.packed)
      t->set_stride({p_.length * p_.lse_row, 1, p_.lse_row, 1}).set_ragged_offset(lse_offsets_);
    else
      t->set_stride({p_.length * p_.query_heads, p_.length, 1, 1});
    return t;
  }
  // Token t sees t - window + 1 to t of its sequence.
  template <class Options>
  void mask(Options& options) {
    options.set_attn_scale(p_.scale)
        .set_diagonal_alignment(fe::DiagonalAlignment_t::TOP_LEFT)
        .set_diagonal_band_right_bound(0);
    if (p_.window > 0) options.set_diagonal_band_left_bound(static_cast<int>(p_.window));
    if (p_.packed) options.set_padding_mask(true).set_seq_len_q(lengths_).set_seq_len_kv(lengths_);
  }

  const AttentionProblem& p_;
  std::shared_ptr<fe::graph::Graph> graph_;
  TensorPtr lengths_, q_offsets_, kv_offsets_, o_offsets_, lse_offsets_;
};

}  // namespace

AttentionLibrary::AttentionLibrary(Gpu&) {
  require_fit(cudnn_version());
  AGOQ_CUDNN_CHECK(cudnnCreate(&handle_));
}

AttentionLibrary::~AttentionLibrary() {
  plans_.clear();
  if (handle_) cudnnDestroy(handle_);
}

const AttentionLibrary::AttentionPlan& AttentionLibrary::plan(const AttentionProblem& problem) {
  if (const auto known = plans_.find(problem); known != plans_.end()) return known->second;
  GraphBuilder builder(problem);
  AttentionPlan made{problem.backward ? builder.backward() : builder.forward(), 0};
  fe::error_t status = made.graph->build(handle_, {fe::HeurMode_t::A});
  if (status.is_good()) status = made.graph->get_workspace_size(made.workspace);
  if (status.is_bad()) {
    made.graph = nullptr;
    log_warning("cuDNN cannot compute {}, a slow kernel does: {}", text(problem), status.get_message());
  }
  return plans_.emplace(problem, made).first->second;
}

bool AttentionLibrary::supports(const AttentionProblem& problem) {
  return plan(problem).graph != nullptr;
}

void AttentionLibrary::run(const Context& ctx, const AttentionProblem& problem, AttentionOperands operands,
                           const Tensor& workspace) {
  const AttentionPlan& made = plan(problem);
  require(made.workspace <= workspace.count(),
          "cuDNN asks for {} bytes of workspace for {}, more than the {} planned (ops/attention/attention_runs.cc)",
          made.workspace, text(problem), workspace.count());
  AGOQ_CUDNN_CHECK(cudnnSetStream(handle_, ctx.stream()));
  const fe::error_t status = made.graph->execute(handle_, operands.addresses(), workspace.data);
  require(status.is_good(), "cuDNN fails at {}: {}", text(problem), status.err_msg);
  ++calls_;
}

}  // namespace agoq::ops::cuda

namespace agoq::ops {

LibraryVersion cudnn_version() {
  return {"cuDNN", {CUDNN_MAJOR, CUDNN_MINOR, CUDNN_PATCHLEVEL}, decode_version(cudnnGetVersion()), kOldestCudnn};
}

}  // namespace agoq::ops
