#include <map>
#include <tuple>

#include "ops/gradient/tensor_list_cuda.cuh"
#include "ops/optimizer/adamw_cuda.h"

namespace agoq::ops::cuda {
namespace {

using codec::Codec;

constexpr int kTile = 128;  // blocks of numbers for a block of threads

// A weight in any form: bf16 and correction, or fp32 with or without its bf16 copy.
struct WeightView {
  Bf16* value = nullptr;
  int16_t* correction = nullptr;
  float* exact = nullptr;

  WeightView() = default;
  explicit WeightView(const Weight& w) {
    if (w.value.dtype == DType::BF16) value = w.value.as<Bf16>();
    if (w.correction) correction = w.correction.as<int16_t>();
    if (!w.correction) exact = (w.master ? w.master : w.value).as<float>();
  }
  bool aligned() const {
    const auto bits = reinterpret_cast<uintptr_t>(value) | reinterpret_cast<uintptr_t>(correction) |
                      reinterpret_cast<uintptr_t>(exact);
    return bits % 16 == 0;
  }
};

struct Parameter {
  WeightView weight;
  Pieces grad;
  QuantPlanes m, v;
  Blocks blocks;
  WholeBlocks whole;
  uint32_t tensor = 0;
  float decay = 1;
};

// Which forms of a weight code is for: all of them, or the split one, which most weights have.
enum class Form { Any, Split };
template <Form kForm>
__device__ bool is_split(const WeightView& w) {
  return kForm == Form::Split || w.correction;
}

// Eight numbers of a weight: bf16 halves, then corrections; or fp32.
template <Form kForm>
struct StoredWeight {
  Raw<2> halves[2];
  Raw<4> exact;

  template <bool kWhole, class C>
  __device__ void load(const WeightView& w, const C& cell) {
    if (is_split<kForm>(w)) {
      halves[0].load<kWhole>(cell.template in<2>(w.value), cell.n);
      halves[1].load<kWhole>(cell.template in<2>(w.correction), cell.n);
    } else {
      exact.load<kWhole>(cell.template in<4>(w.exact), cell.n);
    }
  }
  __device__ void decode(const WeightView& w, FloatVec8& p) const {
#pragma unroll
    for (int i = 0; i < kGroup; ++i) p[i] = is_split<kForm>(w) ? joined(i) : exact.as_float(i);
  }

 private:
  __device__ float joined(int i) const {  // join_fp32
    const uint32_t corrections = halves[1].words[i / 2];
    const uint32_t correction = i % 2 ? static_cast<uint32_t>(static_cast<int32_t>(corrections) >> 16)
                                      : codec::bytes_of(corrections, 0, 0x9910u);  // each with its sign
    return __uint_as_float(__float_as_uint(halves[0].as_float(i)) + correction);
  }
};

template <Form kForm, bool kWhole, class C>
__device__ void store(const WeightView& w, const C& cell, const FloatVec8& p) {
  if (!is_split<kForm>(w)) {
    Raw<4> exact;
#pragma unroll
    for (int i = 0; i < kGroup; ++i) exact.words[i] = __float_as_uint(p[i]);
    exact.store<kWhole>(cell.template in<4>(w.exact), cell.n);
    if (!w.value) return;
  }
  Raw<2> value, correction;  // split_fp32, two at a time
#pragma unroll
  for (int i = 0; i < kGroup; i += 2) {
    const uint32_t first = __float_as_uint(p[i]), second = __float_as_uint(p[i + 1]);
    value.words[i / 2] = codec::bytes_of(first + 0x8000u, second + 0x8000u, 0x7632u);
    correction.words[i / 2] = codec::bytes_of(first, second, 0x5410u);
  }
  value.store<kWhole>(cell.template in<2>(w.value), cell.n);
  if (is_split<kForm>(w)) correction.store<kWhole>(cell.template in<2>(w.correction), cell.n);
}

__device__ float fast_sqrt(float x) {
  float root;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(root) : "f"(x));
  return root;
}
__device__ float fast_reciprocal(float x) {
  float inverse;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(x));
  return inverse;
}

// p -= m / (of_root · √v + eps): what AdamW divides by, times 1 / step_size.
struct UpdateDivisor {
  float of_root, eps;
  __device__ UpdateDivisor(const UpdateScalars& s, const AdamWFactors& f) {
    const float inverse = fast_reciprocal(fmaxf(s.step_size, 1e-30f));  // an update by so little changes nothing
    of_root = inverse * fast_reciprocal(s.root_correction);
    eps = inverse * f.eps;
  }
};

