// The data of a training run, opened by all its processes and checked before step 0.
#pragma once

#include "train/coordinator.h"
#include "train/data/dataset.h"

namespace agoq::train {

// How many held-out samples an evaluation counts.
int64_t evaluated_samples(const TrainConfig& config, const Dataset& valid);

// All ranks call it. The first rank of a machine reads the data through, then the others, which what it remembers
// (file_scan.h) spares most of that; none is waited for in vain. An Error where something is wrong with the data, or
// where nothing in it counts for the loss.
Datasets open_run_data(const Coordinator& coordinator, int local_rank, const TrainConfig& config,
                       const BatchSpec& spec);

}  // namespace agoq::train
