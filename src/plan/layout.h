// The layout of memory before step 0, from a dry run: the code that trains runs once on the Meta device, which checks
// shapes and counts bytes. So what is planned is what is held (design 6); no formula mirrors the code.
#pragma once

#include <vector>

#include "parallel/training_state.h"

namespace agoq::plan {

struct Layout {
  std::vector<OwnerBytes> owners;  // in order of allocation, Owner::Workspace last
  size_t total = 0;                // capacity of the arena

  size_t of(Owner owner) const;  // 0 if it holds nothing here
  size_t saved() const;          // of all saved tensors
  // weights + corrections (or fp32 master) + main gradients + moments
  size_t model_state() const;
};

// `target`: the device that the layout is for (Cpu needs scratch that Cuda does not).
Layout plan_layout(const parallel::RunSpec& run_spec, Device target);
// What the process sends in a step.
parallel::Traffic plan_traffic(const parallel::RunSpec& run_spec, Device target);

// What a process holds on the device beside its arena: CUDA context, kernels and libraries. An estimate, measured on an
// H200 with CUDA 13, so it is named apart and in no total of ours.
size_t beside_the_arena(Device target);

// What the same model holds under plain mixed-precision training (parallel::unquantized in bf16: 18 bytes per
// parameter, Megatron-LM's default), with nothing recomputed.
parallel::RunSpec reference_run_spec(const parallel::RunSpec& run_spec);

}  // namespace agoq::plan
