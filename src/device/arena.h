// The arena: one block of memory per device, reserved before step 0, in which every byte has a named owner.
//
// Two ends of one block: owned tensors (weights, moments, saved activations, ...) grow from the bottom and stay;
// temporaries live on a strict stack that grows from the top and are freed by scope. On Device::Meta nothing is
// reserved: the same calls only count, and the totals of such a dry run are the capacity of the real arena.
#pragma once

#include <map>
#include <vector>

#include "base/tensor.h"
#include "device/gpu.h"
#include "device/owner.h"

namespace agoq {

struct OwnerBytes {
  Owner owner;
  size_t bytes = 0;
};

// Memory that the caller keeps: in whole, at least as long as the arena, its tensors and the work on them live. It
// begins at a multiple of Arena::kAlignment, and nothing here frees it. On a GPU it is used in the order of the streams
// of the contexts: who used it before, or gets it afterwards, on another stream orders the two by an event.
struct ForeignMemory {
  void* data = nullptr;
  size_t bytes = 0;
};

class Arena {
 public:
  static constexpr size_t kAlignment = 256;  // of all that it gives, and so of parts of it that take turns

  // Cpu reserves `capacity` zeroed bytes at once (error if the machine cannot); Meta ignores it.
  Arena(Device device, size_t capacity);
  // The same on a GPU, which must outlive the arena.
  Arena(Gpu& gpu, size_t capacity);
  // On memory of the caller: of the host (Cpu), or of the GPU. Error if it does not begin at a multiple of kAlignment
  // or is no memory of that device. Its bytes stay as they are: where tensors that live as long as the arena must begin
  // as zeros, as those of a training state, clear it first (zero(ctx, arena.memory()), device/transfer.h).
  Arena(Device device, ForeignMemory memory);
  Arena(Gpu& gpu, ForeignMemory memory);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  Device device() const { return device_; }
  Gpu* gpu() const { return gpu_; }  // null unless the memory is a GPU's
  bool foreign() const { return foreign_; }
  // A tensor that lives as long as the arena; zeros, unless the memory is foreign.
  Tensor allocate(Owner owner, DType dtype, Shape shape);
  // A temporary, uninitialised; freed when the enclosing Scope ends.
  Tensor push(DType dtype, Shape shape);

  size_t owned_bytes() const { return bottom_; }
  size_t stack_bytes() const { return top_; }            // now
  size_t peak_stack_bytes() const { return peak_top_; }  // the most so far
  size_t total_bytes() const { return bottom_ + peak_top_; }
  size_t capacity() const { return capacity_; }
  Tensor memory() const { return {base_, DType::U8, device_, {static_cast<int64_t>(capacity_)}}; }  // all of it
  // Owners in the order of their first allocation, the stack's peak last as Owner::Workspace.
  std::vector<OwnerBytes> by_owner() const;

 private:
  void use(ForeignMemory memory);

  friend class Scope;
  uint8_t* base_ = nullptr;
  Device device_;
  Gpu* gpu_ = nullptr;
  bool foreign_ = false;
  size_t capacity_ = 0;
  size_t bottom_ = 0;
  size_t top_ = 0;
  size_t peak_top_ = 0;
  std::vector<OwnerBytes> owners_;
};

class Context;

// Frees at its end all temporaries pushed since its start.
class Scope {
 public:
  explicit Scope(Arena& arena) : arena_(arena), top_(arena.top_) {}
  explicit Scope(const Context& ctx);
  ~Scope() { arena_.top_ = top_; }
  Scope(const Scope&) = delete;
  Scope& operator=(const Scope&) = delete;

 private:
  Arena& arena_;
  size_t top_;
};

}  // namespace agoq
