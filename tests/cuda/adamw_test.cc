#include "ops/optimizer/adamw.h"

#include "cuda/pair.h"
#include "ops/gradient/gradient_norm.h"

namespace agoq::ops::test {
namespace {

using codec::Codec;
using codec::RowBlocks;

struct Formats {
  std::string weight;  // split, fp32 or both
  Codec grad, m, v;
};
const Formats kDefault = {"split", Codec::Int8, Codec::Dyn8, Codec::Dyn8Unsigned};

// Parameters on both devices, updated by the same gradients.
class AdamWCuda : public CudaTest {
 protected:
  void add(const Formats& f, int64_t rows, RowBlocks row, const codec::GlobalOffset& global_offset = {}) {
    const Tensor first = cpu->random({rows, row.cols}, 0.3, DType::F32);
    Weight host{cpu->zeros(first.shape, f.weight == "fp32" ? DType::F32 : DType::BF16), {}, {}};
    if (f.weight == "split") host.correction = cpu->zeros(first.shape, DType::I16);
    if (f.weight == "both") host.master = cpu->zeros(first.shape, DType::F32);
    store_fp32(c(), host, first.as<float>());
    const auto up = [&](const Tensor& t) { return t ? twin(t).gpu : Tensor{}; };
    const QuantizedTwin grad = kept(f.grad, rows, row), m = kept(f.m, rows, row), v = kept(f.v, rows, row);
    const auto tensor = static_cast<uint32_t>(host_.size());
    host_.push_back({host, {grad.cpu}, m.cpu, v.cpu, tensor, tensor % 2 == 0, global_offset});
    gpu_.push_back({{up(host.value), up(host.correction), up(host.master)},
                    {grad.gpu},
                    m.gpu,
                    v.gpu,
                    tensor,
                    tensor % 2 == 0,
                    global_offset});
  }

  void allocate() {
    squares_ = zeros({static_cast<int64_t>(host_.size())}, DType::F32);
    scalars_ = zeros(update_scalars_shape(), DType::U8);
  }

  // New gradients of sizes from 1e-5 to 1.
  void draw_gradients() {
    constexpr double kSizes[] = {1, 1e-1, 1e-2, 1e-3, 1e-4};
    std::normal_distribution<double> normal;
    for (size_t i = 0; i < host_.size(); ++i) {
      const codec::Quantized& g = host_[i].grad.first;
      Scope scope(c());
      const Tensor x = c().empty(DType::F32, {g.rows, g.row.cols});
      for (int64_t j = 0; j < x.count(); ++j) set(x, j, normal(cpu->generator) * kSizes[j % 5]);
      codec::encode(c(), x, g);
      copy_up({g, gpu_[i].grad.first});
    }
  }
  static void update(const Context& ctx, const std::vector<AdamWState>& states, const Tensor& squares,
                     const Tensor& scalars, const AdamWConfig& config) {
    std::vector<GradientSum> grads;
    for (const AdamWState& s : states) grads.push_back(s.grad);
    squared_norms(ctx, grads, squares);
    decide_update(ctx, squares, kLr, config, scalars);
    adamw(ctx, states, kLr, config, scalars);
  }
  void update_both(const AdamWConfig& config) {
    update(c(), host_, squares_.cpu, scalars_.cpu, config);
    update(g(), gpu_, squares_.gpu, scalars_.gpu, config);
  }
  void train(int steps, const AdamWConfig& config) {
    allocate();
    for (int step = 0; step < steps; ++step) {
      c().random.step = g().random.step = static_cast<uint32_t>(step);
      draw_gradients();
      update_both(config);
    }
  }

  UpdateScalars scalars(const Tensor& on_host) const {
    UpdateScalars s;
    std::memcpy(&s, on_host.data, sizeof s);
    return s;
  }
  std::vector<float> weights(const Weight& w) const {
    std::vector<float> all(static_cast<size_t>(w.value.count()));
    load_fp32(c(), w, all.data());
    return all;
  }
  Weight down_weight(const Weight& w) {
    return {down(w.value), w.correction ? down(w.correction) : Tensor{}, w.master ? down(w.master) : Tensor{}};
  }

