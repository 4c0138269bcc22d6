#include "codec/codec.h"

#include "codec/codec_cpu.h"
#include "codec/codec_cuda.h"
#include "device/transfer.h"

namespace agoq::codec {
namespace {

template <class Allocate>
Quantized make(Codec codec, Device device, int64_t rows, RowBlocks row, Allocate&& allocate) {
  require(rows >= 0 && row.cols > 0, "a quantized tensor needs rows and columns, not [{}, {}]", rows, row.cols);
  Quantized q{codec, device, rows, row, {}, {}};
  if (!q.kept()) return q;
  q.codes = allocate(DType::U8, Shape{rows, row_bytes(codec, row)});
  if (has_scales(codec)) q.scales = allocate(DType::BF16, Shape{rows, row.blocks()});
  return q;
}

int64_t aligned(int64_t bytes) {
  constexpr auto kUnit = static_cast<int64_t>(Arena::kAlignment);
  return (bytes + kUnit - 1) / kUnit * kUnit;
}

void check(const Context& ctx, const Quantized& q, const Tensor& x, const char* what) {
  require(q.kept(), "{}: the tensor is not kept (codec none): recompute it instead", what);
  require(x.shape.rank() > 0 && x.rows() == q.rows && x.cols() == q.row.cols,
          "{}: numbers of shape {} do not match codes of shape [{}, {}]", what, x.shape.text(), q.rows, q.row.cols);
  require(x.dtype == DType::F32 || x.dtype == DType::BF16, "{}: numbers must be fp32 or bf16, not {}", what,
          name_of(x.dtype));
  require(x.device == ctx.device() && q.device == ctx.device(), "{} on {}: numbers are on {}, codes on {}", what,
          name_of(ctx.device()), name_of(x.device), name_of(q.device));
}

}  // namespace

Quantized allocate(Arena& arena, Owner owner, Codec codec, int64_t rows, RowBlocks row) {
  return make(codec, arena.device(), rows, row,
              [&](DType dtype, Shape shape) { return arena.allocate(owner, dtype, shape); });
}

Quantized push(const Context& ctx, Codec codec, int64_t rows, RowBlocks row) {
  return make(codec, ctx.device(), rows, row, [&](DType dtype, Shape shape) { return ctx.empty(dtype, shape); });
}

Quantized view_in(const Tensor& bytes, Codec codec, int64_t rows, RowBlocks row) {
  require(bytes_in_view(codec, rows, row) <= bytes.count(), "{} bytes cannot hold [{}, {}] as {}", bytes.count(), rows,
          row.cols, name_of(codec));
  int64_t at = 0;
  return make(codec, bytes.device, rows, row, [&](DType dtype, Shape shape) {
    const Tensor part{bytes.data ? bytes.raw() + at : nullptr, dtype, bytes.device, shape};
    at = aligned(at + static_cast<int64_t>(part.bytes()));
    return part;
  });
}

int64_t bytes_in_view(Codec codec, int64_t rows, RowBlocks row) {
  if (codec == Codec::None) return 0;
  const int64_t scales = has_scales(codec) ? rows * row.blocks() * static_cast<int64_t>(sizeof(Bf16)) : 0;
  return aligned(rows * row_bytes(codec, row)) + aligned(scales);
}

void encode(const Context& ctx, const Tensor& x, const Quantized& out, const Rounding& rounding) {
  check(ctx, out, x, "encode");
  if (ctx.meta()) return;
  Timed timed(ctx.profile, Work::Codec);
  if constexpr (kCudaBuild)
    if (ctx.cuda()) return cuda::encode(ctx, x, out, rounding);
  encode_cpu(x, out, rounding);
}

void decode(const Context& ctx, const Quantized& in, const Tensor& out) {
  check(ctx, in, out, "decode");
  if (ctx.meta()) return;
  Timed timed(ctx.profile, Work::Codec);
  if constexpr (kCudaBuild)
    if (ctx.cuda()) return cuda::decode(ctx, in, out);
  decode_cpu(in, out);
}

void zero(const Context& ctx, const Quantized& q) {
  if (!q.kept()) return;
  Timed timed(ctx.profile, Work::Codec);
  agoq::zero(ctx, q.codes);
  if (q.scales) agoq::zero(ctx, q.scales);
}

void encode_row(const Quantized& q, int64_t row, const float* x, const Rounding& rounding) {
  encode_blocks_cpu(q, row, 0, q.row.blocks(), x, rounding);
}

void decode_row(const Quantized& q, int64_t row, float* x) {
  decode_blocks_cpu(q, row, 0, q.row.blocks(), x);
}

void encode_block(const Quantized& q, int64_t row, int64_t block, const float* x, const Rounding& rounding) {
  encode_blocks_cpu(q, row, block, block + 1, x, rounding);
}

void decode_block(const Quantized& q, int64_t row, int64_t block, float* x, float factor) {
  decode_blocks_cpu(q, row, block, block + 1, x, factor);
}

}  // namespace agoq::codec
