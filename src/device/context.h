// What an op needs besides its arguments: where it runs, memory for temporaries, the random key, the batch's positions.
// Never config or model.
#pragma once

#include "base/philox.h"
#include "base/tensor.h"
#include "device/arena.h"
#include "device/profile.h"

namespace agoq {

class Context {
 public:
  // `target` is the device whose layout is planned: the device itself, or for Meta the one it stands for.
  Context(Arena& arena, Device target, DType compute) : arena_(&arena), target_(target), compute_(compute) {}

  Arena& arena() const { return *arena_; }
  Device device() const { return arena_->device(); }
  Device target() const { return target_; }
  bool meta() const { return device() == Device::Meta; }
  DType compute() const { return compute_; }  // F32 or BF16: what activations and GEMMs are

  // A temporary on the arena's stack, freed by the enclosing Scope.
  Tensor empty(DType dtype, Shape shape) const { return arena_->push(dtype, shape); }
  Tensor empty(Shape shape) const { return arena_->push(compute_, shape); }

  RandomKey random;       // seed, step and global micro-batch are set; ops fill in purpose and tensor
  Tensor positions;       // [T] int32: position of each token in its document (RoPE)
  Tensor document_start;  // [T] int32: index in this micro-batch of the first token of the token's document (attention)
  Profile* profile = nullptr;  // seconds by kind of op, when someone asks

 private:
  Arena* arena_;
  Device target_;
  DType compute_;
};

}  // namespace agoq
