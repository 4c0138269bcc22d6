#include <string_view>

#include "bench/fp8_product.h"

namespace agoq::bench {
namespace {

using model::Param;
using ops::Accumulation;
using ops::Granularity;

// How the operands of a product are scaled, and its sums made.
struct Fp8Way {
  std::string_view name;
  Granularity a, b;
  Accumulation accumulation;
};
constexpr Fp8Way kFast{"row, fast sums", Granularity::Row, Granularity::Row, Accumulation::Fast};
constexpr Fp8Way kRow{"row", Granularity::Row, Granularity::Row, Accumulation::Fp32};
constexpr Fp8Way kTensor{"tensor", Granularity::Tensor, Granularity::Tensor, Accumulation::Fp32};
constexpr Fp8Way kBlocks{"1x128 by 128x128", Granularity::Block1x128, Granularity::Block128x128, Accumulation::Fp32};
constexpr Fp8Way kTokenBlocks{"1x128 by 1x128", Granularity::Block1x128, Granularity::Block1x128, Accumulation::Fp32};

Fp8Product product(int64_t m, int64_t n, int64_t k, const Fp8Way& way) {
  return {m, n, k, {DType::E4M3, way.a}, {DType::E4M3, way.b}, way.accumulation};
}

}  // namespace

std::vector<Op> fp8_ops(const parallel::RunSpec& run_spec) {
  const model::LayerSpec spec(run_spec.model);
  const int64_t tokens = run_spec.tokens();
  std::vector<Op> all;
  const auto add = [&](const std::string& name, auto make) { all.push_back({name, OpPhase::Alone, make}); };
  for (const Param p : {Param::Qkv, Param::Out, Param::GateUp, Param::Down}) {
    const auto& w = spec[p];
    const auto add_product = [&](const char* part, const Fp8Way& way, int64_t m, int64_t n, int64_t k) {
      add(fmt::format("{} {}, {}", w.name, part, way.name),
          [=](Workbench& b) { return prepare(b, product(m, n, k, way)); });
    };
    const auto add_casts = [&](const std::string& what, int64_t rows, int64_t cols, Granularity granularity) {
      for (const auto& [major, turned] : {std::pair{ops::Major::K, ""}, {ops::Major::MN, " transposed"}})
        add(fmt::format("{}{}, {}", what, turned, name_of(granularity)), [=, major = major](Workbench& b) {
          return prepare_cast(b, rows, cols, major, {DType::E4M3, granularity});
        });
    };
    for (const Fp8Way& way : {kFast, kRow, kTensor, kBlocks}) {
      add_product("forward", way, tokens, w.rows, w.cols);
      add_product("dx", way, tokens, w.cols, w.rows);
    }
    for (const Fp8Way& way : {kFast, kRow, kTensor, kTokenBlocks}) add_product("dw", way, w.rows, w.cols, tokens);
    for (const Granularity granularity : {Granularity::Row, Granularity::Block1x128})
      add_casts(fmt::format("{}'s dy", w.name), tokens, w.rows, granularity);
    for (const Granularity granularity : {Granularity::Row, Granularity::Block128x128})
      add_casts(std::string(w.name), w.rows, w.cols, granularity);
  }
  return all;
}

}  // namespace agoq::bench
