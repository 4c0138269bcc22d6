#include "ops/linear/linear_cuda.h"

#include "ops/linear/gemm_library_cuda.h"

namespace agoq::ops::cuda {

void multiply(const Context& ctx, const Product& p, const Tensor& workspace) {
  if (p.c.count() == 0) return;
  require(p.a.dtype == p.b.dtype && (p.a.dtype == DType::BF16 || p.c.dtype == DType::F32),
          "a GPU multiplies bf16 into bf16 or fp32 and fp32 into fp32, not {} times {} into {}", name_of(p.a.dtype),
          name_of(p.b.dtype), name_of(p.c.dtype));
  for (const Tensor* t : {&p.residual, &p.bias})
    require(!*t || t->dtype == p.c.dtype, "on a GPU residual and bias have the type of the result, {}, not {}",
            name_of(p.c.dtype), name_of(t->dtype));
  require(!p.residual || p.beta == 0, "on a GPU a product adds to its target or a residual, not to both");
  ctx.gpu().library<GemmLibrary>().multiply(ctx, p, workspace);
}

}  // namespace agoq::ops::cuda
