#include "bench/workbench.h"

#include <algorithm>
#include <vector>

#include "device/transfer.h"

namespace agoq::bench {
namespace {

constexpr int64_t kPool = 1 << 20;  // random numbers; a longer tensor repeats them
constexpr int64_t kSlab = 64;       // rows encoded at a time, so that little memory is needed beside the codes
constexpr RandomKey kKey{1, RngStream::Sampling, 0, 0, 0};

template <class Number>
std::vector<Number> pool(int64_t count) {
  std::vector<Number> numbers(static_cast<size_t>(count));
  for (size_t i = 0; i < numbers.size(); i += 2) {
    const Philox4 words = kKey.draw(i);
    const std::array<float, 2> pair = normal_pair(words[0], words[1]);
    numbers[i] = from_float<Number>(pair[0]);
    if (i + 1 < numbers.size()) numbers[i + 1] = from_float<Number>(pair[1]);
  }
  return numbers;
}

// The first `done` elements again and again.
void repeat(const Context& ctx, const Tensor& flat, int64_t done) {
  const Tensor rows = flat.view({flat.count(), 1});
  while (done < flat.count()) {
    const int64_t more = std::min(done, flat.count() - done);
    copy(ctx, rows.row_range(0, more), rows.row_range(done, done + more));
    done += more;
  }
}

template <class Number>
void fill_with(const Context& ctx, const Tensor& t) {
  const int64_t first = std::min(kPool, t.count());
  const std::vector<Number> numbers = pool<Number>(first);
  upload(ctx, numbers.data(), t.view({t.count(), 1}).row_range(0, first));
  repeat(ctx, t, first);
}

}  // namespace

Workbench::Workbench(Arena& arena, Device target, const parallel::RunSpec& run_spec)
    : ctx_(arena, target, run_spec.precision.compute) {
  const int64_t tokens = run_spec.tokens(), length = run_spec.sequence_length;
  std::vector<int32_t> positions, starts, offsets;
  for (int64_t t = 0; t < tokens; ++t) {
    positions.push_back(static_cast<int32_t>(t % length));
    starts.push_back(static_cast<int32_t>(t - t % length));
  }
  for (int64_t t = 0; t <= tokens; t += length) offsets.push_back(static_cast<int32_t>(t));
  ctx_.positions = on_device(positions);
  ctx_.document_start = on_device(starts);
  ctx_.documents = {length, run_spec.micro_batch_size, length, on_device(offsets)};
  ctx_.deterministic = run_spec.deterministic;
}

Tensor Workbench::numbers(DType dtype, Shape shape) const {
  const Tensor t = zeros(dtype, shape);
  fill(t);
  return t;
}

void Workbench::fill(const Tensor& t) const {
  if (ctx_.meta()) return;
  t.dtype == DType::BF16 ? fill_with<Bf16>(ctx_, t) : fill_with<float>(ctx_, t);
}

Tensor Workbench::integers(int64_t count, int64_t end) const {
  std::vector<int32_t> integers;
  for (int64_t i = 0; i < count; ++i)
    integers.push_back(static_cast<int32_t>(kKey.draw(static_cast<uint64_t>(i))[0] % static_cast<uint64_t>(end)));
  return on_device(integers);
}

Tensor Workbench::on_device(const std::vector<int32_t>& integers) const {
  const Tensor t = zeros(DType::I32, {static_cast<int64_t>(integers.size())});
  upload(ctx_, integers.data(), t);
  return t;
}

codec::Quantized Workbench::out(codec::Codec codec, int64_t rows, codec::RowBlocks row) const {
  return codec::allocate(arena(), Owner::Operands, codec, rows, row);
}

void Workbench::fill(const codec::Quantized& q) const {
  Scope scope(ctx_);
  const Tensor x = ctx_.empty({std::min(q.rows, kSlab), q.row.cols});
  fill(x);
  for (int64_t begin = 0; begin < q.rows; begin += kSlab) {
    const int64_t end = std::min(begin + kSlab, q.rows);
    codec::encode(ctx_, x.row_range(0, end - begin), q.row_range(begin, end));
  }
}

codec::Quantized Workbench::codes(codec::Codec codec, int64_t rows, codec::RowBlocks row) const {
  const codec::Quantized q = out(codec, rows, row);
  fill(q);
  return q;
}

ops::Operand Workbench::out(ops::OperandFormat format, int64_t rows, int64_t k) const {
  const int64_t padded = ops::padded_k(k, format.granularity);
  ops::Operand x{zeros(format.dtype, {rows, padded}),
                 zeros(DType::F32, ops::scale_shape(rows, padded, format.granularity)), format.granularity};
  if (format.granularity == ops::Granularity::Row) x.max_scale = zeros(DType::F32, {1});
  return x;
}

ops::Operand Workbench::codes(ops::OperandFormat format, int64_t rows, int64_t k) const {
  const ops::Operand x = out(format, rows, k);
  Scope scope(ctx_);
  const Tensor numbers = ctx_.empty({rows, k});
  fill(numbers);
  ops::to_fp8_into(ctx_, numbers, x);
  return x;
}

Tensor Workbench::rope_table(const ops::RopeSpec& spec, int64_t positions) const {
  const Tensor table = zeros(DType::F32, {positions, spec.dim});
  if (ctx_.meta()) return table;
  std::vector<float> values(static_cast<size_t>(table.count()));
  ops::fill_rope_table(spec, host_tensor(values.data(), table.shape));
  upload(ctx_, values.data(), table);
  return table;
}

}  // namespace agoq::bench
