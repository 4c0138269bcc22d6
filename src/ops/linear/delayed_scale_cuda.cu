#include <limits>

#include "ops/linear/delayed_scale_cuda.h"
#include "ops/linear/fp8_codes.cuh"

namespace agoq::ops::cuda {
namespace {

using agoq::cuda::PdlArgs;

constexpr int kThreads = 256;
constexpr float kLargest = std::numeric_limits<float>::max();

struct ScaleMaker {
  const float* amaxes;  // [ranks, sites]
  int ranks, sites, length;
  float* history;  // [sites, length]
  float* scales;   // of site i at i · scale_stride
  int scale_stride;
  float margin;
  bool remember, most_recent;
  Fp8Format formats[kScaleRoles];
};

// A CTA has a site.
__global__ void __launch_bounds__(kThreads) make_scale(const __grid_constant__ PdlArgs<ScaleMaker> given) {
  const ScaleMaker& s = given.wait();
  const int site = static_cast<int>(blockIdx.x);
  unsigned most = 0;  // as integers: a NaN is the largest of all
  for (int rank = 0; rank < s.ranks; ++rank) most = max(most, __float_as_uint(s.amaxes[rank * s.sites + site]));
  const float amax = __uint_as_float(most);
  const bool remember = s.remember && amax > 0 && amax <= kLargest;
  float* history = s.history + int64_t{site} * s.length;
  float counts = 0;
  // From the oldest on: what a number moves to has been read.
  for (int end = s.length; end > 0; end -= kThreads) {
    const int i = end - kThreads + static_cast<int>(threadIdx.x);
    const float moved = i < 0 ? 0 : !remember ? history[i] : i == 0 ? amax : history[i - 1];
    __syncthreads();
    if (i >= 0) history[i] = moved;
    if (!s.most_recent || i == 0) counts = fmaxf(counts, moved);
  }
  CtaMax cta_max;
  counts = cta_max(counts);
  if (threadIdx.x == 0)
    s.scales[site * s.scale_stride] = s.formats[site % kScaleRoles].scale_of(fminf(counts * s.margin, kLargest));
}

}  // namespace

void make_scales(const Context& ctx, const Tensor& amaxes, bool remember, const DelayedScaling& how,
                 const std::array<DType, kScaleRoles>& formats, const ScaleHistory& history) {
  ScaleMaker s{amaxes.as<float>(),
               static_cast<int>(amaxes.shape[0]),
               static_cast<int>(amaxes.cols()),
               static_cast<int>(how.history),
               history.amaxes.as<float>(),
               history.scales.as<float>(),
               static_cast<int>(history.scales.cols()),
               static_cast<float>(int64_t{1} << how.margin),
               remember,
               how.most_recent,
               {}};
  for (size_t role = 0; role < formats.size(); ++role) s.formats[role] = Fp8Format(formats[role]);
  agoq::cuda::launch(ctx, make_scale, dim3(static_cast<unsigned>(s.sites)), dim3(kThreads), s);
}

}  // namespace agoq::ops::cuda