  // `ulps` of the weight and of an update, for each step.
  void expect_same_weights(int steps, double ulps) {
    for (size_t i = 0; i < host_.size(); ++i) {
      const std::vector<float> want = weights(host_[i].weight), got = weights(down_weight(gpu_[i].weight));
      size_t worst = 0;
      double excess = -1;
      for (size_t j = 0; j < want.size(); ++j) {
        const double allowed = ulps * steps * 0x1p-23 * (std::abs(want[j]) + 10 * kLr);
        const double over = std::abs(double{got[j]} - want[j]) - allowed;
        if (!(over <= excess)) worst = j, excess = over;
      }
      EXPECT_LE(excess, 0) << "tensor " << i << " element " << worst << ": " << got[worst] << ", not " << want[worst];
    }
  }
  // Codes and scales of a moment of all tensors: alike but for a share of them, and codes there by one.
  void expect_same_codes(codec::Quantized AdamWState::*moment, double share) {
    double codes = 0, scales = 0, different_codes = 0, different_scales = 0;
    for (size_t i = 0; i < host_.size(); ++i) {
      const codec::Quantized &want = host_[i].*moment, got = down(gpu_[i].*moment);
      for (int64_t j = 0; j < want.codes.count(); ++j) {
        const int by = std::abs(ordered(want, j) - ordered(got, j));
        different_codes += by != 0;
        ASSERT_LE(by, 1) << "tensor " << i << ", element " << j;
      }
      for (int64_t j = 0; j < want.scales.count(); ++j)
        different_scales += want.scales.as<Bf16>()[j].bits != got.scales.as<Bf16>()[j].bits;
      codes += static_cast<double>(want.codes.count());
      scales += static_cast<double>(want.scales.count());
    }
    EXPECT_LE(different_codes, share * codes);
    EXPECT_LE(different_scales, share * scales);
  }
  // A code as an integer in the order of values.
  static int ordered(const codec::Quantized& q, int64_t i) {
    const int code = q.codes.raw()[i];
    return q.codec == Codec::Dyn8 && code > 127 ? -(code & 127) : code;
  }

