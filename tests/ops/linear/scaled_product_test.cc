// Products of 8-bit floats: against sums in double, and against PyTorch (tools/make_product_goldens.py).
#include <gmock/gmock.h>

#include <filesystem>

#include "base/error_of.h"
#include "base/safetensors.h"
#include "device/transfer.h"
#include "ops/linear/fp8.h"
#include "ops/linear/linear.h"
#include "ops/support.h"

namespace agoq::ops::test {
namespace {

// Half a step between neighbours, relative.
constexpr double kFp32Step = 0x1p-24, kBf16Step = 0x1p-8;

double number(const Operand& x, int64_t row, int64_t i) {
  const int64_t at = x.major == Major::K ? row * x.k() + i : i * x.rows() + row;
  const float code = x.dtype() == DType::E4M3 ? to_float(x.data.as<E4M3>()[at]) : to_float(x.data.as<E5M2>()[at]);
  return double{code} * x.scale.as<float>()[scale_index(x, row, i)];
}

struct Sums {
  Values values, magnitudes;  // Σ a·b and Σ |a·b|, [m, n]
};
Sums exact_product(const Operand& a, const Operand& b) {
  Sums sums{Values(static_cast<size_t>(a.rows() * b.rows())), {}};
  sums.magnitudes = sums.values;
  for (int64_t i = 0; i < a.rows(); ++i)
    for (int64_t j = 0; j < b.rows(); ++j)
      for (int64_t p = 0; p < a.k(); ++p) {
        const double term = number(a, i, p) * number(b, j, p);
        sums.values[static_cast<size_t>(i * b.rows() + j)] += term;
        sums.magnitudes[static_cast<size_t>(i * b.rows() + j)] += std::abs(term);
      }
  return sums;
}

// fp32 sums of k terms and one rounding: k steps of the terms' sizes, at most.
void expect_product(const Tensor& got, const Sums& want, int64_t k) {
  const double rounding = got.dtype == DType::BF16 ? kBf16Step : kFp32Step;
  for (int64_t i = 0; i < got.count(); ++i) {
    const auto at = static_cast<size_t>(i);
    ASSERT_NEAR(get(got, i), want.values[at],
                rounding * std::abs(want.values[at]) + static_cast<double>(k + 3) * kFp32Step * want.magnitudes[at])
        << i;
  }
}

TEST(ScaledProduct, IsTheProductOfTheDecodedNumbers) {
  for (DType output : {DType::F32, DType::BF16})
    for (Granularity granularity :
         {Granularity::Tensor, Granularity::Row, Granularity::Block1x128, Granularity::Block128x128})
      for (DType second : {DType::E4M3, DType::E5M2}) {
        TestContext t(output);
        const Operand a = to_fp8(t.ctx, t.random({70, 150}), {DType::E4M3, granularity});
        const Operand b = to_fp8_transposed(t.ctx, t.random({150, 30}, 0.1), {second, granularity});
        expect_product(linear(t.ctx, a, b), exact_product(a, b), a.k());
      }
}

TEST(ScaledProduct, BeyondATileWithBiasAndResidual) {
  TestContext t(DType::BF16);
  const Operand x = to_fp8(t.ctx, t.random({1030, 2051}), {DType::E4M3, Granularity::Block1x128});
  const Operand w = to_fp8(t.ctx, t.random({24, 2051}, 0.1), {DType::E4M3, Granularity::Block128x128});
  const Tensor bias = t.random({24}), residual = t.random({1030, 24});
  Sums want = exact_product(x, w);
  for (size_t i = 0; i < want.values.size(); ++i) {
    const double b = get(bias, static_cast<int64_t>(i) % 24), r = get(residual, static_cast<int64_t>(i));
    want.values[i] += b + r;
    want.magnitudes[i] += std::abs(b) + std::abs(r);
  }
  expect_product(linear(t.ctx, x, w, bias, residual), want, x.k());
}

// Hopper's fp8 products take no such operand, but the type of what is multiplied says nothing of how it lies.
TEST(ScaledProduct, EitherMajor) {
  TestContext t;
  const Operand a = to_fp8(t.ctx, t.random({16, 32}), {DType::E4M3, Granularity::Tensor});
  Operand turned = a;  // the same bytes read as [k = 16, rows = 32]
  turned.major = Major::MN;
  const Operand b = to_fp8(t.ctx, t.random({48, 16}), {DType::E4M3, Granularity::Row});
  const Tensor c = t.zeros({32, 48});
  gemm(t.ctx, turned, b, c);
  expect_product(c, exact_product(turned, b), 16);
}

TEST(ScaledProduct, DamageReachesTheResult) {
  TestContext t;
  const Tensor x = t.random({4, 32});
  set(x, 2 * 32 + 5, std::nan(""));
  const Tensor y = linear(t.ctx, to_fp8(t.ctx, x, {}), to_fp8(t.ctx, t.random({3, 32}), {}));
  for (int64_t i = 0; i < y.count(); ++i) EXPECT_EQ(std::isnan(get(y, i)), i / 3 == 2) << i;
}

TEST(ScaledProduct, ErrorsSayWhatFits) {
  TestContext t;
  const Operand x = to_fp8(t.ctx, t.zeros({4, 32}), {});
  EXPECT_THAT(error_of([&] { linear(t.ctx, x, t.zeros({3, 32})); }), testing::HasSubstr("fp8_e4m3 by fp32"));
  EXPECT_THAT(error_of([&] {
                linear(t.ctx, x, to_fp8(t.ctx, t.zeros({3, 48}), {}));
              }),
              testing::HasSubstr("shapes do not fit"));
}

TEST(ScaledProduct, MetaCountsTheSameBytes) {
  expect_same_peak(DType::BF16, [](TestContext& t) {
    linear(t.ctx, to_fp8(t.ctx, t.random({1100, 48}), {}), to_fp8(t.ctx, t.random({40, 48}), {}));
  });
}

// As on a GPU, whose library asks for it.
TEST(ScaledProduct, ScalesThatAreNotAlignedAreAnError) {
  TestContext t;
  const Operand a = to_fp8(t.ctx, t.random({8, 32}), {DType::E4M3, Granularity::Tensor});
  Operand b = to_fp8(t.ctx, t.random({4, 32}), {DType::E4M3, Granularity::Tensor});
  const Tensor scales = t.zeros({8});
  b.scale = scales.view({8, 1}).row_range(4, 5).view({1});
  linear(t.ctx, a, b);
  b.scale = scales.view({8, 1}).row_range(5, 6).view({1});
  EXPECT_THAT(error_of([&] { linear(t.ctx, a, b); }), testing::HasSubstr("multiple of 16 bytes"));
}

// --- PyTorch --------------------------------------------------------------------------------------------------------

const SafetensorsFile& goldens() {
  static const SafetensorsFile file(
      (std::filesystem::path(AGOQ_GOLDENS).parent_path() / "ops/linear/scaled_products.safetensors").string());
  return file;
}
Tensor golden(const std::string& name) {
  return goldens().tensor(goldens().at(name));
}

TEST(ScaledProductGolden, EveryCodeHasPyTorchsValue) {
  const Tensor e4m3 = golden("e4m3"), e5m2 = golden("e5m2");
  for (int64_t code = 0; code < 256; ++code) {
    const auto bits = static_cast<uint8_t>(code);
    for (const auto& [ours, theirs] :
         {std::pair{to_float(E4M3{bits}), e4m3.as<float>()[code]}, {to_float(E5M2{bits}), e5m2.as<float>()[code]}})
      EXPECT_TRUE(ours == theirs || (std::isnan(ours) && std::isnan(theirs))) << code;
  }
}

// "e4m3_1x128" -> the operand's type and granularity.
Operand golden_operand(TestContext& t, const std::string& product, const std::string& which,
                       const std::string& description) {
  Tensor codes = golden(product + "." + which);
  codes.dtype = description.starts_with("e4m3") ? DType::E4M3 : DType::E5M2;
  for (Granularity granularity :
       {Granularity::Tensor, Granularity::Row, Granularity::Block1x128, Granularity::Block128x128})
    if (description.substr(5) == name_of(granularity)) {
      const Tensor stored = golden(product + "." + which + "_scale"), scale = t.zeros(stored.shape, stored.dtype);
      agoq::copy(t.ctx, stored, scale);  // to where scales may lie
      return {codes, scale, granularity};
    }
  fail("no granularity in '{}'", description);
}

TEST(ScaledProductGolden, ProductsAreThoseOfPyTorch) {
  int products = 0;
  for (const TensorEntry& entry : goldens().entries()) {
    if (!entry.name.ends_with(".c")) continue;
    SCOPED_TRACE(entry.name);
    const std::string name = entry.name.substr(0, entry.name.size() - 2);
    const size_t point = name.find('.');
    TestContext t;
    const Operand a = golden_operand(t, name, "a", name.substr(0, point)),
                  b = golden_operand(t, name, "b", name.substr(point + 1));
    const Tensor c = linear(t.ctx, a, b);
    const Sums exact = exact_product(a, b);
    expect_product(c, exact, a.k());
    // PyTorch sums in fp32 on a CPU. In the tensor cores of a GPU 128 terms are four instructions of 32, each of which
    // cuts off what is below 2^-13 of its largest term; the result is rounded to bf16.
    const bool gpu = a.granularity == Granularity::Block1x128 || b.granularity == Granularity::Block1x128;
    const double of_sum = gpu ? 4 * 0x1p-13 : 2 * static_cast<double>(a.k()) * kFp32Step;
    const double rounding = gpu ? kBf16Step : kFp32Step;
    const Tensor theirs = golden(entry.name);
    for (int64_t i = 0; i < c.count(); ++i) {
      const auto at = static_cast<size_t>(i);
      ASSERT_NEAR(get(c, i), get(theirs, i), rounding * std::abs(exact.values[at]) + of_sum * exact.magnitudes[at])
          << i;
    }
    ++products;
  }
  EXPECT_EQ(products, 9) << "six scaled by tensor and row, three in blocks";
}

}  // namespace
}  // namespace agoq::ops::test
