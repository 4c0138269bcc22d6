#include "parallel/stages.h"

#include "base/error.h"

namespace agoq::parallel {
namespace {

std::string at_most(const char* what, int64_t count) {
  return count > 0 ? fmt::format("at most {} {}", count, what) : fmt::format("no {}", what);
}

void check_explicit(int64_t layers, int stages, int chunks, const EndLayers& ends) {
  require(ends.first >= 0 && ends.last >= 0, "decoder-first/last-pipeline-num-layers: {} and {} must not be negative",
          ends.first, ends.last);
  require(chunks == 1, "decoder-first/last-pipeline-num-layers need one chunk per stage, not {}", chunks);
  require(stages >= 2, "decoder-first/last-pipeline-num-layers need a pipeline of 2 or more stages");
  const int64_t told = (ends.first > 0 ? 1 : 0) + (ends.last > 0 ? 1 : 0), others = stages - told;
  const int64_t left = layers - ends.first - ends.last;
  require(
      others == 0 ? left == 0 : left >= others,
      "decoder-first/last-pipeline-num-layers {} and {} (0: not given) leave {} of {} layers for the other {} of {} "
      "stages, which need {}",
      ends.first, ends.last, left, layers, others, stages, others == 0 ? "none" : "one each");
}

}  // namespace

std::vector<LayerRange> divide_layers(int64_t layers, int stages, int chunks, const EndLayers& ends) {
  require(stages >= 1 && chunks >= 1, "a pipeline of {} stages x {} chunks: each must be at least 1", stages, chunks);
  const int64_t n = int64_t{stages} * chunks;
  require(layers >= n,
          "{} layers are too few for {} stages x {} chunks, which need a layer each; {} stages allow {}, {} chunks "
          "allow {}",
          layers, stages, chunks, stages, at_most("chunks", layers / stages), chunks,
          at_most("stages", layers / chunks));
  if (ends.first != 0 || ends.last != 0) check_explicit(layers, stages, chunks, ends);

  std::vector<int64_t> counts(static_cast<size_t>(n), 0);
  if (ends.first > 0) counts.front() = ends.first;
  if (ends.last > 0) counts.back() = ends.last;
  // The virtual stages whose count is open, as [begin, end).
  const int64_t begin = ends.first > 0 ? 1 : 0, end = ends.last > 0 ? n - 1 : n, open = end - begin;
  const int64_t left = layers - ends.first - ends.last;
  for (int64_t k = begin; k < end; ++k) {
    const bool one_more = k < n - 1 && k >= n - 1 - left % open;
    counts[static_cast<size_t>(k)] = left / open + (one_more ? 1 : 0);
  }

  std::vector<LayerRange> ranges;
  int64_t layer = 0;
  for (const int64_t count : counts) {
    ranges.push_back({layer, layer + count});
    layer += count;
  }
  return ranges;
}

}  // namespace agoq::parallel
