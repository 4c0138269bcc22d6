#include "ops/optimizer/adamw.h"

#include "ops/support.h"

namespace agoq::ops {
namespace {

using codec::Codec;
using test::TestContext;
using test::Values;

constexpr int64_t kRows = 6, kCols = 300;

Weight weight(TestContext& t, const std::string& form, int64_t rows, int64_t cols) {
  Weight w{t.zeros({rows, cols}, form == "fp32" ? DType::F32 : DType::BF16), {}, {}};
  if (form == "split") w.correction = t.zeros({rows, cols}, DType::I16);
  if (form == "both") w.master = t.zeros({rows, cols}, DType::F32);
  return w;
}

AdamWState state(TestContext& t, const std::string& form, Codec grad, bool eight_bits, int64_t rows = kRows,
                 int64_t cols = kCols) {
  const codec::RowBlocks row(cols);
  return {weight(t, form, rows, cols),
          {t.kept(grad, rows, row)},
          t.kept(eight_bits ? Codec::Dyn8 : Codec::Fp32, rows, row),
          t.kept(eight_bits ? Codec::Dyn8Unsigned : Codec::Fp32, rows, row),
          17};
}

// Updates of one parameter, whose gradients' norm is said to be 1: the gradient is multiplied by clip_grad.
class Updates {
 public:
  explicit Updates(TestContext& t)
      : scalars_(t.zeros(update_scalars_shape(), DType::U8)),
        squares_(t.filled(
            {1}, [](int64_t) { return 1; }, DType::F32)) {}
  void update(const Context& ctx, const AdamWState& state, double lr, const AdamWConfig& config) {
    decide_update(ctx, squares_, lr, config, scalars_);
    adamw(ctx, {&state, 1}, lr, config, scalars_);
  }

