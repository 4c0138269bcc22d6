#include "model/recipe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "base/error_of.h"

namespace agoq::model {
namespace {

using codec::Codec;
using testing::AllOf;
using testing::HasSubstr;

class RecipeOf : public testing::Test {
 protected:
  Recipe make(Policy policy, Recompute recompute = Recompute::None, const std::string& overrides = "") const {
    return make_recipe(config_, spec_, policy, recompute, overrides);
  }
  std::string error(const std::string& overrides) const {
    return error_of([&] { make(Policy::Agoq, Recompute::None, overrides); });
  }

  ModelConfig config_ = preset("demo");
  LayerSpec spec_{config_};
};

constexpr SavedTensor kNorms[] = {SavedTensor::X1, SavedTensor::X2};
constexpr SavedTensor kAttention[] = {SavedTensor::Qkv, SavedTensor::O};
constexpr SavedTensor kInputs[] = {SavedTensor::N1, SavedTensor::N2, SavedTensor::Hidden};
constexpr SavedTensor kStats[] = {SavedTensor::Rstd1, SavedTensor::Rstd2, SavedTensor::Lse};

TEST_F(RecipeOf, PoliciesChooseTheirCodecs) {
  struct Expected {
    Policy policy;
    Codec norm, attention, mlp, input;
  };
  const Expected table[] = {{Policy::Agoq, Codec::Fp4, Codec::Bf16, Codec::Fp4, Codec::None},
                            {Policy::Paper, Codec::Fp4, Codec::Bf16, Codec::Fp4, Codec::Fp4},
                            {Policy::Fp8, Codec::Fp8, Codec::Bf16, Codec::Fp8, Codec::Fp8},
                            {Policy::Bf16, Codec::Bf16, Codec::Bf16, Codec::Bf16, Codec::Bf16},
                            {Policy::Fp32, Codec::Fp32, Codec::Fp32, Codec::Fp32, Codec::Fp32}};
  for (const Expected& expected : table) {
    const Recipe recipe = make(expected.policy);
    ASSERT_EQ(recipe.layers.size(), static_cast<size_t>(config_.layers));
    for (int64_t layer = 0; layer < config_.layers; ++layer) {
      for (const SavedTensor k : kNorms) EXPECT_EQ(recipe.at(layer, k), expected.norm);
      for (const SavedTensor k : kAttention) EXPECT_EQ(recipe.at(layer, k), expected.attention);
      for (const SavedTensor k : kInputs) EXPECT_EQ(recipe.at(layer, k), expected.input);
      for (const SavedTensor k : kStats) EXPECT_EQ(recipe.at(layer, k), Codec::Fp32);
      EXPECT_EQ(recipe.at(layer, SavedTensor::GateUp), expected.mlp);
      EXPECT_EQ(recipe.at(layer, SavedTensor::QkRstd), Codec::None) << "no norm on q and k in this model";
    }
  }
  const LayerSpec qwen3(find_config(AGOQ_GOLDENS "/qwen3/model"));
  const ModelConfig config = find_config(AGOQ_GOLDENS "/qwen3/model");
  EXPECT_EQ(make_recipe(config, qwen3, Policy::Agoq, Recompute::None, "").at(0, SavedTensor::QkRstd), Codec::Fp32);
}

TEST_F(RecipeOf, RecomputationDropsWhatItMakesAgain) {
  const Recipe selective = make(Policy::Bf16, Recompute::Selective);
  for (size_t k = 0; k < kSavedTensors; ++k) {
    const SavedTensor kept = static_cast<SavedTensor>(k);
    const bool dropped = kept == SavedTensor::O || kept == SavedTensor::Lse || !spec_[kept].present();
    EXPECT_EQ(selective.at(0, kept) == Codec::None, dropped) << spec_[kept].name;
  }
  for (const auto& [policy, x1] : {std::pair{Policy::Agoq, Codec::Fp4}, {Policy::Bf16, Codec::Bf16}}) {
    const Recipe full = make(policy, Recompute::Full);
    for (size_t k = 0; k < kSavedTensors; ++k)
      EXPECT_EQ(full.at(0, static_cast<SavedTensor>(k)),
                static_cast<SavedTensor>(k) == SavedTensor::X1 ? x1 : Codec::None);
  }
}

TEST_F(RecipeOf, OverridesNameTensorsGroupsAndLayers) {
  const Recipe recipe =
      make(Policy::Agoq, Recompute::None, "layers=0-1,mlp=fp8,qkv=int8; norm=fp5 ;layers=4, x2 = bf16;");
  for (int64_t layer = 0; layer < config_.layers; ++layer) {
    SCOPED_TRACE(layer);
    EXPECT_EQ(recipe.at(layer, SavedTensor::GateUp), layer < 2 ? Codec::Fp8 : Codec::Fp4);
    EXPECT_EQ(recipe.at(layer, SavedTensor::Qkv), layer < 2 ? Codec::Int8 : Codec::Bf16);
    EXPECT_EQ(recipe.at(layer, SavedTensor::O), Codec::Bf16);
    EXPECT_EQ(recipe.at(layer, SavedTensor::X1), Codec::Fp5);
    EXPECT_EQ(recipe.at(layer, SavedTensor::X2), layer == 4 ? Codec::Bf16 : Codec::Fp5);
  }
  const Recipe attention = make(Policy::Agoq, Recompute::None, "attention=int8,input=fp6");
  for (const SavedTensor k : kAttention) EXPECT_EQ(attention.at(0, k), Codec::Int8);
  for (const SavedTensor k : kInputs) EXPECT_EQ(attention.at(0, k), Codec::Fp6);
  for (const SavedTensor k : kStats) EXPECT_EQ(attention.at(0, k), Codec::Fp32) << "statistics belong to no group";

  const Recipe last = make(Policy::Agoq, Recompute::None, "mlp=fp8,layers=0");
  EXPECT_EQ(last.at(0, SavedTensor::GateUp), Codec::Fp8);
  EXPECT_EQ(last.at(1, SavedTensor::GateUp), Codec::Fp4) << "layers limits its clause wherever it stands";

  const Recipe no_output = make(Policy::Agoq, Recompute::None, "layers=2,o=none");
  EXPECT_EQ(no_output.at(2, SavedTensor::O), Codec::None);
  EXPECT_EQ(no_output.at(2, SavedTensor::Lse), Codec::None) << "made again together with o";
  EXPECT_EQ(no_output.at(1, SavedTensor::Lse), Codec::Fp32);
}

// With norms behind attention and the MLP, products read x1 and x2 themselves, and norms what products make.
TEST(RecipeOfPostNorm, KeepsWhatNormsRead) {
  const ModelConfig config = preset("olmo2-1b");
  const LayerSpec spec(config);
  const auto make = [&](Policy policy, Recompute recompute, const std::string& overrides) {
    return make_recipe(config, spec, policy, recompute, overrides);
  };
  const Recipe agoq = make(Policy::Agoq, Recompute::None, "");
  for (const SavedTensor k : {SavedTensor::X1, SavedTensor::Y1, SavedTensor::X2, SavedTensor::Y2})
    EXPECT_EQ(agoq.at(0, k), Codec::Fp4) << spec[k].name;
  for (const SavedTensor k : {SavedTensor::N1, SavedTensor::N2}) EXPECT_FALSE(spec[k].present()) << spec[k].name;
  EXPECT_EQ(agoq.at(0, SavedTensor::QkRstd), Codec::Fp32);
  EXPECT_EQ(make(Policy::Agoq, Recompute::None, "norm=fp6").at(0, SavedTensor::Y2), Codec::Fp6);
  EXPECT_EQ(make(Policy::Agoq, Recompute::Full, "").at(0, SavedTensor::Y1), Codec::None);
  for (const char* name : {"y1", "y2"})
    EXPECT_THAT(error_of([&] { make(Policy::Agoq, Recompute::None, std::string(name) + "=none"); }), HasSubstr(name));
  EXPECT_THAT(error_of([&] { make(Policy::Agoq, Recompute::None, "n1=fp8"); }), HasSubstr("unknown name 'n1'"));
}

TEST_F(RecipeOf, RefusesWhatItCannotDo) {
  EXPECT_THAT(error("mpl=fp8"), AllOf(HasSubstr("'mpl'"), HasSubstr("did you mean 'mlp'?"), HasSubstr("gate_up")));
  EXPECT_THAT(error("mlp=fp9"), AllOf(HasSubstr("mlp=fp9"), HasSubstr("nf4")));
  EXPECT_THAT(error("mlp=dyn8"), HasSubstr("no activation codec"));
  EXPECT_THAT(error("rstd1=fp8"), HasSubstr("unknown name 'rstd1'"));
  EXPECT_THAT(error("y1=fp8"), HasSubstr("unknown name 'y1'")) << "no norm behind attention in this model";
  EXPECT_THAT(error("mlp"), HasSubstr("not KEY=VALUE"));
  EXPECT_THAT(error("layers=0-1"), HasSubstr("chooses nothing"));
  EXPECT_THAT(error("layers=0-5,mlp=fp8"), HasSubstr("must name layers 0 to 4"));
  EXPECT_THAT(error("layers=3-1,mlp=fp8"), HasSubstr("counts backwards"));
  EXPECT_THAT(error("layers=-1,mlp=fp8"), HasSubstr("must name layers"));
  EXPECT_THAT(error("layers=0x,mlp=fp8"), HasSubstr("must name layers"));
  EXPECT_THAT(error("layers=1,gate_up=none"), AllOf(HasSubstr("layer 1: gate_up"), HasSubstr("full")));
  for (const char* name : {"x1", "x2", "qkv"}) EXPECT_THAT(error(std::string(name) + "=none"), HasSubstr(name));
  EXPECT_THAT(error_of([] { policy_from_name("agok"); }), AllOf(HasSubstr("agok"), HasSubstr("paper")));
  EXPECT_THAT(error_of([] { recompute_from_name("some"); }), AllOf(HasSubstr("some"), HasSubstr("selective")));
}

// Bytes of n numbers at 4 or 8 bits in `pieces` equal pieces, each with a bf16 scale per 128.
double packed(double n, double bits, double pieces) {
  return n * bits / 8 + 2 * pieces * std::ceil(n / pieces / 128);
}

TEST(RecipeBytes, Llama3_8b) {
  const ModelConfig config = preset("llama3-8b");
  const LayerSpec spec(config);
  const double unit = 2 * 4096, statistics = 4 + 4 + 4 * 32;
  const double norms = 2 * packed(4096, 4, 1), mlp = packed(2 * 14336, 4, 16);
  const double bf16_attention = 2 * (32 + 2 * 8 + 32) * 128, int8_attention = packed((32 + 2 * 8 + 32) * 128, 8, 80);

  const double agoq = make_recipe(config, spec, Policy::Agoq, Recompute::None, "").bytes_per_token(spec, 3);
  EXPECT_EQ(agoq, norms + mlp + bf16_attention + statistics);
  EXPECT_NEAR(agoq / unit, 4.8, 0.05);

  const Recipe with_int8 = make_recipe(config, spec, Policy::Agoq, Recompute::None, "attention=int8");
  EXPECT_EQ(with_int8.bytes_per_token(spec, 3), norms + mlp + int8_attention + statistics);
  EXPECT_NEAR(with_int8.bytes_per_token(spec, 3) / unit, 3.6, 0.05);

  const Recipe bf16 = make_recipe(config, spec, Policy::Bf16, Recompute::None, "");
  EXPECT_EQ(bf16.bytes_per_token(spec, 0), 4 * unit + bf16_attention + 2 * (3 * 14336) + statistics);
  const Recipe full = make_recipe(config, spec, Policy::Bf16, Recompute::Full, "");
  EXPECT_EQ(full.bytes_per_token(spec, 0), unit);
}

// The paper's count for this model: 28 U Megatron-LM, 16.5 U COAT, 7.75 U its own.
TEST(RecipeBytes, Llama2_13b) {
  const ModelConfig config = preset("llama2-13b");
  const LayerSpec spec(config);
  const double unit = 2 * 5120, statistics = 4 + 4 + 4 * 40;
  const double kept = 2 * packed(5120, 4, 1) + packed(2 * 13824, 4, 16) + 2 * 4 * 5120 + statistics;
  const double agoq = make_recipe(config, spec, Policy::Agoq, Recompute::None, "").bytes_per_token(spec, 0);
  EXPECT_EQ(agoq, kept);
  EXPECT_NEAR(agoq / unit, 5.9, 0.05);
  const double paper = make_recipe(config, spec, Policy::Paper, Recompute::None, "").bytes_per_token(spec, 0);
  EXPECT_EQ(paper, kept + 2 * packed(5120, 4, 1) + packed(13824, 4, 8));
  EXPECT_NEAR(paper / unit, 7.1, 0.05);
}

TEST(RecipeJson, NamesEveryLayersCodecs) {
  const ModelConfig config = preset("demo");
  const LayerSpec spec(config);
  const Recipe recipe = make_recipe(config, spec, Policy::Agoq, Recompute::Selective, "layers=1,mlp=fp8");
  const auto json = nlohmann::json::parse(recipe.to_json(spec));
  EXPECT_EQ(json["recompute_granularity"], "selective");
  ASSERT_EQ(json["layers"].size(), static_cast<size_t>(config.layers));
  EXPECT_EQ(json["layers"][0]["gate_up"], "fp4");
  EXPECT_EQ(json["layers"][1]["gate_up"], "fp8");
  EXPECT_EQ(json["layers"][1]["o"], codec::name_of(Codec::None));
}

}  // namespace
}  // namespace agoq::model
