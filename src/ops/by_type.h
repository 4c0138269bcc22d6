// From the type of an activation to a template's argument.
#pragma once

#include "base/tensor.h"

namespace agoq::ops {

// Calls f.operator()<float>() or f.operator()<Bf16>(), whichever the tensor holds:
//   by_type(x.dtype, [&]<class T> { kernel(x.as<T>(), ...); });
template <class F>
decltype(auto) by_type(DType dtype, F&& f) {
  require(dtype == DType::F32 || dtype == DType::BF16, "activations are fp32 or bf16, not {}", name_of(dtype));
  return dtype == DType::F32 ? f.template operator()<float>() : f.template operator()<Bf16>();
}

}  // namespace agoq::ops
