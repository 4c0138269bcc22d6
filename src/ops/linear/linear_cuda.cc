#include "ops/linear/linear_cuda.h"

#include "ops/linear/gemm_library_cuda.h"

namespace agoq::ops::cuda {

void multiply(const Context& ctx, const Product& p, const Tensor& workspace) {
  if (p.c.count() == 0) return;
  const DType a = p.a.dtype(), b = p.b.dtype();
  if (is_fp8(a))
    require((a == DType::E4M3 || b == DType::E4M3) && p.a.major == Major::K && p.b.major == Major::K,
            "a GPU multiplies e4m3 by e4m3 or e5m2 if k is the major of both, not {} by {}", name_of(a), name_of(b));
  else
    require(a == b && (a == DType::BF16 || p.c.dtype == DType::F32),
            "a GPU multiplies bf16 into bf16 or fp32 and fp32 into fp32, not {} times {} into {}", name_of(a),
            name_of(b), name_of(p.c.dtype));
  for (const Tensor* t : {&p.residual, &p.bias})
    require(!*t || t->dtype == p.c.dtype, "on a GPU residual and bias have the type of the result, {}, not {}",
            name_of(p.c.dtype), name_of(t->dtype));
  require(!p.residual || p.beta == 0, "on a GPU a product adds to its target or a residual, not to both");
  ctx.gpu().library<GemmLibrary>().multiply(ctx, p, workspace);
}

}  // namespace agoq::ops::cuda
