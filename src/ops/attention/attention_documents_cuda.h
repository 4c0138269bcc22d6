// What cuDNN is told of documents packed one behind the other: their lengths, and for each tensor where they begin.
#pragma once

#include "device/context.h"

namespace agoq::ops::cuda {

// Each points to padded_documents int32 numbers, of the offsets to one more; in elements of the tensor.
struct DocumentArrays {
  int32_t* lengths = nullptr;
  int32_t *q = nullptr, *kv = nullptr, *o = nullptr, *lse = nullptr;
};

// Elements from one token to the next, in the same order.
struct DocumentStrides {
  int64_t q = 0, kv = 0, o = 0, lse = 0;
};

// Fills `ints`, document_ints of them (attention_runs.h), from ctx.documents.
DocumentArrays expand_documents(const Context& ctx, int64_t tokens, const DocumentStrides& strides, int32_t* ints);

}  // namespace agoq::ops::cuda
