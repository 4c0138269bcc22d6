// Main gradients of all parameters of this process, in the chosen format, and their sums over the ranks that hold
// partial sums (QuanGrad, design 4; the paper's section on the precision-preserving all-reduce).
//
// A matrix is cut by rows into a slice for each rank of its reduction group. An exchange sends every rank the codes of
// its slice; what arrives overwrites the gradient's own storage, so that afterwards it holds the partial sums of all
// ranks for this rank's slice, to be decoded and summed in fp32 by whoever reads them: no second quantization, and no
// fp32 copy. 1-D parameters keep fp32 and are summed on all ranks.
//
// With ZeRO-2 a rank keeps its slice alone. A micro-batch's gradient is encoded once and exchanged at once; what
// arrives is summed in fp32 and added to the slice, which is encoded again.
#pragma once

#include <vector>

#include "model/model.h"
#include "ops/gradient/gradient_sum.h"
#include "parallel/micro_batch_gradients.h"
#include "parallel/precision.h"
#include "parallel/shard_plan.h"
#include "parallel/stage_shard.h"

namespace agoq::parallel {

// Replicas (HSDP) encode their sums of a slice, and exchange those in the all-reduce form, once a step.
class Gradients : public model::GradientSource {
 public:
  Gradients(Arena& arena, const model::LayerSpec& spec, const StageShard& part, const Precision& precision,
            const Parallelism& parallelism, const ShardPlan& plan);

  // From here on all sums are zero. Memory is cleared only where a backward pass may leave parts alone (the rows of the
  // embedding without a token); the others are fresh, and the first contribution of the step overwrites them. After
  // `micro_batches` contributions a gradient begins its exchange; 0: all begin in end_step.
  void begin_step(const Context& ctx, int micro_batches = 0);
  // Fresh the first time in a step.
  ops::MainGrad acquire(const Context& ctx, const model::ParamId& id) override;
  void contributed(const Context& ctx, const model::ParamId& id) override;
  // Clears what stayed fresh because nothing contributed to it, and ends all exchanges: afterwards sum() is the
  // gradient.
  void end_step(const Context& ctx);

  // This process's own partial sum, before end_step: all rows. Not with ZeRO-2.
  codec::Quantized data(const model::ParamId& id) const { return own_rows(grads_[id.index()]); }
  // The gradient of the rows that this process updates.
  ops::GradientSum sum(const model::ParamId& id) const;

 private:
  struct Grad {
    ops::MainGrad main;       // all rows, padded to equal slices where those are exchanged; or one slice (ZeRO-2)
    int64_t rows = 0;         // without padding
    uint32_t folded = 0;      // micro-batches that were added to the slice
    int contributions = 0;    // still to come in this step before the exchange
    int per_micro_batch = 1;  // a tied embedding gets two where both ends are here; 0: exchanged in end_step
    bool exchanged = false;
  };
  static codec::Quantized own_rows(const Grad& grad) { return grad.main.data.row_range(0, grad.rows); }
  Grad allocate(Arena& arena, const model::ParamId& id, const Precision& precision);
  void allocate_vectors(Arena& arena);
  SlicedGradient sliced(const Grad& grad, const model::ParamId& id) const;
  void exchange(const Context& ctx, const model::ParamId& id);
  void fold(const Context& ctx, const model::ParamId& id);
  void sum_over_replicas(const Context& ctx);
  SlicedGradient slice_of_replica(const model::ParamId& id) const;

  const model::LayerSpec& spec_;
  const ShardPlan& plan_;
  const Parallelism parallelism_;
  bool stochastic_;
  std::vector<model::ParamId> ids_;
  std::vector<Grad> grads_;  // by ParamId::tensor()
  // 1-D gradients lie one behind the other, by the group that sums them.
  struct Vectors {
    const comm::ProcessGroup* group = nullptr;
    Tensor numbers;  // fp32
  };
  std::vector<Vectors> vectors_;
  GradientExchange exchange_;
  MicroBatchGradients of_micro_batch_;
  bool tied_here_ = false;   // embedding and head share a matrix of this process
  bool head_alone_ = false;  // this process has such a matrix for its head alone
};

}  // namespace agoq::parallel