// All that a lane reads for a cell.
template <class G, class M, class V, Form kForm>
struct LaneOperands {
  Stored<G> grad;
  Stored<M> m;
  Stored<V> v;
  StoredWeight<kForm> weight;

  template <bool kWhole, class C>
  __device__ void load(const Parameter& p, const C& cell) {
    grad.template load<kWhole>(p.grad.first, cell);
    weight.template load<kWhole>(p.weight, cell);
    m.template load<kWhole>(p.m, cell);
    v.template load<kWhole>(p.v, cell);
  }
};

// The gradient, summed and times `factor`.
template <class G, bool kSum, class C>
__device__ void decode_gradient(const Stored<G>& stored, const Pieces& pieces, const C& cell, float factor,
                                FloatVec8& g) {
  if constexpr (kSum) {
    stored.decode(g);
    add_pieces<G>(pieces, cell, g);
#pragma unroll
    for (float& number : g) number *= factor;
  } else {
    stored.decode_times(factor, g);
  }
}

// A moment to be encoded has a finite square, or the block's other one is infinite and marks it as broken: so a
// format's limits need no care.
__device__ codec::Bounded bounded(const Philox4& words) {
  codec::Bounded draws;
  draws.words = words;
  return draws;
}

// What all cells of a step have in common.
struct UpdateStep {
  const AdamWFactors& factors;
  const codec::PreparedRng& draws;
  UpdateDivisor divisor;
  float of_gradient;
  __device__ UpdateStep(const UpdateScalars& s, const AdamWFactors& f, const codec::PreparedRng& d)
      : factors(f), draws(d), divisor(s, f), of_gradient(f.h * s.gradient_scale) {}
};

// Moments exactly as on the CPU; their root, and so the weight, within two roundings.
template <class G, class M, class V, bool kSum, Form kForm, class C>
__device__ void update(const Parameter& param, const C& cell, const LaneOperands<G, M, V, kForm>& stored,
                       const UpdateStep& step) {
  const AdamWFactors& f = step.factors;
  FloatVec8 h, m, v, p;
  decode_gradient<G, kSum>(stored.grad, param.grad, cell, step.of_gradient, h);
  stored.m.decode(m, f.beta1);
  stored.v.decode(v, V::kScaled ? f.root_beta2 : f.beta2);
  stored.weight.decode(param.weight, p);
#pragma unroll
  for (int i = 0; i < kGroup; ++i) {
    m[i] = fmaf(f.m_part, h[i], m[i]);
    v[i] = fmaf(h[i], h[i], V::kScaled ? v[i] * v[i] : v[i]);
    const float root = fast_sqrt(v[i]);
    p[i] = fmaf(-m[i], fast_reciprocal(fmaf(root, step.divisor.of_root, step.divisor.eps)), p[i] * param.decay);
    if constexpr (V::kScaled) v[i] = root;
  }
  if (cell.whole) {
    store<kForm, true>(param.weight, cell, p);
  } else {
    store<kForm, false>(param.weight, cell, p);
  }
  const auto block = static_cast<uint64_t>(param.whole.of(cell.block));
  const Philox4 words = step.draws.of(param.tensor, block * kLanes + static_cast<uint64_t>(cell.lane));
  encode<M>(param.m, cell, m, bounded(words));
  encode<V>(param.v, cell, v, bounded(codec::halves_exchanged(words)));
}

template <class G, class M, class V, bool kSum>
__global__ void __launch_bounds__(kThreads, 3)
    adamw_tiles(const __grid_constant__ TensorList<Parameter> list, const __grid_constant__ AdamWFactors factors,
                const __grid_constant__ codec::PreparedRng draws, const UpdateScalars* scalars) {
  const UpdateScalars s = *scalars;
  if (s.non_finite != 0) return;
  const UpdateStep step(s, factors, draws);
  const int tile = static_cast<int>(blockIdx.x);
  const int tensor = list.tensor_of(tile);
  const Parameter p = list.entries[tensor];  // in registers: what is read by reference is read again behind a store
  const int lane = static_cast<int>(threadIdx.x) % kLanes, slot = static_cast<int>(threadIdx.x) / kLanes;
  const TensorListScheduler walk = walk_of<kTile>(tile - list.first[tensor], p.blocks.count);
  if (p.blocks.whole_pairs() && p.weight.correction) {
    LaneOperands<G, M, V, Form::Split> next;  // under way while a cell is computed
    if (walk.first + slot < walk.end) load(next, p, WholeListTile{walk.first + slot, lane});
    for (int index = walk.first + slot; index < walk.end; index += walk.step) {
      const LaneOperands<G, M, V, Form::Split> stored = next;
      if (index + walk.step < walk.end) load(next, p, WholeListTile{index + walk.step, lane});
      update<G, M, V, kSum>(p, WholeListTile{index, lane}, stored, step);
    }
  } else {  // a warp has two blocks and stays whole: the second may lie beyond the last one
    for (int index = walk.first + slot; (index & ~1) < walk.end; index += walk.step) {
      const ListTile cell(p.blocks, index, lane);
      LaneOperands<G, M, V, Form::Any> stored;
      load(stored, p, cell);
      update<G, M, V, kSum>(p, cell, stored, step);
    }
  }
}

