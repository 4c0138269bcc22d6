// Where something is measured: a block of memory, and operands full of random numbers.
#pragma once

#include <vector>

#include "codec/codec.h"
#include "ops/attention/rope.h"
#include "ops/linear/fp8.h"
#include "parallel/training_state.h"

namespace agoq::bench {

// On Meta it only counts bytes, so that the same calls tell how large the block must be.
class Workbench {
 public:
  Workbench(Arena& arena, Device target, const parallel::RunSpec& run_spec);

  const Context& ctx() const { return ctx_; }
  Arena& arena() const { return ctx_.arena(); }

  // Gaussian, of size 1.
  Tensor numbers(Shape shape) const { return numbers(ctx_.compute(), shape); }
  Tensor numbers(DType dtype, Shape shape) const;
  void fill(const Tensor& numbers) const;
  void fill(const codec::Quantized& codes) const;
  Tensor zeros(DType dtype, Shape shape) const { return arena().allocate(Owner::Operands, dtype, shape); }
  // Random integers below `end`.
  Tensor integers(int64_t count, int64_t end) const;
  // Codes to be written; codes of random numbers.
  codec::Quantized out(codec::Codec codec, int64_t rows, codec::RowBlocks row) const;
  codec::Quantized codes(codec::Codec codec, int64_t rows, codec::RowBlocks row) const;
  // The same of an operand [rows, k] in 8-bit floats; with a scale per row it has a max_scale.
  ops::Operand out(ops::OperandFormat format, int64_t rows, int64_t k) const;
  ops::Operand codes(ops::OperandFormat format, int64_t rows, int64_t k) const;
  Tensor rope_table(const ops::RopeSpec& spec, int64_t positions) const;

 private:
  Tensor on_device(const std::vector<int32_t>& integers) const;

  Context ctx_;  // with the positions and documents of the job's batch
};

}  // namespace agoq::bench
