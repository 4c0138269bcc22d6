#include "plan/layout.h"

#include "parallel/unquantized.h"

namespace agoq::plan {

size_t Layout::of(Owner owner) const {
  for (const OwnerBytes& o : owners)
    if (o.owner == owner) return o.bytes;
  return 0;
}

size_t Layout::saved() const {
  size_t bytes = 0;
  for (const OwnerBytes& o : owners)
    if (o.owner.kind() == Owner::Saved) bytes += o.bytes;
  return bytes;
}

size_t Layout::model_state() const {
  return of(Owner::Weights) + of(Owner::Corrections) + of(Owner::Fp32Master) + of(Owner::MainGradients) +
         of(Owner::Moments);
}

Layout plan_layout(const parallel::RunSpec& run_spec, Device target) {
  Arena arena(Device::Meta, 0);
  parallel::TrainingState state(arena, target, run_spec);
  state.dry_run();
  return {arena.by_owner(), arena.total_bytes()};
}

parallel::Traffic plan_traffic(const parallel::RunSpec& run_spec, Device target) {
  if (run_spec.parallelism.mesh.ranks() == 1) return {};
  Arena arena(Device::Meta, 0);
  return parallel::TrainingState(arena, target, run_spec).dry_traffic();
}

size_t beside_the_arena(Device target) {
  return target == Device::Cuda ? size_t{512} << 20 : 0;
}

parallel::RunSpec reference_run_spec(const parallel::RunSpec& run_spec) {
  const parallel::Unquantized plain = parallel::unquantized(DType::BF16);
  parallel::RunSpec reference = run_spec;
  reference.precision = plain.precision;
  reference.parallelism.grad_reduce = plain.grad_reduce;
  reference.recipe =
      model::make_recipe(run_spec.model, model::LayerSpec(run_spec.model), plain.policy, model::Recompute::None, "");
  return reference;
}

}  // namespace agoq::plan
