// From a codec's name to its format (codec/formats.h): the only switch over codecs.
#pragma once

#include <utility>

#include "base/error.h"
#include "codec/formats.h"

namespace agoq::codec {

// Calls fn.operator()<F>() with the format of `codec`: dispatch(q.codec, [&]<class F>() { ... }).
template <class Fn>
decltype(auto) dispatch(Codec codec, Fn&& fn) {
  switch (codec) {
    case Codec::None:
      break;
    case Codec::Fp32:
      return fn.template operator()<Fp32>();
    case Codec::Bf16:
      return fn.template operator()<Bfloat16>();
    case Codec::Fp8:
      return fn.template operator()<Fp8>();
    case Codec::Int8:
      return fn.template operator()<Int8>();
    case Codec::Fp6:
      return fn.template operator()<Fp6>();
    case Codec::Fp5:
      return fn.template operator()<Fp5>();
    case Codec::Fp4:
      return fn.template operator()<Fp4>();
    case Codec::Nf4:
      return fn.template operator()<Nf4>();
    case Codec::Int4:
      return fn.template operator()<Int4>();
    case Codec::Dyn8:
      return fn.template operator()<Dyn8>();
    case Codec::Dyn8Unsigned:
      return fn.template operator()<Dyn8Unsigned>();
  }
  fail("codec '{}' has no codes: the tensor is recomputed, not kept; do not encode or decode it", name_of(codec));
}

}  // namespace agoq::codec
