#include <map>
#include <tuple>

#include "ops/adamw_cuda.h"
#include "ops/tensor_list_cuda.cuh"

namespace agoq::ops::cuda {
namespace {

using codec::Codec;

constexpr int kTile = 128;  // blocks of numbers for a block of threads
static_assert(kTile % kBlocksAtOnce == 0);

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
  Planes m, v;
  Blocks blocks;
  WholeBlocks whole;
  uint32_t tensor = 0;
  bool decays = true;
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
      halves[0].load<kWhole>(w.value + cell.first(), cell.n);
      halves[1].load<kWhole>(w.correction + cell.first(), cell.n);
    } else {
      exact.load<kWhole>(w.exact + cell.first(), cell.n);
    }
  }
  __device__ void decode(const WeightView& w, Numbers& p) const {
#pragma unroll
    for (int i = 0; i < kGroup; ++i) p[i] = is_split<kForm>(w) ? joined(i) : exact.as_float(i);
  }

 private:
  __device__ float joined(int i) const {  // join_fp32
    const auto corrections = static_cast<int32_t>(halves[1].words[i / 2]);
    const int32_t correction = i % 2 ? corrections >> 16 : static_cast<int16_t>(corrections);
    return __uint_as_float(__float_as_uint(halves[0].as_float(i)) + static_cast<uint32_t>(correction));
  }
};

template <Form kForm, bool kWhole, class C>
__device__ void store(const WeightView& w, const C& cell, const Numbers& p) {
  if (!is_split<kForm>(w)) {
    Raw<4> exact;
#pragma unroll
    for (int i = 0; i < kGroup; ++i) exact.words[i] = __float_as_uint(p[i]);
    exact.store<kWhole>(w.exact + cell.first(), cell.n);
    if (!w.value) return;
  }
  Raw<2> value, correction;
#pragma unroll
  for (int i = 0; i < kGroup; ++i) {
    Bf16 high;
    int16_t low;
    split_fp32(p[i], high, low);
    value.words[i / 2] |= uint32_t{high.bits} << (16 * (i % 2));
    correction.words[i / 2] |= uint32_t{static_cast<uint16_t>(low)} << (16 * (i % 2));
  }
  value.store<kWhole>(w.value + cell.first(), cell.n);
  if (is_split<kForm>(w)) correction.store<kWhole>(w.correction + cell.first(), cell.n);
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

// All that a lane reads for a cell.
template <class G, class M, class V, Form kForm>
struct Operands {
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

template <Purpose kPurpose>
__device__ RandomKey key_of(RandomKey key, const Parameter& p) {
  key.purpose = kPurpose;
  key.micro_batch = 0;
  key.tensor = p.tensor;
  return key;
}

// Moments exactly as on the CPU; their root, and so the weight, within two roundings.
template <class G, class M, class V, bool kSum, Form kForm, class C>
__device__ void update(const Parameter& param, const C& cell, const AdamWFactors& f, const UpdateScalars& s,
                       const RandomKey& key) {
  Operands<G, M, V, kForm> stored;
  load(stored, param, cell);
  Numbers g, m, v, p;
  stored.grad.decode(g);
  if constexpr (kSum) add_pieces<G>(param.grad, cell, g);
  stored.m.decode(m);
  stored.v.decode(v);
  stored.weight.decode(param.weight, p);
  const float decay = param.decays ? f.decay : 1.0f;
  const float inverse_correction = fast_reciprocal(s.root_correction);
#pragma unroll
  for (int i = 0; i < kGroup; ++i) {
    if constexpr (V::kScaled) v[i] *= v[i];
    const float scaled_g = g[i] * s.gradient_scale;
    m[i] += f.one_minus_beta1 * (scaled_g - m[i]);
    v[i] = v[i] * f.beta2 + f.one_minus_beta2 * (scaled_g * scaled_g);
    const float root = fast_sqrt(v[i]);
    const float step = m[i] * fast_reciprocal(fmaf(root, inverse_correction, f.eps));
    p[i] = fmaf(-s.step_size, step, p[i] * decay);
    if constexpr (V::kScaled) v[i] = root;
  }
  if (cell.whole) {
    store<kForm, true>(param.weight, cell, p);
  } else {
    store<kForm, false>(param.weight, cell, p);
  }
  const int whole = param.whole.of(cell.index);
  encode<M>(param.m, cell, m, draws_of(key_of<Purpose::FirstMoment>(key, param), whole, cell));
  encode<V>(param.v, cell, v, draws_of(key_of<Purpose::SecondMoment>(key, param), whole, cell));
}

template <class G, class M, class V, bool kSum>
__global__ void __launch_bounds__(kThreads, 3)
    adamw_tiles(const __grid_constant__ TensorList<Parameter> list, const AdamWFactors factors, const RandomKey key,
                const UpdateScalars* scalars) {
  const UpdateScalars s = *scalars;
  if (s.non_finite != 0) return;
  const int tile = static_cast<int>(blockIdx.x);
  const int tensor = list.tensor_of(tile);
  const Parameter& p = list.entries[tensor];
  const int lane = static_cast<int>(threadIdx.x) % kLanes, slot = static_cast<int>(threadIdx.x) / kLanes;
  const int begin = (tile - list.first[tensor]) * kTile, end = min(begin + kTile, p.blocks.count);
  if (p.blocks.whole_pairs() && p.weight.correction) {
    for (int index = begin + slot; index < end; index += kBlocksAtOnce)
      update<G, M, V, kSum, Form::Split>(p, WholeCell{index, lane}, factors, s, key);
  } else {  // a warp has two blocks and stays whole: the second may lie beyond the last one
    for (int index = begin + slot; (index & ~1) < end; index += kBlocksAtOnce)
      update<G, M, V, kSum, Form::Any>(p, Cell(p.blocks, index, lane), factors, s, key);
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

Parameter parameter_of(const AdamWState& state) {
  Parameter p{WeightView(state.weight),           Pieces(state.grad), Planes(state.m), Planes(state.v), Blocks(state.m),
              WholeBlocks(state.m, state.origin), state.tensor,       state.decay};
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
  for (const AdamWState& state : states) {
    const Parameter p = parameter_of(state);
    append(lists[{state.grad.first.codec, state.grad.pieces > 1, state.m.codec, state.v.codec}], p,
           codec::cuda::ceil_div(p.blocks.count, kTile));
  }
  const AdamWFactors factors(lr, config);
  for (const auto& [kernel, parts] : lists) {
    const auto [grad, sum, m, v] = kernel;
    dispatch_gradient(grad, sum, [&]<class G, bool kSum>() {
      dispatch_moments(m, v, [&]<class M, class V>() {
        for (const TensorList<Parameter>& list : parts)
          agoq::cuda::launch(ctx, adamw_tiles<G, M, V, kSum>, list.tiles(), kThreads, list, factors, ctx.random,
                             scalars);
      });
    });
  }
}

}  // namespace agoq::ops::cuda