 private:
  Tensor scalars_, squares_;
};

void update_once(TestContext& t, const AdamWState& state, double lr = 1e-3, const AdamWConfig& config = {}) {
  Updates(t).update(t.ctx, state, lr, config);
}

// Loshchilov & Hutter's algorithm 2 for one number, in double.
struct Scalar {
  double p, m = 0, v = 0;
  void step(double g, int step, double lr, const AdamWConfig& c) {
    g *= c.clip_grad / (1 + 1e-6);
    m = c.beta1 * m + (1 - c.beta1) * g;
    v = c.beta2 * v + (1 - c.beta2) * g * g;
    const double mhat = m / (1 - std::pow(c.beta1, step)), vhat = v / (1 - std::pow(c.beta2, step));
    p = p - lr * c.weight_decay * p - lr * mhat / (std::sqrt(vhat) + c.eps);
  }
};

std::vector<float> read(const Context& ctx, const Weight& w) {
  std::vector<float> all(static_cast<size_t>(w.value.count()));
  load_fp32(ctx, w, all.data());
  return all;
}

// 20 steps with gradients of sizes from 1e-6 to 1; returns the weights. `check` compares with doubles.
std::vector<float> train(const std::string& form, Codec grad, bool eight_bits, bool check, int threads = 2) {
  return test::with_threads(threads, [&] {
    TestContext t;
    const AdamWState s = state(t, form, grad, eight_bits);
    const Tensor first = t.random({kRows, kCols}, 0.3, DType::F32), g = t.zeros({kRows, kCols}, DType::F32);
    store_fp32(t.ctx, s.weight, first.as<float>());
    std::vector<Scalar> want;
    for (double p : test::values(first)) want.push_back({p});
    std::normal_distribution<float> normal;
    const AdamWConfig config{.beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1, .clip_grad = 0.7};
    Updates updates(t);
    double lr = 1e-2;
    for (int step = 1; step <= 20; ++step) {
      lr *= 0.97;
      t.ctx.random.step = static_cast<uint32_t>(step);
      for (int64_t i = 0; i < g.count(); ++i) {
        g.as<float>()[i] = normal(t.generator) * std::pow(10.0f, static_cast<float>(-(i % 7)));
      }
      codec::encode(t.ctx, g, s.grad.first);
      const Values decoded = test::values(t.decoded(s.grad.first));
      updates.update(t.ctx, s, lr, config);
      for (size_t i = 0; i < want.size(); ++i) want[i].step(decoded[i], step, lr, config);
    }
    const std::vector<float> got = read(t.ctx, s.weight);
    // An ulp of p and of the update at each of the steps.
    for (size_t i = 0; check && i < got.size(); ++i)
      EXPECT_NEAR(got[i], want[i].p, 20 * (0x1p-23 * std::abs(want[i].p) + 1e-8));
    return got;
  });
}

TEST(AdamW, TwentyStepsMatchTheScalarAlgorithm) {
  for (const std::string form : {"split", "fp32", "both"})
    for (Codec grad : {Codec::Fp32, Codec::Int8}) train(form, grad, false, true);
}

TEST(AdamW, AllFormsOfTheWeightTrainAlikeToTheBit) {
  for (bool eight_bits : {false, true}) {
    const auto master = train("fp32", Codec::Int8, eight_bits, false);
    EXPECT_EQ(train("split", Codec::Int8, eight_bits, false), master);
    EXPECT_EQ(train("both", Codec::Int8, eight_bits, false), master);
  }
}

TEST(AdamW, SameBitsUnderAnyNumberOfThreads) {
  EXPECT_EQ(train("split", Codec::Int8, true, false, 1), train("split", Codec::Int8, true, false, 2));
}

TEST(AdamW, Bf16HalfOfBothIsTheRoundedMaster) {
  TestContext t;
  const AdamWState s = state(t, "both", Codec::Fp32, false);
  const Tensor first = t.random({kRows, kCols}, 1, DType::F32);
  store_fp32(t.ctx, s.weight, first.as<float>());
  codec::encode(t.ctx, t.random({kRows, kCols}, 1, DType::F32), s.grad.first);
  update_once(t, s, 0.1);
  for (int64_t i = 0; i < first.count(); ++i) {
    const double exact = test::get(s.weight.master, i);
    EXPECT_NE(exact, test::get(first, i));
    EXPECT_NEAR(test::get(s.weight.value, i), exact, std::abs(exact) * 0x1p-8);
  }
}

// Nearest rounding would leave v where it started: at beta2 = 0.999 a step adds less than half a code.
TEST(AdamW, EightBitMomentsReachAConstantGradient) {
  TestContext t;
  const AdamWState s = state(t, "fp32", Codec::Fp32, true, 4, 128);
  const Tensor g = t.filled(
      {4, 128}, [](int64_t i) { return (i % 2 ? -1 : 1) * std::pow(10.0, -(i % 5) * 0.5); }, DType::F32);
  codec::encode(t.ctx, g, s.grad.first);
  const AdamWConfig config{.beta1 = 0.9, .beta2 = 0.999, .clip_grad = 0};
  Updates updates(t);
  for (uint32_t step = 1; step <= 10000; ++step) {
    t.ctx.random.step = step;
    updates.update(t.ctx, s, 0, config);
  }
  const Values m = test::values(t.decoded(s.m)), root = test::values(t.decoded(s.v));
  for (size_t size = 0; size < 5; ++size) {
    double m_ratio = 0, v_ratio = 0, count = 0;
    for (size_t i = 0; i < m.size(); ++i) {
      if (i % 10 != size && i % 10 != size + 5) continue;  // i % 5 == size
      const double exact = test::get(g, static_cast<int64_t>(i));
      m_ratio += m[i] / exact;
      v_ratio += root[i] * root[i] / (exact * exact);
      count += 1;
    }
    EXPECT_NEAR(m_ratio / count, 1, 0.02) << "m of size " << size;
    EXPECT_NEAR(v_ratio / count, 1, 0.02) << "v of size " << size;
  }
}

TEST(AdamW, MomentsUseTheirOwnDraws) {
  TestContext t;
  const AdamWState s = state(t, "fp32", Codec::Fp32, true);
  codec::encode(t.ctx, t.random({kRows, kCols}, 1, DType::F32), s.grad.first);
  const auto moments = [&](uint32_t step, uint32_t micro_batch) {
    codec::zero(t.ctx, s.m);
    codec::zero(t.ctx, s.v);
    t.ctx.random.step = step;
    t.ctx.random.micro_batch = micro_batch;
    update_once(t, s);
    return std::array{test::values(t.decoded(s.m)), test::values(t.decoded(s.v))};
  };
  const auto first = moments(1, 0);
  EXPECT_EQ(moments(1, 5), first) << "the update is one per step, whatever micro-batch ran last";
  EXPECT_NE(moments(2, 0), first);
}

// `rows` of a parameter from row `begin` on.
AdamWState slice(const AdamWState& s, int64_t begin, int64_t rows) {
  AdamWState part = s;
  part.weight = s.weight.row_range(begin, begin + rows);
  part.grad.first = s.grad.first.row_range(begin, begin + rows);
  part.m = s.m.row_range(begin, begin + rows);
  part.v = s.v.row_range(begin, begin + rows);
  part.global_offset.first_row = begin;
  return part;
}

TEST(AdamW, SlicesOfAParameterTrainAsTheWholeToTheBit) {
  const auto moments = [](int64_t cut) {
    TestContext t;
    const AdamWState s = state(t, "split", Codec::Int8, true);
    store_fp32(t.ctx, s.weight, t.random({kRows, kCols}, 0.3, DType::F32).as<float>());
    codec::encode(t.ctx, t.random({kRows, kCols}, 1, DType::F32), s.grad.first);
    for (const AdamWState& part : {slice(s, 0, cut), slice(s, cut, kRows - cut)}) update_once(t, part);
    return std::array{test::values(t.decoded(s.m)), test::values(t.decoded(s.v))};
  };
  EXPECT_EQ(moments(2), moments(kRows));
}

// A gradient in pieces is the fp32 gradient that they add up to, in their order.
TEST(AdamW, AddsThePiecesOfAGradient) {
  constexpr int64_t kPieceRows = kRows + 3;
  for (const Codec codec : {Codec::Int8, Codec::Fp8, Codec::Bf16, Codec::Fp32}) {
    TestContext t;
    const codec::RowBlocks row(kCols);
    const codec::Quantized storage = t.kept(codec, 3 * kPieceRows, row);
    codec::encode(t.ctx, t.random({3 * kPieceRows, kCols}, 1, DType::F32), storage);
    const Tensor all = t.decoded(storage);
    AdamWState whole = state(t, "split", Codec::Fp32, true), pieces = state(t, "split", codec, true);
    for (int64_t i = 0; i < kRows * kCols; ++i) {
      float sum = all.as<float>()[i];
      for (int64_t j = 1; j < 3; ++j) sum += all.as<float>()[j * kPieceRows * kCols + i];
      whole.grad.first.plain().as<float>()[i] = sum;
    }
    pieces.grad = {storage.row_range(0, kRows), 3, kPieceRows};
    for (const AdamWState& s : {whole, pieces}) update_once(t, s);
    EXPECT_EQ(test::values(t.decoded(pieces.m)), test::values(t.decoded(whole.m)));
    EXPECT_EQ(test::values(t.decoded(pieces.v)), test::values(t.decoded(whole.v)));
    EXPECT_EQ(read(t.ctx, pieces.weight), read(t.ctx, whole.weight));
    pieces.grad.piece_rows = kRows - 1;
    EXPECT_THROW(update_once(t, pieces), Error) << "pieces overlap";
  }
}

TEST(AdamW, RefusesStatesThatDoNotFit) {
  TestContext t;
  AdamWState s = state(t, "split", Codec::Int8, true);
  EXPECT_THROW(adamw(t.ctx, {&s, 1}, 1e-3, {}, t.zeros({1}, DType::F32)), Error);
  std::swap(s.m, s.v);
  EXPECT_THROW(update_once(t, s), Error);
  std::swap(s.m, s.v);
  s.weight.correction = {};
  EXPECT_THROW(update_once(t, s), Error);
}

TEST(AdamW, DecaysOnlyWhereToldTo) {
  TestContext t;
  AdamWState s = state(t, "fp32", Codec::Fp32, false);  // no gradient: nothing but decay moves it
  const AdamWConfig config{.weight_decay = 0.5};
  const Tensor ones = t.filled(
      {kRows, kCols}, [](int64_t) { return 1; }, DType::F32);
  store_fp32(t.ctx, s.weight, ones.as<float>());
  s.decay = false;
  update_once(t, s, 0.1, config);
  EXPECT_EQ(read(t.ctx, s.weight).front(), 1.0f);
  s.decay = true;
  update_once(t, s, 0.1, config);
  EXPECT_FLOAT_EQ(read(t.ctx, s.weight).front(), 0.95f);
}

UpdateScalars decided(TestContext& t, const std::vector<float>& squares, const AdamWConfig& config,
                      const UpdateScalars& before = {}) {
  const Tensor scalars = t.zeros(update_scalars_shape(), DType::U8);
  std::memcpy(scalars.data, &before, sizeof before);
  const auto at = [&](int64_t i) { return squares[static_cast<size_t>(i)]; };
  decide_update(t.ctx, t.filled({static_cast<int64_t>(squares.size())}, at, DType::F32), 1e-3, config, scalars);
  UpdateScalars after;
  std::memcpy(&after, scalars.data, sizeof after);
  return after;
}

TEST(DecideUpdate, ClipsByTheNormOfAll) {
  TestContext t;
  const UpdateScalars s = decided(t, {9, 16, 144}, {.clip_grad = 2.6});
  EXPECT_EQ(s.grad_norm, 13);
  EXPECT_FLOAT_EQ(s.gradient_scale, 0.2f);
  EXPECT_EQ(decided(t, {9, 16, 144}, {.clip_grad = 14}).gradient_scale, 1);
  EXPECT_EQ(decided(t, {9, 16, 144}, {.clip_grad = 0}).gradient_scale, 1);
}

TEST(DecideUpdate, CountsUpdatesForTheBiasOfMoments) {
  TestContext t;
  UpdateScalars before;
  before.updates = 2;
  const UpdateScalars s = decided(t, {1}, {.beta1 = 0.9, .beta2 = 0.95}, before);
  EXPECT_EQ(s.updates, 3);
  EXPECT_FLOAT_EQ(s.step_size, 1e-3f / (1 - 0.729f));
  EXPECT_FLOAT_EQ(s.root_correction, std::sqrt(1 - 0.857375f));
}

TEST(DecideUpdate, SkipsAndNamesTheFirstBrokenGradient) {
  TestContext t;
  for (const float bad : {std::nanf(""), INFINITY}) {
    UpdateScalars before;
    before.updates = 2;
    const UpdateScalars s = decided(t, {1, 2, bad, 3, bad}, {}, before);
    EXPECT_EQ(s.non_finite, 3u);
    EXPECT_EQ(s.updates, 2);
    EXPECT_FALSE(std::isfinite(s.grad_norm));
    EXPECT_EQ(decided(t, {1}, {}, s).non_finite, 0u) << "the next update is a new one";
  }
}

// The norm over W ranks is the sum of each parameter over the ranks, in rank order, and then of the parameters.
TEST(DecideUpdate, AddsUpRanksThenParameters) {
  for (const int64_t ranks : {1, 2, 7, 1024}) {
    TestContext t;
    constexpr int64_t kParameters = 37;
    std::mt19937 random(5);
    const Tensor squares = t.filled(
        {ranks, kParameters}, [&](int64_t) { return std::ldexp(random() / 4e9, static_cast<int>(random() % 60) - 40); },
        DType::F32);
    double sum = 0;
    for (int64_t i = 0; i < kParameters; ++i) {
      double of_parameter = 0;
      for (int64_t rank = 0; rank < ranks; ++rank) of_parameter += squares.as<float>()[rank * kParameters + i];
      sum += of_parameter;
    }
    const Tensor scalars = t.zeros(update_scalars_shape(), DType::U8);
    const auto& decided = *static_cast<const UpdateScalars*>(scalars.data);
    decide_update(t.ctx, squares, 1e-3, {}, scalars);
    EXPECT_EQ(decided.grad_norm, std::sqrt(sum)) << ranks << " ranks";
    EXPECT_EQ(decided.non_finite, 0u);
    squares.as<float>()[ranks * kParameters - 1] = NAN;
    squares.as<float>()[(ranks - 1) * kParameters + 5] = INFINITY;
    decide_update(t.ctx, squares, 1e-3, {}, scalars);
    EXPECT_EQ(decided.non_finite, (ranks - 1) * kParameters + 6) << "the first in rank order";
  }
}

TEST(AdamW, SkippedUpdateChangesNothing) {
  TestContext t;
  const AdamWState s = state(t, "split", Codec::Int8, true);
  const Tensor first = t.random({kRows, kCols}, 0.3, DType::F32);
  store_fp32(t.ctx, s.weight, first.as<float>());
  codec::encode(t.ctx, t.random({kRows, kCols}, 1, DType::F32), s.grad.first);
  const Tensor scalars = t.zeros(update_scalars_shape(), DType::U8);
  decide_update(t.ctx,
                t.filled(
                    {1}, [](int64_t) { return NAN; }, DType::F32),
                0.1, {}, scalars);
  adamw(t.ctx, {&s, 1}, 0.1, {}, scalars);
  const std::vector<float> weights = read(t.ctx, s.weight);
  EXPECT_EQ(test::values(first), Values(weights.begin(), weights.end()));
  EXPECT_EQ(test::largest(test::values(t.decoded(s.m))), 0);
  EXPECT_EQ(test::largest(test::values(t.decoded(s.v))), 0);
}

TEST(AdamW, DryRunCountsTheSameBytes) {
  test::expect_same_peak(DType::F32, [](TestContext& t) {
    const AdamWState s = state(t, "split", Codec::Int8, true);
    update_once(t, s);
  });
}

}  // namespace
}  // namespace agoq::ops
