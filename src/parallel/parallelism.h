// How a run is spread over processes (design 5).
#pragma once

#include "codec/quantized.h"
#include "comm/gpu_link.h"
#include "comm/mesh.h"
#include "model/layer_spec.h"
#include "parallel/stages.h"

namespace agoq::parallel {

struct Parallelism {
  comm::Mesh mesh;
  int rank = 0;                 // this process in the mesh
  int chunks = 1;               // virtual stages of a pipeline rank: more than 1 interleaves
  EndLayers end_layers;         // of the first and the last stage
  int micro_batches = 1;        // of one data rank in a step
  bool stage_widths = true;     // later stages keep activations in more bits (plan/stage_plan.h)
  bool shard_optimizer = true;  // ZeRO-1: a data rank updates its slice, and keeps moments for it alone
  codec::Codec grad_reduce = codec::Codec::Int8;  // what gradients travel in
  comm::GroupOptions links;                       // how GPUs reach each other

  int at(comm::Axis axis) const { return mesh.coordinates(rank)[static_cast<size_t>(axis)]; }
  int stage() const { return at(comm::Axis::Pipeline); }
  int stages() const { return mesh.size(comm::Axis::Pipeline); }
  int data_rank() const { return at(comm::Axis::Data); }
  int data_ranks() const { return mesh.size(comm::Axis::Data); }
  model::TensorShard tensor() const { return {mesh.size(comm::Axis::Tensor), at(comm::Axis::Tensor)}; }

  // Counts the micro-batches of all data ranks of a step, for draws: micro-batches 2i and 2i+1 of a rank, whose draws
  // mirror each other (codec/formats.h), stay neighbours.
  uint32_t global_index(int micro_batch) const {
    return static_cast<uint32_t>(2 * (micro_batch / 2 * data_ranks() + data_rank()) + micro_batch % 2);
  }
};

}  // namespace agoq::parallel
