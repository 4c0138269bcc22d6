#include "ops/linear/weight.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "device/transfer.h"
#include "ops/cpu.h"
#include "ops/linear/weight_cpu.h"
#include "ops/linear/weight_cuda.h"

namespace agoq::ops {
namespace {

bool is_high(const Weight& w) {
  return w.value.dtype == DType::BF16 && !w.correction && !w.master;
}

void check(const Weight& w, const char* what) {
  const auto same_shape = [&](const Tensor& part) { return !part || part.shape == w.value.shape; };
  require(w.value && same_shape(w.correction) && same_shape(w.master),
          "{}: the parts of a weight differ in shape: {}, {}, {}", what, w.value.shape.text(),
          w.correction.shape.text(), w.master.shape.text());
  const bool split = w.value.dtype == DType::BF16 && w.correction && w.correction.dtype == DType::I16 && !w.master;
  const bool fp32 = w.value.dtype == DType::F32 && !w.correction && !w.master;
  const bool both = w.value.dtype == DType::BF16 && !w.correction && w.master && w.master.dtype == DType::F32;
  require(split || fp32 || both || is_high(w),
          "{}: a weight is bf16, alone or with int16 correction or fp32 master, or fp32 alone; its value is {}, {} "
          "correction, {} master",
          what, name_of(w.value.dtype), w.correction ? name_of(w.correction.dtype) : "no",
          w.master ? name_of(w.master.dtype) : "no");
}

constexpr int64_t kFloatsAtOnce = 1 << 21;  // of random numbers: 8 MiB

Tensor part_range(const Tensor& t, int64_t begin, int64_t end) {
  if (!t) return t;
  if (t.shape.rank() == 2) return t.row_range(begin, end);
  return t.view({t.count(), 1}).row_range(begin, end).view({end - begin});
}

// A weight's parts in host memory: themselves where they are, otherwise room for them.
class HostCopy {
 public:
  HostCopy(const Context& ctx, const Weight& w) : weight_(w) {
    for (Tensor* part : {&weight_.value, &weight_.correction, &weight_.master}) {
      if (!*part || !ctx.cuda()) continue;
      part->data = bytes_.emplace_back(std::make_unique_for_overwrite<uint8_t[]>(part->bytes())).get();
      part->device = Device::Cpu;
    }
  }
  const Weight& weight() const { return weight_; }
  // body(part of w, its copy), if there is one
  template <class Body>
  void for_parts(const Weight& w, Body&& body) const {
    if (bytes_.empty()) return;
    body(w.value, weight_.value);
    if (w.correction) body(w.correction, weight_.correction);
    if (w.master) body(w.master, weight_.master);
  }

 private:
  Weight weight_;
  std::vector<std::unique_ptr<uint8_t[]>> bytes_;
};

}  // namespace

Weight Weight::row_range(int64_t begin, int64_t end) const {
  return {part_range(value, begin, end), part_range(correction, begin, end), part_range(master, begin, end)};
}

Tensor in_compute_type(const Context& ctx, const Weight& w) {
  check(w, "in_compute_type");
  if (w.value.dtype == ctx.compute()) return w.value;
  require(!is_high(w), "in_compute_type: only the bf16 half of a weight {} is here, and fp32 is asked for",
          w.value.shape.text());
  if (w.master && ctx.compute() == DType::F32) return w.master;
  const Tensor out = ctx.empty(w.value.shape);
  if (ctx.meta()) return out;
  Timed timed(ctx.profile, Work::Elementwise);
  if constexpr (kCudaBuild) {
    if (ctx.cuda()) {
      cuda::read_rows(ctx, w, {}, out);
      return out;
    }
  }
  cpu::require_cpu(ctx, "in_compute_type");
  cpu::read_weight(w, out);
  return out;
}

void store_fp32(const Context& ctx, const Weight& w, const float* values) {
  check(w, "store_fp32");
  if (ctx.meta()) return;
  const HostCopy copy(ctx, w);
  const int64_t bad = cpu::write_weight(copy.weight(), values);
  require(bad < 0,
          "store_fp32: element {} of a weight {} is {}, which bf16 cannot hold (largest finite: 3.39e38); "
          "the source is damaged, or keep the weights in fp32",
          bad, w.value.shape.text(), bad < 0 ? 0.0f : values[bad]);
  copy.for_parts(w, [&](const Tensor& there, const Tensor& here) { upload(ctx, here.data, there); });
}

void load_fp32(const Context& ctx, const Weight& w, float* values) {
  check(w, "load_fp32");
  require(!ctx.meta(), "load_fp32: the weights of a dry run have no values");
  require(!is_high(w), "load_fp32: only the bf16 half of a weight {} is here", w.value.shape.text());
  const HostCopy copy(ctx, w);
  copy.for_parts(w, [&](const Tensor& there, const Tensor& here) { download(ctx, there, here.data); });
  cpu::read_weight(copy.weight(), host_tensor(values, w.value.shape));
}

void fill_normal(const Context& ctx, const Weight& w, const NormalRows& rows) {
  check(w, "fill_normal");
  require(rows.first_col >= 0 && rows.first_col + w.value.cols() <= rows.cols,
          "fill_normal: columns {} to {} of a matrix with {}", rows.first_col, rows.first_col + w.value.cols(),
          rows.cols);
  if (ctx.meta()) return;
  if constexpr (kCudaBuild)
    if (ctx.cuda()) return cuda::fill_normal(ctx, w, rows);
  cpu::require_cpu(ctx, "fill_normal");
  const int64_t cols = w.value.cols(), step = std::max<int64_t>(kFloatsAtOnce / cols, 1);
  const auto values = std::make_unique_for_overwrite<float[]>(static_cast<size_t>(step * cols));
  NormalRows part = rows;
  for (int64_t begin = 0; begin < w.value.rows(); begin += step, part.first_row += step) {
    const Weight some = w.row_range(begin, std::min(begin + step, w.value.rows()));
    cpu::normal_rows(part, host_tensor(values.get(), some.value.shape));
    store_fp32(ctx, some, values.get());
  }
}

}  // namespace agoq::ops