__global__ void decide_from(const float* squares, int count, double lr, const AdamWConfig config,
                            UpdateScalars* scalars) {
  double sum = 0;
  uint32_t non_finite = 0;
#pragma unroll 8
  for (int i = 0; i < count; ++i) {
    const float square = squares[i];
    sum += square;
    if (!isfinite(square) && non_finite == 0) non_finite = static_cast<uint32_t>(i) + 1;
  }
  decide(*scalars, sum, non_finite, lr, config);
}

// Calls fn.operator()<M, V>() with the formats of the moments.
template <class Fn>
void dispatch_moments(Codec m, Codec v, Fn&& fn) {
  using codec::Dyn8, codec::Dyn8Unsigned, codec::Fp32;
  if (m == Codec::Fp32 && v == Codec::Fp32) return fn.template operator()<Fp32, Fp32>();
  if (m == Codec::Fp32) return fn.template operator()<Fp32, Dyn8Unsigned>();
  if (v == Codec::Fp32) return fn.template operator()<Dyn8, Fp32>();
  require(m == Codec::Dyn8 && v == Codec::Dyn8Unsigned,
          "adamw: a GPU holds moments in fp32 or 8 bits, not in {} and {}", codec::name_of(m), codec::name_of(v));
  fn.template operator()<Dyn8, Dyn8Unsigned>();
}

RandomKey key_of_moments(RandomKey key) {
  key.stream = RngStream::FirstMoment;
  key.micro_batch = 0;
  return key;
}

Parameter parameter_of(const AdamWState& state, const AdamWFactors& factors) {
  Parameter p{WeightView(state.weight),
              Pieces(state.grad),
              QuantPlanes(state.m),
              QuantPlanes(state.v),
              Blocks(state.m),
              WholeBlocks(state.m, state.global_offset),
              state.tensor,
              state.decay ? factors.decay : 1.0f};
  p.blocks.aligned &= p.weight.aligned() && p.grad.aligned() && p.m.aligned() && p.v.aligned();
  return p;
}

}  // namespace

void decide_update(const Context& ctx, const Tensor& squares, double lr, const AdamWConfig& config,
                   UpdateScalars* scalars) {
  agoq::cuda::launch(ctx, decide_from, 1, 1, static_cast<const float*>(squares.as<float>()),
                     static_cast<int>(squares.count()), lr, config, scalars);
}

void adamw(const Context& ctx, std::span<const AdamWState> states, double lr, const AdamWConfig& config,
           const UpdateScalars* scalars) {
  using Kernel = std::tuple<Codec, bool, Codec, Codec>;  // format of the gradient, whether it is a sum, of the moments
  std::map<Kernel, std::vector<TensorList<Parameter>>> lists;
  const AdamWFactors factors(lr, config);
  for (const AdamWState& state : states) {
    const Parameter p = parameter_of(state, factors);
    append(lists[{state.grad.first.codec, state.grad.pieces > 1, state.m.codec, state.v.codec}], p,
           codec::cuda::ceil_div(p.blocks.count, kTile));
  }
  const codec::PreparedRng draws(key_of_moments(ctx.random));
  for (const auto& [kernel, parts] : lists) {
    const auto [grad, sum, m, v] = kernel;
    dispatch_gradient(grad, sum, [&]<class G, bool kSum>() {
      dispatch_moments(m, v, [&]<class M, class V>() {
        for (const TensorList<Parameter>& list : parts)
          agoq::cuda::launch(ctx, adamw_tiles<G, M, V, kSum>, list.tiles(), kThreads, list, factors, draws, scalars);
      });
    });
  }
}

}  // namespace agoq::ops::cuda
