// Weights of which every rank of a group holds a slice, gathered where products read them (ZeRO-3).
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <vector>

#include "comm/process_group.h"
#include "model/layer_buffer.h"
#include "ops/linear/weight.h"

namespace agoq::model {

struct WeightSlices {
  // The ranks that hold slices of a parameter; null: this process has all rows.
  std::function<const comm::ProcessGroup*(const ParamRow&)> group;
  std::function<Range(const ParamRow&, int rank)> rows;  // that a rank of it holds
};

// Messages by which each rank of a group gets the rows of every other one: `mine` are this rank's, `rows(r)` of `whole`
// become those of rank r.
struct RowGather {
  std::vector<comm::Message> sends, receives;
  void add(const comm::ProcessGroup& group, const Tensor& mine, const Tensor& whole,
           const std::function<Range(int rank)>& rows);
};

class GatheredWeights {
 public:
  GatheredWeights() = default;
  // `weights`: the slices that this process holds, by ParamId::index(); they outlive this. What makes them exact is
  // gathered, too, where products read it.
  GatheredWeights(Arena& arena, const LayerSpec& spec, const std::vector<ParamId>& ids,
                  const std::vector<ops::Weight>& weights, DType compute, WeightSlices slices);

  bool has(Param param) const { return buffer_.has(param); }
  // All rows of a parameter, until two other sets have been asked for. Begins to gather its set unless it is here or
  // under way, and waits for it. All ranks of the group ask for the same sets in the same order.
  ops::Weight at(const Context& ctx, const ParamId& id);
  // Begins to gather a layer, unless it is here, in place of the one that was not asked for last.
  void prefetch(const Context& ctx, int64_t layer);
  // Weights have changed.
  void outdate();

 private:
  struct Half {
    MatrixSet set;
    std::unique_ptr<comm::Pending> pending;
  };
  bool holds(size_t half, const MatrixSet& set) const { return halves_[half].set == set; }
  size_t find_or_start(const Context& ctx, const MatrixSet& set);
  void start(const Context& ctx, const MatrixSet& set, size_t half);
  void wait(const Context& ctx, size_t half);
  ops::Weight place(Param param, size_t half) const;

  const LayerSpec* spec_ = nullptr;
  const std::vector<ops::Weight>* weights_ = nullptr;
  WeightSlices slices_;
  std::array<ops::Weight, kParams> forms_;  // the parts of each parameter, without data
  LayerBuffer buffer_;
  std::array<Half, 2> halves_;
  size_t last_ = 0;  // the half that was asked for last
};

}  // namespace agoq::model
