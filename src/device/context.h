// What an op needs besides its arguments: where it runs, memory for temporaries, the random key, the batch's positions.
// Never config or model.
#pragma once

#include <optional>

#include "base/philox.h"
#include "base/tensor.h"
#include "device/arena.h"
#include "device/profile.h"

namespace agoq {

namespace comm {
class ProcessGroup;
}
namespace ops {
struct Fp8Recipe;
class Fp8Counter;
}  // namespace ops

// Where the documents of a micro-batch lie, as far as the host knows it. Only the speed of attention depends on it:
// what it must compute is said by Context::document_start, and without this a GPU goes by that alone, slowly.
struct Documents {
  int64_t sequence_length = 0;  // no document crosses a multiple of it; 0: T
  int64_t count = 0;            // 0: not known
  int64_t longest = 0;          // tokens of the longest document
  Tensor offsets;  // [T + 1] int32 on the device: the first token of each document, then T; the rest unused
};

class ExposedTimes;

class Context {
 public:
  // `target` is the device whose layout is planned: the device itself, or for Meta the one it stands for.
  Context(Arena& arena, Device target, DType compute) : arena_(&arena), target_(target), compute_(compute) {}

  Arena& arena() const { return *arena_; }
  Device device() const { return arena_->device(); }
  Device target() const { return target_; }
  bool meta() const { return device() == Device::Meta; }
  bool cuda() const { return device() == Device::Cuda; }
  Gpu& gpu() const { return *arena_->gpu(); }  // of a context on a GPU
  // Where all its work goes on a GPU, that of libraries included: the compute stream, unless another one of that GPU is
  // set, be it ours (device/side_stream.h) or the caller's (null: CUDA's default stream). Contexts whose streams run at
  // once need arenas of their own, or one's temporaries would overwrite the other's.
  CUstream_st* stream() const { return stream_ ? *stream_ : gpu().stream(); }
  void use_stream(CUstream_st* stream) { stream_ = stream; }
  DType compute() const { return compute_; }  // F32 or BF16: what activations and GEMMs are

  // Temporaries on the arena's stack, freed by the enclosing Scope.
  Tensor empty(DType dtype, Shape shape) const { return arena_->push(dtype, shape); }
  Tensor empty(Shape shape) const { return arena_->push(compute_, shape); }
  // One that only kernels of `device` need: none, and so not counted, when the layout of another device is planned.
  Tensor scratch(Device device, DType dtype, Shape shape) const {
    return target_ == device ? arena_->push(dtype, shape) : Tensor{};
  }

  RandomKey random;       // seed, step and global micro-batch are set; ops fill in purpose and tensor
  Tensor positions;       // [T] int32: position of each token in its document (RoPE)
  Tensor document_start;  // [T] int32: index in this micro-batch of the first token of the token's document (attention)
  Documents documents;
  bool deterministic = false;  // same bits every time, on a GPU too, where attention's gradient is slower for it
  const ops::Fp8Recipe* fp8 = nullptr;         // how a layer multiplies in 8-bit floats; none: in the compute type
  ops::Fp8Counter* fp8_counter = nullptr;      // what counts numbers that become 8-bit floats, when someone asks
  const comm::ProcessGroup* tensor = nullptr;  // the ranks that hold one layer together; none: this one holds all of it
  Profile* profile = nullptr;                  // seconds by kind of op, when someone asks
  ExposedTimes* exposed = nullptr;             // seconds of waiting for other ranks, likewise

 private:
  Arena* arena_;
  Device target_;
  DType compute_;
  std::optional<CUstream_st*> stream_;
};

}  // namespace agoq
