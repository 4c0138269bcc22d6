#include "parallel/gradients.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

namespace agoq::parallel {
namespace {

using model::Param;
using model::ParamId;

constexpr ParamId kEmbedding{-1, Param::Embedding};

struct World {
  explicit World(bool tied)
      : config(with_ties(tied)), spec(config), part(config, spec, {}), grads(arena, spec, part, {}, {}, plan) {
    for (const ParamId& id : model::all_params(config, spec)) soil(id);  // what an earlier step left
  }
  static model::ModelConfig with_ties(bool tied) {
    model::ModelConfig config = model::preset("demo");
    config.tied_embeddings = tied;
    return config;
  }
  void soil(const ParamId& id) const {
    const codec::Quantized& q = grads.data(id);
    std::memset(q.codes.data, 0x11, q.codes.bytes());
    if (q.scales) std::memset(q.scales.data, 0x3f, q.scales.bytes());
  }
  bool zero(const ParamId& id) const {
    const codec::Quantized& q = grads.data(id);
    const auto all_zero = [](const Tensor& t) {
      return !t || std::all_of(t.raw(), t.raw() + t.bytes(), [](uint8_t byte) { return byte == 0; });
    };
    return all_zero(q.codes) && all_zero(q.scales);
  }

  model::ModelConfig config;
  model::LayerSpec spec;
  StageShard part;
  Groups groups;
  ShardPlan plan{spec, groups, Sharding::Optimizer, DType::F32};
  Arena arena{Device::Cpu, size_t{64} << 20};
  Context ctx{arena, Device::Cpu, DType::F32};
  Gradients grads;
};

TEST(Gradients, FirstContributionOfAStepFindsThemFresh) {
  for (const bool tied : {false, true}) {
    World w(tied);
    for (int step = 0; step < 2; ++step) {
      w.grads.begin_step(w.ctx);
      for (const ParamId& id : model::all_params(w.config, w.spec)) {
        const bool sparse = !tied && id.param == Param::Embedding;
        EXPECT_EQ(w.grads.acquire(w.ctx, id).fresh, !sparse) << model::logical_name(w.spec, id);
        EXPECT_FALSE(w.grads.acquire(w.ctx, id).fresh) << model::logical_name(w.spec, id);
      }
    }
  }
}

TEST(Gradients, WhatOnlySomeTokensTouchIsCleared) {
  World untied(false), tied(true);
  untied.grads.begin_step(untied.ctx);
  tied.grads.begin_step(tied.ctx);
  EXPECT_TRUE(untied.zero(kEmbedding));
  EXPECT_FALSE(tied.zero(kEmbedding)) << "the head writes all of it";
}

TEST(Gradients, WhatNobodyWroteReadsAsZeroInTheEnd) {
  World w(false);
  const ParamId written{0, Param::Qkv};
  w.grads.begin_step(w.ctx);
  w.grads.acquire(w.ctx, written);
  w.soil(written);
  w.grads.end_step(w.ctx);
  for (const ParamId& id : model::all_params(w.config, w.spec))
    EXPECT_EQ(w.zero(id), id.tensor() != written.tensor()) << model::logical_name(w.spec, id);
}

}  // namespace
}  // namespace agoq::parallel
