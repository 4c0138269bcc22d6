// What bench/gradient_error measures with: products by name, and outliers that leave the function as it is.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "base/error_of.h"
#include "gradient_error/experiment.h"
#include "train/data_files.h"

namespace agoq::bench {
namespace {

using model::Param;
using ops::Granularity;
using ops::OperandFormat;
using testing::HasSubstr;

ops::Fp8Recipe recipe_of(const std::string& name) {
  return products_from_name(name, model::preset("demo")).fp8.recipe.value();
}

TEST(GradientErrorProducts, NamesAreThoseOfSettings) {
  const OperandFormat row{DType::E4M3, Granularity::Row}, tensor{DType::E4M3, Granularity::Tensor};
  EXPECT_EQ(recipe_of("rowwise").x, row);
  EXPECT_EQ(recipe_of("tensorwise").x, tensor);
  EXPECT_EQ(recipe_of("blockwise").w, (OperandFormat{DType::E4M3, Granularity::Block128x128}));
  EXPECT_EQ(recipe_of("hybrid").x, row);
  EXPECT_EQ(recipe_of("hybrid").dy, (OperandFormat{DType::E5M2, Granularity::Row}));
  EXPECT_FALSE(products_from_name("exact", model::preset("demo")).fp8.recipe.has_value());
  EXPECT_EQ(products_from_name("bf16", model::preset("demo")).compute, DType::BF16);
}

TEST(GradientErrorProducts, DwMayBeMadeInAnotherWay) {
  for (const auto& [name, granularity] : {std::pair{"hybrid/tensorwise", Granularity::Tensor},
                                          {"hybrid/rowwise", Granularity::Row},
                                          {"hybrid/blockwise", Granularity::Block1x128}}) {
    const ops::Fp8Recipe recipe = recipe_of(name), whole = recipe_of("hybrid");
    EXPECT_EQ(recipe.dw_dy, (OperandFormat{DType::E5M2, granularity})) << name;
    EXPECT_EQ(recipe.dw_x, (OperandFormat{DType::E4M3, granularity})) << name;
    EXPECT_EQ(recipe.x, whole.x);
    EXPECT_EQ(recipe.dy, whole.dy);
  }
  EXPECT_FALSE(recipe_of("rowwise/bf16").dw_in_fp8());
}

TEST(GradientErrorProducts, OtherNamesAreRefused) {
  EXPECT_THAT(error_of([] { recipe_of("delayed"); }), HasSubstr("delayed"));
  EXPECT_THAT(error_of([] { recipe_of("rowwise/fp8"); }), HasSubstr("'fp8'"));
  EXPECT_THAT(error_of([] { recipe_of("rowwise/bf16/bf16"); }), HasSubstr("more than one"));
}

// A tiny model and 8 sequences of tokens for it.
class GradientError : public testing::Test {
 protected:
  GradientError() {
    std::vector<int64_t> tokens;
    for (int64_t i = 0; i < 8 * kSequence + 1; ++i) tokens.push_back(i * i % 97);
    write_plainly(scratch_.file("tokens.bin"), train::raw_tokens<uint16_t>(tokens));
    config_.seq_length = kSequence;
    config_.micro_batch_size = 4;
  }
  std::unique_ptr<Experiment> experiment() const {
    return std::make_unique<Experiment>(AGOQ_GOLDENS "/llama_gqa/model", config_, scratch_.file("tokens.bin"), 2);
  }
  static double error(const GradientVectors& got, const GradientVectors& want) {
    double off = 0, size = 0;
    for (size_t p = 0; p < want.size(); ++p)
      for (size_t i = 0; i < want[p].size(); ++i)
        off += std::pow(double{got[p][i]} - want[p][i], 2), size += std::pow(double{want[p][i]}, 2);
    return std::sqrt(off / size);
  }

  static constexpr int64_t kSequence = 32;
  train::TrainConfig config_;

