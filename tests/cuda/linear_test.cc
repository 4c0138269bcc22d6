#include "ops/linear/linear.h"

#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

#include "cuda/pair.h"
#include "ops/linear/gemm_algorithms.h"

namespace agoq::ops::test {
namespace {

struct Dims {
  int64_t m, n, k;
};
// The last is a layer's; the odd ones have rows that no vector access fits.
const std::vector<Dims> kDims = {{1, 1, 1}, {3, 5, 7}, {64, 48, 130}, {33, 257, 19}, {300, 4096, 1024}};

class CudaLinear : public CudaTest {
 protected:
  // A GPU of its own has a library of its own, which has chosen nothing yet.
  void on_fresh_gpu(const std::function<void(Gpu&, Context&)>& run) {
    Gpu gpu;
    Arena memory(gpu, size_t{128} << 20);
    Context ctx(memory, Device::Cuda, DType::BF16);
    run(gpu, ctx);
  }
  Tensor upload_to(Context& ctx, const Tensor& t) {
    const Tensor there = ctx.arena().allocate(Owner::Operands, t.dtype, t.shape);
    upload(ctx, t.data, there);
    return there;
  }
};

TEST_F(CudaLinear, EveryTransposeAndTypeWithBeta) {
  const std::vector<std::pair<DType, DType>> types = {
      {DType::BF16, DType::BF16}, {DType::BF16, DType::F32}, {DType::F32, DType::F32}};
  for (const Dims& d : kDims)
    for (const auto& [operands, result] : types)
      for (int transposes = 0; transposes < 4; ++transposes)
        for (const float beta : {0.0f, 1.0f}) {
          start(DType::F32, size_t{64} << 20);
          const bool ta = transposes & 1, tb = transposes & 2;
          const Twin a = random(ta ? Shape{d.k, d.m} : Shape{d.m, d.k}, 1, operands);
          const Twin b = random(tb ? Shape{d.n, d.k} : Shape{d.k, d.n}, 0.1, operands);
          const Twin y = random({d.m, d.n}, 1, result);
          gemm(c(), ta ? transposed(a.cpu) : a.cpu, tb ? b.cpu : transposed(b.cpu), y.cpu, beta);
          gemm(g(), ta ? transposed(a.gpu) : a.gpu, tb ? b.gpu : transposed(b.gpu), y.gpu, beta);
          expect_near_sum(y.cpu, y.gpu, "gemm");
        }
}

TEST_F(CudaLinear, Fp32IsNotTf32) {
  start(DType::F32);
  const Twin a = random({64, 512}), b = random({96, 512});
  expect_relative(linear(c(), a.cpu, b.cpu), linear(g(), a.gpu, b.gpu), 1e-6, "fp32");  // TF32: 3e-4
}

TEST_F(CudaLinear, BiasResidualAndAddition) {
  for (const DType compute : {DType::BF16, DType::F32})
    for (const Dims& d : kDims) {
      start(compute, size_t{128} << 20);
      const Twin x = random({d.m, d.k}), w = random({d.n, d.k}, 0.1), bias = random({d.n}),
                 residual = random({d.m, d.n});
      expect_near_sum(linear(c(), x.cpu, w.cpu, bias.cpu), linear(g(), x.gpu, w.gpu, bias.gpu), "bias");
      expect_near_sum(linear(c(), x.cpu, w.cpu, {}, residual.cpu), linear(g(), x.gpu, w.gpu, {}, residual.gpu),
                      "residual");
      expect_near_sum(linear(c(), x.cpu, w.cpu, bias.cpu, residual.cpu),
                      linear(g(), x.gpu, w.gpu, bias.gpu, residual.gpu), "both");
      expect_near(linear_dx(c(), residual.cpu, w.cpu), linear_dx(g(), residual.gpu, w.gpu), 2, "dx");
      linear_add(c(), x.cpu, w.cpu, residual.cpu);
      linear_add(g(), x.gpu, w.gpu, residual.gpu);
      expect_near_sum(residual.cpu, residual.gpu, "in place");
    }
}

TEST_F(CudaLinear, RowsThatBeginAnywhere) {
  for (const DType compute : {DType::BF16, DType::F32}) {
    start(compute);
    const Twin x = random({40, 33}), w = random({20, 33});
    for (const int64_t begin : {1, 2, 7})
      expect_near(linear(c(), x.cpu.row_range(begin, 39), w.cpu), linear(g(), x.gpu.row_range(begin, 39), w.gpu), 2);
  }
}

TEST_F(CudaLinear, SameBitsEveryTime) {
  const Twin x = random({512, 8192}), w = random({256, 8192});  // deep and small: would be cut along k
  const Tensor first = down(linear(g(), x.gpu, w.gpu));
  for (int i = 0; i < 5; ++i) expect_same_bits(first, linear(g(), x.gpu, w.gpu), "again");
}

TEST_F(CudaLinear, TunedChoicesAreKeptAndTakenOver) {
  const Tensor x = cpu->random({300, 1024}), w = cpu->random({512, 1024}, 0.1);
  const Tensor want = linear(c(), x, w), got = cpu->zeros(want.shape), again = cpu->zeros(want.shape);
  std::string choices;
  on_fresh_gpu([&](Gpu& gpu, Context& ctx) {
    const Tensor on_gpu = upload_to(ctx, x), weights = upload_to(ctx, w);
    {
      const GemmTuning tuning(gpu);
      linear(ctx, on_gpu, weights);
    }
    download(ctx, linear(ctx, on_gpu, weights), got.data);
    choices = gemm_algorithms(gpu);
  });
  expect_close_as(got, values(want), 2, "tuned");
  EXPECT_EQ(nlohmann::json::parse(choices).at("algorithms").size(), 1u);
  on_fresh_gpu([&](Gpu& gpu, Context& ctx) {
    EXPECT_EQ(restore_gemm_algorithms(gpu, choices), 1);
    EXPECT_EQ(gemm_algorithms(gpu), choices);
    download(ctx, linear(ctx, upload_to(ctx, x), upload_to(ctx, w)), again.data);
    EXPECT_EQ(gemm_algorithms(gpu), choices) << "another algorithm was chosen";
  });
  EXPECT_EQ(values(got), values(again));
}

// A kernel of either kind that is taken over is not chosen anew, and gives the same bits.
TEST_F(CudaLinear, ChoicesWithoutAWorkspaceAreTakenOver) {
  const Tensor x = cpu->random({256, 64}), w = cpu->random({128, 64}, 0.1);
  const auto product = [&](const std::string& given) {
    std::pair<Values, std::string> got;
    on_fresh_gpu([&](Gpu& gpu, Context& ctx) {
      EXPECT_EQ(given.empty() ? 1 : restore_gemm_algorithms(gpu, given), 1);
      const Tensor y = cpu->zeros({256, 128});
      download(ctx, linear(ctx, upload_to(ctx, x), upload_to(ctx, w)), y.data);
      got = {values(y), gemm_algorithms(gpu)};
    });
    return got;
  };
  const auto [first, choices] = product("");
  nlohmann::json without = nlohmann::json::parse(choices);  // not cut along k, so its workspace is for the count alone
  without["algorithms"][0]["workspace"] = false;
  const auto [second, kept] = product(without.dump());
  EXPECT_EQ(nlohmann::json::parse(kept), without) << "another algorithm was chosen";
  EXPECT_EQ(first, second);
}

TEST_F(CudaLinear, ChoicesOfOtherHardwareAreIgnoredAndDamageIsAnError) {
  on_fresh_gpu([&](Gpu& gpu, Context& ctx) {
    linear(ctx, upload_to(ctx, cpu->random({8, 16})), upload_to(ctx, cpu->random({24, 16})));
    nlohmann::json choices = nlohmann::json::parse(gemm_algorithms(gpu));
    choices["gpu"] = "another";
    EXPECT_EQ(restore_gemm_algorithms(gpu, choices.dump()), 0);
    choices["gpu"] = gpu.name();
    EXPECT_EQ(restore_gemm_algorithms(gpu, choices.dump()), 0) << "what is chosen already stays";
    nlohmann::json damaged = choices;
    damaged["algorithms"][0]["workspace"] = "none";
    EXPECT_THROW(restore_gemm_algorithms(gpu, damaged.dump()), Error);
    choices["algorithms"][0]["algorithm"] = "12";
    EXPECT_THROW(restore_gemm_algorithms(gpu, choices.dump()), Error);
    EXPECT_THROW(restore_gemm_algorithms(gpu, "{"), Error);
  });
}

// Two ranks that timed the same shape and came to different kernels, and a shape that only the second one has.
TEST_F(CudaLinear, RanksAgreeOnTheFirstRanksChoices) {
  const auto choices_for = [&](Gpu& gpu, Context& ctx, std::initializer_list<int64_t> rows) {
    for (const int64_t n : rows)
      linear(ctx, upload_to(ctx, cpu->random({n, 64})), upload_to(ctx, cpu->random({24, 64})));
    return nlohmann::json::parse(gemm_algorithms(gpu));
  };
  nlohmann::json first, second;
  on_fresh_gpu([&](Gpu& gpu, Context& ctx) { first = choices_for(gpu, ctx, {8}); });
  on_fresh_gpu([&](Gpu& gpu, Context& ctx) { second = choices_for(gpu, ctx, {8, 512}); });
  for (nlohmann::json& entry : second["algorithms"])
    if (entry["m"] == first["algorithms"][0]["m"]) entry["algorithm"] = second["algorithms"].back()["algorithm"];
  for (const bool is_rank0 : {true, false})
    on_fresh_gpu([&](Gpu& gpu, Context& ctx) {
      choices_for(gpu, ctx, {8});  // this rank's own, in use already
      agree_on_gemm_algorithms(
          gpu, is_rank0 ? std::vector{first.dump(), second.dump()} : std::vector{second.dump(), first.dump()});
      const nlohmann::json agreed = nlohmann::json::parse(gemm_algorithms(gpu));
      ASSERT_EQ(agreed["algorithms"].size(), 2u);
      for (const nlohmann::json& entry : is_rank0 ? first["algorithms"] : second["algorithms"])
        EXPECT_THAT(agreed["algorithms"], ::testing::Contains(entry));
    });
}

TEST_F(CudaLinear, TypesThatTheLibraryLacksAreRefused) {
  const Twin x = random({4, 8}, 1, DType::F32), w = random({4, 8}, 1, DType::BF16), y = zeros({4, 4}, DType::F32);
  EXPECT_THROW(gemm(g(), x.gpu, w.gpu, y.gpu), Error);
  const Twin x2 = random({4, 8});
  EXPECT_THROW(linear(g(), x2.gpu, w.gpu, zeros({4}, DType::F32).gpu), Error);
}

TEST_F(CudaLinear, DryRunPlansTheSamePeak) {
  expect_planned_peak([](Context& ctx) {
    const Tensor x = ctx.arena().allocate(Owner::Operands, DType::BF16, {33, 64});
    const Tensor w = ctx.arena().allocate(Owner::Operands, DType::BF16, {96, 64});
    linear_dx(ctx, linear(ctx, x, w), w);
  });
}

}  // namespace
}  // namespace agoq::ops::test
