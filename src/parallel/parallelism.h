// How a run is spread over processes (design 5).
#pragma once

#include "codec/quantized.h"
#include "comm/gpu_link.h"
#include "comm/mesh.h"
#include "model/layer_spec.h"
#include "parallel/stages.h"

namespace agoq::parallel {

// Data ranks are those of the replica and the data axis together. What they divide (Sharding), those of the data axis
// divide; replicas hold the same.
inline constexpr std::string_view kPipeline = "pipeline", kReplica = "replica", kData = "data", kTensor = "tensor";

// The mesh of a training job, in the order in which Megatron-LM counts ranks: those of a tensor group are neighbours.
struct MeshShape {
  int tensor = 1, data = 1, pipeline = 1, replicas = 1;
};
inline comm::Mesh training_mesh(const MeshShape& shape) {
  std::vector<comm::Axis> axes = {{std::string(kPipeline), shape.pipeline}};
  if (shape.replicas > 1) axes.push_back({std::string(kReplica), shape.replicas});
  axes.push_back({std::string(kData), shape.data});
  axes.push_back({std::string(kTensor), shape.tensor});
  return comm::Mesh(std::move(axes));
}

// What data ranks divide among them, beside what comes before; in brackets Megatron-LM's names of its
// --data-parallel-sharding-strategy.
enum class Sharding : uint8_t {
  None,       // (no_shard)
  Optimizer,  // ZeRO-1 (optim): a data rank updates its slice, and keeps moments for it alone
  Gradients,  // ZeRO-2 (optim_grads): gradients of a micro-batch are summed at once, and a rank keeps its slice
  Weights     // ZeRO-3 (optim_grads_params): weights are gathered where they are read
};

struct Parallelism {
  comm::Mesh mesh;
  int rank = 0;              // this process in the mesh
  int chunks = 1;            // virtual stages of a pipeline rank: more than 1 interleaves
  EndLayers end_layers;      // of the first and the last stage
  int micro_batches = 1;     // of one data rank in a step
  bool stage_widths = true;  // later stages keep activations in more bits (plan/stage_plan.h)
  Sharding sharding = Sharding::Optimizer;
  codec::Codec grad_reduce = codec::Codec::Int8;  // what gradients travel in
  comm::GroupOptions links;                       // how GPUs reach each other

  int stage() const { return mesh.at(rank, kPipeline); }
  int stages() const { return mesh.size(kPipeline); }
  int data_rank() const { return mesh.at(rank, kReplica) * mesh.size(kData) + mesh.at(rank, kData); }
  int data_ranks() const { return mesh.size(kReplica) * mesh.size(kData); }
  model::TensorShard tensor() const { return {mesh.size(kTensor), mesh.at(rank, kTensor)}; }

  // Counts the micro-batches of all data ranks of a step, for draws: micro-batches 2i and 2i+1 of a rank, whose draws
  // mirror each other (codec/formats.h), stay neighbours.
  uint32_t global_index(int micro_batch) const { return index_among(data_ranks(), data_rank(), micro_batch); }
  // The same of sums that replicas encode, each its own.
  uint32_t replica_index(int sum) const { return index_among(mesh.size(kReplica), mesh.at(rank, kReplica), sum); }
  static uint32_t index_among(int ranks, int rank, int i) {
    return static_cast<uint32_t>(2 * (i / 2 * ranks + rank) + i % 2);
  }
};

}  // namespace agoq::parallel
