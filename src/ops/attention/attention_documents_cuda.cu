#include "device/cuda.h"
#include "ops/attention/attention_documents_cuda.h"
#include "ops/attention/attention_runs.h"

namespace agoq::ops::cuda {
namespace {

constexpr int kThreads = 256;

struct Expand {
  const int32_t* first;  // [count], then T
  int count, padded;
  int tokens;
  DocumentStrides strides;
  DocumentArrays to;
};

// Documents beyond the last are empty and begin where it ends.
__global__ void expand(Expand e) {
  const int i = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (i > e.padded) return;
  const int begin = i < e.count ? e.first[i] : e.tokens;
  const int end = i + 1 < e.count ? e.first[i + 1] : e.tokens;
  if (i < e.padded) e.to.lengths[i] = end - begin;
  e.to.q[i] = static_cast<int>(begin * e.strides.q);
  e.to.kv[i] = static_cast<int>(begin * e.strides.kv);
  e.to.o[i] = static_cast<int>(begin * e.strides.o);
  e.to.lse[i] = static_cast<int>(begin * e.strides.lse);
}

}  // namespace

DocumentArrays expand_documents(const Context& ctx, int64_t tokens, const DocumentStrides& strides, int32_t* ints) {
  const int64_t count = ctx.documents.count, padded = padded_documents(count);
  DocumentArrays to;
  const int64_t stride = document_ints(count) / kDocumentArrays;
  int32_t** const arrays[kDocumentArrays] = {&to.lengths, &to.q, &to.kv, &to.o, &to.lse};
  for (int32_t** array : arrays) {
    *array = ints;
    ints += stride;
  }
  const Expand e{ctx.documents.offsets.as<int32_t>(),
                 static_cast<int>(count),
                 static_cast<int>(padded),
                 static_cast<int>(tokens),
                 strides,
                 to};
  agoq::cuda::launch(ctx, expand, dim3(static_cast<unsigned>(padded / kThreads + 1)), dim3(kThreads), e);
  return to;
}

}  // namespace agoq::ops::cuda
