#include "gradient_error/channels.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "plan/layout.h"

namespace agoq::bench {
namespace {

ChannelSizes sizes_of(const Tensor& x) {
  ChannelSizes sizes(static_cast<size_t>(x.cols()));
  const float* row = x.as<float>();
  for (int64_t t = 0; t < x.shape[0]; ++t, row += x.cols())
    for (size_t i = 0; i < sizes.size(); ++i) sizes[i] += double{row[i]} * row[i];
  for (double& size : sizes) size = std::sqrt(size / static_cast<double>(x.shape[0]));
  return sizes;
}

// Everything is kept in fp32.
parallel::RunSpec keeping_all(parallel::RunSpec run_spec) {
  require(!run_spec.model.post_norm, "the norms of {} are behind its layers' products: its channels are not measured",
          run_spec.model.model_type);
  run_spec.training = true;
  run_spec.precision = {};
  run_spec.recipe = model::make_recipe(run_spec.model, model::LayerSpec(run_spec.model), model::Policy::Fp32,
                                       model::Recompute::None, "");
  return run_spec;
}

LayerChannels channels_of(const Context& ctx, const model::SavedTensors& kept) {
  using K = model::SavedTensor;
  const auto sizes = [&](K k) { return sizes_of(kept.load(ctx, k)); };
  return {sizes(K::X1), sizes(K::N1), sizes(K::X2), sizes(K::N2), sizes(K::Hidden)};
}

}  // namespace

ModelChannels channels_of(parallel::TrainingState& state, const parallel::MicroBatch& batch) {
  const parallel::RunSpec run_spec = keeping_all(state.run_spec());
  const model::LayerSpec& spec = state.spec();
  const int64_t tokens = run_spec.tokens();
  Arena arena(Device::Cpu, plan::plan_layout(run_spec, Device::Cpu).total);
  const model::SavedTensors kept(arena, spec, run_spec.recipe, 0, tokens);
  const model::Model model(arena, run_spec.model, spec, run_spec.sequence_length, model::Recompute::None);
  Context ctx(arena, Device::Cpu, DType::F32);
  ctx.tensor = &state.groups().tensor();
  ctx.positions = batch.positions;
  ctx.document_start = batch.document_start;
  ctx.documents.sequence_length = run_spec.sequence_length;

  Scope scope(ctx);
  ModelChannels all;
  const Tensor x = ctx.empty({tokens, run_spec.model.hidden_size});
  model.embed(ctx, state.params(), batch.tokens, x);
  for (int64_t layer = 0; layer < run_spec.model.layers; ++layer) {
    model.forward(ctx, state.params(), x, layer, layer + 1, {kept});
    all.layers.push_back(channels_of(ctx, kept));
  }
  all.final_x = sizes_of(x);
  return all;
}

double root_mean_square(const ChannelSizes& sizes) {
  return size_without(sizes, {});
}

std::vector<int64_t> largest(const ChannelSizes& sizes, int64_t count) {
  std::vector<int64_t> order(sizes.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return sizes[static_cast<size_t>(a)] > sizes[static_cast<size_t>(b)]; });
  order.resize(static_cast<size_t>(count));
  return order;
}

double size_without(const ChannelSizes& sizes, const std::vector<int64_t>& excepted) {
  double sum = 0;
  for (const double size : sizes) sum += size * size;
  for (const int64_t i : excepted) sum -= sizes[static_cast<size_t>(i)] * sizes[static_cast<size_t>(i)];
  return std::sqrt(std::max(sum, 0.0) / static_cast<double>(sizes.size() - excepted.size()));
}

double times_larger(const ChannelSizes& sizes, const std::vector<int64_t>& channels) {
  double least = std::numeric_limits<double>::infinity();
  for (const int64_t i : channels) least = std::min(least, sizes[static_cast<size_t>(i)]);
  return least / size_without(sizes, channels);
}

}  // namespace agoq::bench