  static constexpr double kLr = 1e-3;
  std::vector<AdamWState> host_, gpu_;
  Twin squares_, scalars_;
};

// Whole blocks in even and odd numbers, short blocks, segments that do not begin at multiples of 8, single numbers.
const std::vector<std::pair<int64_t, RowBlocks>> kShapes = {{300, RowBlocks(4096)},      {9, RowBlocks(1376 * 8, 1376)},
                                                            {5, RowBlocks(999, 333)},    {1, RowBlocks(4096)},
                                                            {1, RowBlocks(1)},           {3, RowBlocks(129)},
                                                            {130, RowBlocks(1024, 128)}, {1, RowBlocks(5120)},
                                                            {3, RowBlocks(384)}};

TEST_F(AdamWCuda, Fp32MomentsGiveTheSameWeights) {
  for (const std::string weight : {"split", "fp32", "both"})
    for (const auto& [rows, row] : kShapes) add({weight, Codec::Fp32, Codec::Fp32, Codec::Fp32}, rows, row);
  for (const Codec grad : {Codec::Int8, Codec::Fp8, Codec::Bf16})
    for (const auto& [rows, row] : kShapes) add({"split", grad, Codec::Fp32, Codec::Fp32}, rows, row);
  train(4, {});
  expect_same_weights(4, 4);
}

TEST_F(AdamWCuda, PartsOfATensorDrawAsOnTheCpu) {
  add(kDefault, 12, RowBlocks(384), {.first_row = 3, .begin = {0, 5, 9}, .shift = {8, 40, 70}});
  add(kDefault, 7, RowBlocks(600, 300), {.first_row = 2, .shift = {1}, .first_block = 3, .blocks_per_row = 24});
  train(4, {.clip_grad = 0});
  for (size_t i = 0; i < host_.size(); ++i) expect_same_bits(host_[i].m, gpu_[i].m, "m is exact");
}

TEST_F(AdamWCuda, EightBitMomentsAreThoseOfTheCpu) {
  for (const Codec grad : {Codec::Int8, Codec::Fp8, Codec::Bf16, Codec::Fp32})
    for (const auto& [rows, row] : kShapes) add({"split", grad, Codec::Dyn8, Codec::Dyn8Unsigned}, rows, row);
  train(4, {.clip_grad = 0});
  for (size_t i = 0; i < host_.size(); ++i) expect_same_bits(host_[i].m, gpu_[i].m, "m is exact");
  expect_same_codes(&AdamWState::v, 1e-3);
}

// Whose CTAs work in several groups.
TEST_F(AdamWCuda, TensorOfManyTiles) {
  add(kDefault, 701, RowBlocks(4096));
  train(1, {.clip_grad = 0});
  expect_same_bits(host_[0].m, gpu_[0].m, "m is exact");
  expect_same_codes(&AdamWState::v, 1e-3);
  expect_same_weights(1, 4);
}

TEST_F(AdamWCuda, OneMomentInEightBits) {
  for (const auto& [rows, row] : kShapes) add({"both", Codec::Int8, Codec::Dyn8, Codec::Fp32}, rows, row);
  train(3, {.clip_grad = 0});
  for (size_t i = 0; i < host_.size(); ++i) {
    expect_same_bits(host_[i].m, gpu_[i].m, "m in 8 bits");
    expect_same_bits(host_[i].v, gpu_[i].v, "v in fp32");
  }
  host_.clear(), gpu_.clear();
  for (const auto& [rows, row] : kShapes) add({"split", Codec::Int8, Codec::Fp32, Codec::Dyn8Unsigned}, rows, row);
  train(3, {.clip_grad = 0});
  for (size_t i = 0; i < host_.size(); ++i) expect_same_bits(host_[i].m, gpu_[i].m, "m in fp32");
  expect_same_codes(&AdamWState::v, 1e-3);
}

TEST_F(AdamWCuda, ClipsByTheSameNorm) {
  for (const auto& [rows, row] : kShapes) add(kDefault, rows, row);
  train(3, {.clip_grad = 0.01});
  const UpdateScalars want = scalars(scalars_.cpu), got = scalars(down(scalars_.gpu));
  EXPECT_EQ(got.updates, 3);
  EXPECT_EQ(got.non_finite, 0u);
  EXPECT_NEAR(got.grad_norm, want.grad_norm, want.grad_norm * 1e-6);
  EXPECT_LT(want.gradient_scale, 0.5f);
  EXPECT_NEAR(got.gradient_scale, want.gradient_scale, want.gradient_scale * 1e-6);
  EXPECT_FLOAT_EQ(got.step_size, want.step_size);
  EXPECT_FLOAT_EQ(got.root_correction, want.root_correction);
  expect_same_codes(&AdamWState::m, 1e-3);
  expect_same_codes(&AdamWState::v, 1e-3);
}

TEST_F(AdamWCuda, BrokenGradientSkipsTheUpdate) {
  for (const auto& [rows, row] : kShapes) add(kDefault, rows, row);
  train(1, {});
  draw_gradients();
  std::vector<Weight> before;
  std::vector<codec::Quantized> m;
  for (const AdamWState& s : gpu_) before.push_back(down_weight(s.weight)), m.push_back(down(s.m));
  for (const size_t broken : {size_t{2}, size_t{5}}) {
    host_[broken].grad.first.row_scales(0)[0] = Bf16{0x7fc0};
    copy_up({host_[broken].grad.first, gpu_[broken].grad.first});
  }
  update_both({});
  const UpdateScalars s = scalars(down(scalars_.gpu));
  EXPECT_EQ(s.non_finite, 3u);
  EXPECT_EQ(s.updates, 1);
  for (size_t i = 0; i < gpu_.size(); ++i) {
    expect_same_bits(before[i].value, gpu_[i].weight.value, "weight");
    expect_same_bits(before[i].correction, gpu_[i].weight.correction, "correction");
    expect_same_bits(m[i], gpu_[i].m, "m");
  }
}

// More tensors than one launch takes.
TEST_F(AdamWCuda, ManyTensors) {
  for (int64_t i = 0; i < 600; ++i) add({"split", Codec::Fp32, Codec::Fp32, Codec::Fp32}, 1, RowBlocks(1 + i % 300));
  train(2, {});
  expect_same_weights(2, 4);
}

TEST_F(AdamWCuda, SquaredNormsOfAllFormats) {
  for (const Codec grad : {Codec::Int8, Codec::Fp8, Codec::Bf16, Codec::Fp32})
    for (const auto& [rows, row] : kShapes) add({"split", grad, Codec::Fp32, Codec::Fp32}, rows, row);
  allocate();
  draw_gradients();
  std::vector<GradientSum> host, device;
  for (size_t i = 0; i < host_.size(); ++i) host.push_back(host_[i].grad), device.push_back(gpu_[i].grad);
  squared_norms(c(), host, squares_.cpu);
  squared_norms(g(), device, squares_.gpu);
  const Values want = values(squares_.cpu), got = values(down(squares_.gpu));
  for (size_t i = 0; i < want.size(); ++i) EXPECT_NEAR(got[i], want[i], want[i] * 1e-6) << "tensor " << i;
  const Tensor first = down(squares_.gpu);
  squared_norms(g(), device, squares_.gpu);
  expect_same_bits(first, squares_.gpu, "the same sum again");
}

// Numbers whose squares fp32 cannot hold.
TEST_F(AdamWCuda, SquaredNormsDoNotOverflowOnTheWay) {
  for (const Codec grad : {Codec::Int8, Codec::Fp8, Codec::Bf16, Codec::Fp32}) {
    const Tensor x = cpu->filled(
        {2, 256}, [](int64_t i) { return i == 7 ? 0x1p62 : 0x1p-70; }, DType::F32);
    const std::vector<GradientSum> g_ = {{encoded(x, grad, RowBlocks(256)).gpu}};
    const Twin square = zeros({1}, DType::F32);
    squared_norms(g(), g_, square.gpu);
    EXPECT_NEAR(get(down(square.gpu), 0), 0x1p124, 0x1p124 * 1e-2);
  }
}

// Gradients in pieces, of rows that do not begin their parameter, in numbers that loops end early and late with.
TEST_F(AdamWCuda, SumsOfPiecesAreThoseOfTheCpu) {
  for (const int pieces : {2, 4, 5, 8})
    for (const Codec grad : {Codec::Int8, Codec::Fp8, Codec::Bf16, Codec::Fp32})
      for (const auto& [rows, row] : kShapes) {
        if (rows * row.cols > 1 << 18) continue;
        add({"split", grad, Codec::Dyn8, Codec::Dyn8Unsigned}, rows, row);
        const int64_t piece_rows = rows + 1;
        const QuantizedTwin q = encoded(cpu->random({pieces * piece_rows, row.cols}, 1, DType::F32), grad, row);
        const auto sum_in = [&](const codec::Quantized& storage) {
          return GradientSum{storage.row_range(0, rows), pieces, piece_rows};
        };
        host_.back().grad = sum_in(q.cpu), gpu_.back().grad = sum_in(q.gpu);
        host_.back().global_offset.first_row = gpu_.back().global_offset.first_row = 3 * rows;
      }
  allocate();
  update_both({.clip_grad = 0});
  const Values want = values(squares_.cpu), got = values(down(squares_.gpu));
  for (size_t i = 0; i < want.size(); ++i) {
    EXPECT_NEAR(got[i], want[i], want[i] * 1e-6) << "tensor " << i;
    expect_same_bits(host_[i].m, gpu_[i].m, "m of a sum is exact");
  }
  expect_same_codes(&AdamWState::v, 1e-3);
  expect_same_weights(1, 4);
}

// A large one, whose blocks are whole, goes other ways than small ones.
TEST_F(AdamWCuda, SumOfWholeBlocksIsThatOfTheCpu) {
  for (const Codec grad : {Codec::Int8, Codec::Bf16}) {
    add({"split", grad, Codec::Dyn8, Codec::Dyn8Unsigned}, 260, RowBlocks(2048));
    const QuantizedTwin q = encoded(cpu->random({4 * 260, 2048}, 1, DType::F32), grad, RowBlocks(2048));
    host_.back().grad = {q.cpu.row_range(0, 260), 4, 260}, gpu_.back().grad = {q.gpu.row_range(0, 260), 4, 260};
  }
  allocate();
  update_both({.clip_grad = 0});
  for (size_t i = 0; i < host_.size(); ++i) expect_same_bits(host_[i].m, gpu_[i].m, "m of a sum is exact");
  expect_same_codes(&AdamWState::v, 1e-3);
  expect_same_weights(1, 4);
}

// More columns than threads, fewer, and one; a single rank, and many. The order of the sum is the CPU's.
TEST_F(AdamWCuda, NormOverRanksHasTheBitsOfTheCpu) {
  for (const int64_t ranks : {1, 2, 33, 1024, 3000})
    for (const int64_t parameters : {1, 37, 512, 1300}) {
      start(DType::BF16, size_t{64} << 20);
      const Twin squares = random({ranks, parameters}, 1, DType::F32);
      for (int64_t i = 0; i < squares.cpu.count(); ++i)
        squares.cpu.as<float>()[i] = std::ldexp(std::abs(squares.cpu.as<float>()[i]), static_cast<int>(i % 61) - 40);
      const auto decide_both = [&] {
        const Twin decided = zeros(update_scalars_shape(), DType::U8);
        upload(g(), squares.cpu.data, squares.gpu);
        decide_update(c(), squares.cpu, kLr, {}, decided.cpu);
        decide_update(g(), squares.gpu, kLr, {}, decided.gpu);
        const UpdateScalars want = scalars(decided.cpu), got = scalars(down(decided.gpu));
        EXPECT_EQ(got.non_finite, want.non_finite);
        EXPECT_EQ(got.updates, want.updates);
        EXPECT_EQ(got.gradient_scale, want.gradient_scale);
        if (want.non_finite == 0) {
          EXPECT_EQ(got.grad_norm, want.grad_norm) << ranks << " ranks of " << parameters;
        }
      };
      decide_both();
      squares.cpu.as<float>()[squares.cpu.count() - 1] = NAN;
      squares.cpu.as<float>()[squares.cpu.count() / 2] = INFINITY;
      decide_both();
    }
}

TEST_F(AdamWCuda, DryRunCountsTheSameBytes) {
  for (const auto& [rows, row] : kShapes) add(kDefault, rows, row);
  train(1, {});
  Arena meta(Device::Meta, 0);
  const Context planned(meta, Device::Cuda, DType::BF16);
  std::vector<GradientSum> grads;
  for (const AdamWState& s : host_) grads.push_back(s.grad);
  squared_norms(planned, grads, squares_.cpu);
  EXPECT_EQ(meta.peak_stack_bytes(), arena->peak_stack_bytes());
}

}  // namespace
}  // namespace agoq::ops::test
