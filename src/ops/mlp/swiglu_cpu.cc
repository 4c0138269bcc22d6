#include "ops/mlp/swiglu_cpu.h"

#include "ops/cpu.h"

namespace agoq::ops::cpu {
namespace {

void forward_row(const float* __restrict gate, const float* __restrict up, int64_t n, float* __restrict h) {
  for (int64_t i = 0; i < n; ++i) h[i] = gate[i] * sigmoid(gate[i]) * up[i];
}

// silu(x) = x·s(x), silu'(x) = s·(1 + x·(1 - s)).
template <class T>
void backward_row(const T* __restrict dh, const float* __restrict gate, const float* __restrict up, int64_t n,
                  T* __restrict d_gate, T* __restrict d_up, T* __restrict h) {
  for (int64_t i = 0; i < n; ++i) {
    const float s = sigmoid(gate[i]), silu = gate[i] * s, d = to_float(dh[i]);
    d_gate[i] = from_float<T>(d * up[i] * (s * (1.0f + gate[i] * (1.0f - s))));
    d_up[i] = from_float<T>(d * silu);
    h[i] = from_float<T>(silu * up[i]);
  }
}

}  // namespace

void swiglu(const Tensor& gate_up, const codec::Quantized& keep_gate_up, const codec::Quantized& keep_h,
            const Tensor& h, const Tensor& workspace) {
  by_type(gate_up.dtype, [&]<class T> {
    const int64_t width = h.cols();
    parallel_for(h.rows(), [&](int64_t t, int thread) {
      float* mine = thread_row(workspace, thread);
      const float* gate = load_row(gate_up.as<T>() + t * 2 * width, 2 * width, mine);
      T* out = h.as<T>() + t * width;
      float* row = open_row(out, mine + 2 * width);
      forward_row(gate, gate + width, width, row);
      store_row(row, width, out);
      if (keep_gate_up.kept()) codec::encode_row(keep_gate_up, t, gate, codec::Rounding::nearest());
      if (keep_h.kept()) codec::encode_row(keep_h, t, load_row(out, width, row), codec::Rounding::nearest());
    });
  });
}

void swiglu_backward(const Tensor& dh, const codec::Quantized& kept_gate_up, const codec::Quantized& kept_h,
                     const SwigluGradients& out, const Tensor& workspace) {
  by_type(dh.dtype, [&]<class T> {
    const int64_t width = dh.cols();
    parallel_for(dh.rows(), [&](int64_t t, int thread) {
      float* gate = thread_row(workspace, thread);
      T* d_gate = out.d_gate_up.as<T>() + t * 2 * width;
      T* h = out.h.as<T>() + t * width;
      codec::decode_row(kept_gate_up, t, gate);
      backward_row(dh.as<T>() + t * width, gate, gate + width, width, d_gate, d_gate + width, h);
      if (!kept_h.kept()) return;
      float* row = open_row(h, gate + 2 * width);
      codec::decode_row(kept_h, t, row);
      store_row(row, width, h);
    });
  });
}

}  // namespace agoq::ops::cpu
