// Which layers of the model each chunk of each pipeline stage has.
#pragma once

#include <cstdint>
#include <vector>

#include "model/layer_spec.h"

namespace agoq::parallel {

using LayerRange = model::Range;

// Layers that the first and the last stage are told to have (--decoder-first-pipeline-num-layers,
// --decoder-last-pipeline-num-layers); 0: as many as an even division gives.
struct EndLayers {
  int64_t first = 0, last = 0;
};

// The layers of each virtual stage (parallel/schedule.h: chunk c of stage s is at c * stages + s), in rising order.
//
// Each gets L / n of the L layers; of L % n layers left over, one each goes to the virtual stages just before the last.
// So the last, which has the head, never gets one, and the first, which has the embedding and holds the most
// micro-batches, only where all others before the last have one. Explicit counts of the ends leave the rest to be
// divided so among the others. An error if a virtual stage would have no layer, or if there are explicit counts with
// several chunks per stage.
std::vector<LayerRange> divide_layers(int64_t layers, int stages, int chunks, const EndLayers& ends = {});

}  // namespace agoq::parallel
