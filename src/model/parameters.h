// The model's weights: who owns them, in which form they are held, and how a layer gets to read them.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "comm/transport/transport.h"
#include "model/fp8_weights.h"
#include "model/gathered_weights.h"
#include "model/layer_spec.h"
#include "ops/linear/weight.h"

namespace agoq::model {

enum class MasterForm : uint8_t {
  Split,  // bf16 + int16 correction: exact fp32 in 4 bytes
  Fp32,   // fp32, and a bf16 copy beside it when GEMMs read bf16
};

// What of a model a process holds, and in which form.
struct Holding {
  std::vector<ParamId> ids;  // in the order of forward
  MasterForm form = MasterForm::Split;
  DType compute = DType::F32;
  // The rows that this process keeps exactly; none: all. Products in fp32 read the exact weight, so there it is all.
  std::function<Range(const ParamRow&)> exact_rows = {};
  // The rows that it holds of a weight of which other ranks hold the rest, and how to get at those; none: all.
  WeightSlices slices = {};
  std::optional<Fp8Holding> fp8 = {};  // if layers multiply in 8-bit floats
};

// Exact rows of a parameter: those that this process updates and saves.
struct ExactRows {
  ops::Weight weight;
  Range rows;  // of the parameter
};

// The weights of one layer (or of the ends of the model) in the compute type, valid within the scope they were acquired
// in.
class LayerWeights {
 public:
  const Tensor& operator[](Param p) const { return tensors_[static_cast<size_t>(p)]; }
  Tensor& operator[](Param p) { return tensors_[static_cast<size_t>(p)]; }
  // A matrix as products read it.
  const ops::LinearWeight& matrix(Param p) const { return matrices_[static_cast<size_t>(p)]; }
  void set_matrix(Param p, const ops::LinearWeight& w) { matrices_[static_cast<size_t>(p)] = w; }
  void set_sites(Param p, const ops::ScaleSites* sites) { matrices_[static_cast<size_t>(p)].sites = sites; }

 private:
  std::array<Tensor, kParams> tensors_{};
  std::array<ops::LinearWeight, kParams> matrices_{};
};

class Parameters {
 public:
  Parameters(Arena& arena, const ModelConfig& config, const LayerSpec& spec, Holding holding);
  Parameters(const Parameters&) = delete;
  Parameters& operator=(const Parameters&) = delete;

  const std::vector<ParamId>& ids() const { return holding_.ids; }
  bool holds(const ParamId& id) const { return static_cast<bool>(weights_[id.index()].value); }
  // The rows of it that this process holds. Waits for them if they are still on their way from other ranks.
  const ops::Weight& at(const ParamId& id) const;
  Range rows(const ParamId& id) const { return rows_[id.index()]; }
  // All rows, gathered if other ranks hold some: valid until two other layers, or ends of the model, are asked for. The
  // wait is measured, if someone asks.
  ops::Weight whole(const Context& ctx, const ParamId& id) const;
  const ExactRows& exact(const ParamId& id) const { return exact_[id.index()]; }
  // The head's weight: its own, or the embedding's where they are tied.
  ParamId head_id() const;

  // A step begins, or weights change otherwise: matrices are gathered and cast to 8-bit floats again.
  void begin_step();
  // Begins to gather a layer's weights, if other ranks hold some, in place of those that were read before the last
  // ones.
  void prefetch(const Context& ctx, int64_t layer) const { gathered_.prefetch(ctx, layer); }

  // One layer's weights as GEMMs read them, in 8-bit floats if the context multiplies in these. Where the held form
  // differs (CPU in fp32), they are widened into the caller's scope, one layer at a time.
  LayerWeights acquire(const Context& ctx, int64_t layer) const;
  // An empty tensor if this architecture has no such parameter.
  Tensor acquire(const Context& ctx, const ParamId& id) const;

  // fp32 values of rows [begin, end) of a matrix, or of a whole 1-D parameter, in the form in which each row is held;
  // rows that are not held here are skipped.
  void store_rows(const Context& ctx, const ParamId& id, Range rows, const float* values) const;
  // The rows that others update arrive later; nobody reads the parameter before.
  void expect(const ParamId& id, std::unique_ptr<comm::Pending> arrival) { arrivals_[id.index()] = std::move(arrival); }
  void wait_for_all() const;

  // Random initialisation from Philox by (seed, logical tensor, index in it): the same under every mesh of a kind of
  // device.
  void initialize(const Context& ctx, uint64_t seed);

 private:
  void wait_for(size_t index) const;
  // visit(part of a weight, its first row) for all that holds numbers of a matrix's rows.
  template <class Visit>
  void visit_rows(const ParamId& id, Range rows, const Visit& visit) const;

  const ModelConfig& config_;
  const LayerSpec& spec_;
  Holding holding_;
  // By ParamId::tensor():
  std::vector<ops::Weight> weights_;
  std::vector<Range> rows_;       // that these have
  std::vector<ExactRows> exact_;  // the same memory, or beside it
  mutable std::vector<std::unique_ptr<comm::Pending>> arrivals_;
  Fp8Weights fp8_;
  mutable GatheredWeights gathered_;
};

}  // namespace agoq::model