 private:
  ScratchFolder scratch_;
};

TEST_F(GradientError, ChannelsAreMeasuredAsTheModelComputesThem) {
  const auto e = experiment();
  const ModelChannels channels = e->channels();
  ASSERT_EQ(static_cast<int64_t>(channels.layers.size()), e->model().layers);
  const LayerChannels& first = channels.layers.front();
  // The first residual stream is the embedding; what leaves a norm is x / rms(x) · w, and w is near 1 here.
  EXPECT_EQ(static_cast<int64_t>(first.x1.size()), e->model().hidden_size);
  EXPECT_EQ(static_cast<int64_t>(first.h.size()), e->model().ffn_size);
  EXPECT_GT(root_mean_square(first.x1), 0);
  EXPECT_NEAR(root_mean_square(first.n1), 1, 0.2);
  EXPECT_NEAR(root_mean_square(first.n2), 1, 0.2);
}

TEST_F(GradientError, SizesOfChannelsByHand) {
  const ChannelSizes sizes = {3, 40, 4, 0};
  EXPECT_EQ(largest(sizes, 2), (std::vector<int64_t>{1, 2}));
  EXPECT_DOUBLE_EQ(size_without(sizes, {1, 3}), std::sqrt(12.5));
  EXPECT_DOUBLE_EQ(times_larger({3, 40, 4}, {1}), 40 / std::sqrt(12.5));
}

TEST_F(GradientError, OutliersLeaveLossAndGradientAsTheyAre) {
  const auto plain = experiment(), e = experiment();
  const ModelChannels before = e->channels();
  e->rescale(unit_outliers(e->weights().run_spec(), before, 1000));
  e->rescale(norm_outliers(e->weights().run_spec(), before, 1000));
  EXPECT_NEAR(e->loss(), plain->loss(), 1e-4 * plain->loss());
  EXPECT_LT(error(e->gradients({}), plain->gradients({})), 1e-4);

  const ModelChannels after = e->channels();
  const std::vector<int64_t> three = largest(before.final_x, kOutlierChannels);
  for (const LayerChannels& layer : after.layers) {
    EXPECT_NEAR(times_larger(layer.h, largest(layer.h, 1)), 1000, 1);
    EXPECT_NEAR(times_larger(layer.n1, three), 1000, 1);
    EXPECT_NEAR(times_larger(layer.n2, three), 1000, 1);
  }
}

// The norms divide by the three channels alone, and their weights make up for it.
TEST_F(GradientError, ResidualOutliersLeaveNormsAsLargeAsBefore) {
  const auto e = experiment();
  const ModelChannels before = e->channels();
  e->rescale(residual_outliers(e->weights().run_spec(), before, 1000));
  const ModelChannels after = e->channels();
  const std::vector<int64_t> three = largest(before.final_x, kOutlierChannels);
  const LayerChannels &was = before.layers.front(), &is = after.layers.front();
  EXPECT_GE(times_larger(is.x1, three), 999);
  EXPECT_NEAR(size_without(is.x1, three), size_without(was.x1, three), 1e-4 * size_without(was.x1, three));
  EXPECT_LT(times_larger(is.n1, three), 10);
  EXPECT_NEAR(std::log(root_mean_square(is.n1) / root_mean_square(was.n1)), 0, 1);
}

TEST_F(GradientError, ProductsErrAsTheyAreMade) {
  const auto e = experiment();
  const GradientVectors exact = e->gradients({});
  const auto error_by = [&](const std::string& name) {
    return error(e->gradients({model::Policy::Fp32, "", products_from_name(name, e->model())}), exact);
  };
  EXPECT_EQ(error_by("exact"), 0);
  const double bf16 = error_by("bf16"), rowwise = error_by("rowwise");
  EXPECT_GT(bf16, 0);
  EXPECT_GT(rowwise, 4 * bf16);
  EXPECT_LT(error_by("rowwise/bf16"), rowwise);
}

}  // namespace
}  // namespace agoq::bench
