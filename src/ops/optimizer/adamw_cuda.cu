#include <map>
#include <tuple>

#include "codec/tile_schedulers.cuh"
#include "ops/gradient/gradient_sum_cuda.cuh"
#include "ops/optimizer/adamw_cuda.h"

namespace agoq::ops::cuda {
namespace {

using namespace codec::cuda;
using codec::Codec;

constexpr int kThreads = TensorListScheduler::kThreads;
constexpr int kTile = 128;  // blocks of numbers for a block of threads

// A weight in any form: bf16 and correction, or fp32 with or without its bf16 copy.
struct WeightView {
  Bf16* value = nullptr;
  Bf16* correction = nullptr;  // bits of int16
  float* exact = nullptr;

  WeightView() = default;
  explicit WeightView(const Weight& w) {
    if (w.value.dtype == DType::BF16) value = w.value.as<Bf16>();
    if (w.correction) correction = reinterpret_cast<Bf16*>(w.correction.as<int16_t>());
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
  QuantPtr m, v;
  ListLayout blocks;
  ListOffsets whole;
  uint32_t tensor = 0;
  float decay = 1;
};

// Which forms of a weight code is for: all of them, or the split one, which most weights have.
enum class Form { Any, Split };
template <Form kForm>
__device__ bool is_split(const WeightView& w) {
  return kForm == Form::Split || w.correction;
}

// Eight numbers of a weight as they lie in memory.
template <Form kForm>
struct FetchedWeight {
  uint4 value, correction;
  Float8 exact;
};
template <Form kForm, class P>
__device__ FetchedWeight<kForm> fetch(const WeightView& w, const P& tile) {
  FetchedWeight<kForm> fetched;
  if (is_split<kForm>(w)) {
    fetched.value = fetch8(numbers_of(w.value, tile), tile.n);
    fetched.correction = fetch8(numbers_of(w.correction, tile), tile.n);
  } else {
    fetched.exact = fetch8(numbers_of(w.exact, tile), tile.n);
  }
  return fetched;
}
template <Form kForm>
__device__ void decode(const WeightView& w, const FetchedWeight<kForm>& fetched, FloatVec8& p) {
  if (!is_split<kForm>(w)) return unpack8(fetched.exact, p);
  unpack8(fetched.value, p);
  const uint32_t pairs[4] = {fetched.correction.x, fetched.correction.y, fetched.correction.z, fetched.correction.w};
#pragma unroll
  for (int i = 0; i < kGroup; ++i) {  // join_fp32
    const uint32_t correction = i % 2 ? static_cast<uint32_t>(static_cast<int32_t>(pairs[i / 2]) >> 16)
                                      : codec::bytes_of(pairs[i / 2], 0, 0x9910u);  // each with its sign
    p[i] = __uint_as_float(__float_as_uint(p[i]) + correction);
  }
}

template <Form kForm, class P>
__device__ void store(const WeightView& w, const P& tile, const FloatVec8& p) {
  if (!is_split<kForm>(w)) {
    store8(numbers_of(w.exact, tile), tile.n, p);
    if (!w.value) return;
  }
  uint32_t value[4], correction[4];  // split_fp32, two at a time
#pragma unroll
  for (int i = 0; i < kGroup; i += 2) {
    const uint32_t first = __float_as_uint(p[i]), second = __float_as_uint(p[i + 1]);
    value[i / 2] = codec::bytes_of(first + 0x8000u, second + 0x8000u, 0x7632u);
    correction[i / 2] = codec::bytes_of(first, second, 0x5410u);
  }
  put8(numbers_of(w.value, tile), tile.n, make_uint4(value[0], value[1], value[2], value[3]));
  if (is_split<kForm>(w))
    put8(numbers_of(w.correction, tile), tile.n,
         make_uint4(correction[0], correction[1], correction[2], correction[3]));
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

// All that a lane reads for a tile.
template <class G, class M, class V, Form kForm>
struct LaneOperands {
  Fetched<G> grad;
  FetchedWeight<kForm> weight;
  Fetched<M> m;
  Fetched<V> v;

  template <class P>
  __device__ void load(const Parameter& p, const P& tile) {
    grad = fetch<G>(p.grad.first, tile);
    weight = fetch<kForm>(p.weight, tile);
    m = fetch<M>(p.m, tile);
    v = fetch<V>(p.v, tile);
  }
};

// The gradient, summed and times `factor`.
template <class G, bool kSum, class P>
__device__ void decode_gradient(const Fetched<G>& fetched, const Pieces& pieces, const P& tile, float factor,
                                FloatVec8& g) {
  if constexpr (kSum) {
    decode<G>(fetched, g);
    add_others<G>(pieces, tile, g);
#pragma unroll
    for (float& number : g) number *= factor;
  } else {
    decode_times<G>(fetched, factor, g);
  }
}

// A moment to be encoded has a finite square, or the block's other one is infinite and marks it as broken: so a
// format's limits need no care.
__device__ codec::Bounded bounded(const Philox4& words) {
  codec::Bounded draws;
  draws.words = words;
  return draws;
}

// What all tiles of a step have in common.
struct UpdateStep {
  const AdamWFactors& factors;
  const codec::PreparedRng& draws;
  UpdateDivisor divisor;
  float of_gradient;
  __device__ UpdateStep(const UpdateScalars& s, const AdamWFactors& f, const codec::PreparedRng& d)
      : factors(f), draws(d), divisor(s, f), of_gradient(f.h * s.gradient_scale) {}
};

// The numbers of a lane.
struct LaneNumbers {
  FloatVec8 h, m, v, p;  // h, m and v times what the step multiplies them by; of √v, where that is kept

  template <class G, class M, class V, bool kSum, Form kForm, class P>
  __device__ void decode_from(const LaneOperands<G, M, V, kForm>& fetched, const Parameter& param, const P& tile,
                              const UpdateStep& step) {
    const AdamWFactors& f = step.factors;
    decode_gradient<G, kSum>(fetched.grad, param.grad, tile, step.of_gradient, h);
    decode_scaled<M>(fetched.m, f.beta1, m);
    decode_scaled<V>(fetched.v, V::kScaled ? f.root_beta2 : f.beta2, v);
    decode<kForm>(param.weight, fetched.weight, p);
  }
};

// Moments exactly as on the CPU; their root, and so the weight, within two roundings.
template <class M, class V, Form kForm, class P>
__device__ void update(const Parameter& param, const P& tile, LaneNumbers& x, const UpdateStep& step) {
  const AdamWFactors& f = step.factors;
#pragma unroll
  for (int i = 0; i < kGroup; ++i) {
    x.m[i] = fmaf(f.m_part, x.h[i], x.m[i]);
    const float v = fmaf(x.h[i], x.h[i], V::kScaled ? x.v[i] * x.v[i] : x.v[i]), root = fast_sqrt(v);
    x.p[i] = fmaf(-x.m[i], fast_reciprocal(fmaf(root, step.divisor.of_root, step.divisor.eps)), x.p[i] * param.decay);
    x.v[i] = V::kScaled ? root : v;
  }
  store<kForm>(param.weight, tile, x.p);
  const auto block = static_cast<uint64_t>(param.whole.block(tile.block));
  const Philox4 words = step.draws.of(param.tensor, block * kLanes + static_cast<uint64_t>(tile.lane));
  encode<M>(param.m, tile, x.m, bounded(words));
  encode<V>(param.v, tile, x.v, bounded(codec::halves_exchanged(words)));
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
  const auto mine = TensorListScheduler::of_tile<kTile>(tile - list.first[tensor], p.blocks.count);
  if (p.blocks.whole_pairs() && p.weight.correction) {
    const auto place = [&](int block) { return ListLayout::place_whole(block, lane); };
    LaneOperands<G, M, V, Form::Split> next;  // under way while a tile is computed
    if (mine.first + slot < mine.end) next.load(p, place(mine.first + slot));
    for (int block = mine.first + slot; block < mine.end; block += mine.step) {
      LaneNumbers x;
      x.decode_from<G, M, V, kSum>(next, p, place(block), step);
      // The next tile is read behind the decoding of this one. Otherwise both are in registers at once, and the
      // compiler copies one.
      __syncwarp();
      if (block + mine.step < mine.end) next.load(p, place(block + mine.step));
      update<M, V, Form::Split>(p, place(block), x, step);
    }
  } else {  // a warp has two blocks and stays whole: the second may lie beyond the last one
    for (int block = mine.first + slot; (block & ~1) < mine.end; block += mine.step) {
      const ListTile place = p.blocks.place(block, lane);
      LaneOperands<G, M, V, Form::Any> fetched;
      fetched.load(p, place);
      LaneNumbers x;
      x.decode_from<G, M, V, kSum>(fetched, p, place, step);
      update<M, V, Form::Any>(p, place, x, step);
    }
  }
}

// Squared norms [ranks, columns].
struct RankSquares {
  const float* numbers;
  int64_t ranks, columns;
};
constexpr int kDecideThreads = 512;
constexpr uint32_t kNone = UINT32_MAX;  // of the places of squares

// A thread has a column, which it adds up rank by rank, and thread 0 adds the columns up: an order that does not depend
// on the number of threads. Loads of several ranks are on their way before the first is added.
__global__ void __launch_bounds__(kDecideThreads)
    decide_from(const RankSquares squares, double lr, const AdamWConfig config, UpdateScalars* scalars) {
  __shared__ double of_column[kDecideThreads];
  __shared__ uint32_t first_of_column[kDecideThreads];  // that is not finite
  double sum = 0;
  uint32_t first = kNone;
  for (int64_t begin = 0; begin < squares.columns; begin += kDecideThreads) {
    const int columns = static_cast<int>(min(squares.columns - begin, int64_t{kDecideThreads}));
    const int mine = static_cast<int>(threadIdx.x);
    if (mine < columns) {
      double total = 0;
      uint32_t broken = kNone;
#pragma unroll 16
      for (int64_t rank = 0; rank < squares.ranks; ++rank) {
        const int64_t place = rank * squares.columns + begin + mine;
        const float square = squares.numbers[place];
        total += square;
        if (!isfinite(square)) broken = min(broken, static_cast<uint32_t>(place));
      }
      of_column[mine] = total;
      first_of_column[mine] = broken;
    }
    __syncthreads();
    if (mine == 0)
      for (int i = 0; i < columns; ++i) sum += of_column[i], first = min(first, first_of_column[i]);
    __syncthreads();
  }
  if (threadIdx.x == 0) decide(*scalars, sum, first + 1, lr, config);  // none: 0
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
              QuantPtr(state.m),
              QuantPtr(state.v),
              ListLayout(state.m),
              ListOffsets(state.m, state.global_offset),
              state.tensor,
              state.decay ? factors.decay : 1.0f};
  p.blocks.aligned &= p.weight.aligned() && p.grad.aligned() && p.m.aligned() && p.v.aligned();
  return p;
}

}  // namespace

void decide_update(const Context& ctx, const Tensor& squares, double lr, const AdamWConfig& config,
                   UpdateScalars* scalars) {
  agoq::cuda::launch(ctx, decide_from, 1, kDecideThreads,
                     RankSquares{squares.as<float>(), squares.rows(), squares.cols()}, lr, config, scalars);
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
