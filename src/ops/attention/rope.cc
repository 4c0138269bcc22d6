#include "ops/attention/rope.h"

#include <cmath>
#include <numbers>

#include "ops/attention/rope_cpu.h"
#include "ops/attention/rope_cuda.h"
#include "ops/cpu.h"
#include "ops/linear/fp8.h"

namespace agoq::ops {
namespace {

// Rotation per position of pair i, in fp32 in the order of operations of Hugging Face transformers.
float inverse_frequency(const RopeSpec& spec, int64_t i) {
  const float exponent = static_cast<float>(2 * i) / static_cast<float>(spec.dim);
  const float frequency = 1.0f / static_cast<float>(std::pow(spec.theta, static_cast<double>(exponent)));
  if (!spec.llama3) return frequency / static_cast<float>(spec.linear_factor);

  // LLaMA 3.1: long waves are slowed down by `factor`, short ones stay, those between are interpolated.
  const Llama3Scaling& s = *spec.llama3;
  const auto original = static_cast<float>(s.original_max_positions);
  const auto low = static_cast<float>(s.low_freq_factor), high = static_cast<float>(s.high_freq_factor);
  const auto factor = static_cast<float>(s.factor);
  const float wave = 2 * std::numbers::pi_v<float> / frequency;
  if (wave > original / low) return frequency / factor;
  if (wave < original / high) return frequency;
  const float smooth = (original / wave - low) / (high - low);
  return (1 - smooth) * frequency / factor + smooth * frequency;
}

void check(const Context& ctx, const Tensor& qkv, const Heads& heads, const Tensor& table, const char* op) {
  require(qkv.shape.rank() == 2 && qkv.cols() == heads.cols(),
          "{}: qkv {} does not hold {} query and {} key/value heads of {}", op, qkv.shape.text(), heads.query, heads.kv,
          heads.dim);
  require(heads.dim % 2 == 0, "{}: the head dimension {} must be even", op, heads.dim);
  require(table.shape.rank() == 2 && table.cols() == heads.dim && table.dtype == DType::F32,
          "{}: the table is {} {}, not fp32 [positions, {}]", op, name_of(table.dtype), table.shape.text(), heads.dim);
  require(ctx.positions.count() == qkv.rows() && ctx.positions.dtype == DType::I32,
          "{}: positions {} {} for {} tokens; they are int32 [T]", op, name_of(ctx.positions.dtype),
          ctx.positions.shape.text(), qkv.rows());
}

void rotate(const Context& ctx, const Tensor& qkv, const Heads& heads, const Tensor& table, float sign,
            const char* op) {
  check(ctx, qkv, heads, table, op);
  if (ctx.meta()) return;
  Timed timed(ctx.profile, Work::Elementwise, op);
  if constexpr (kCudaBuild)
    if (ctx.cuda()) return cuda::rotate(ctx, qkv, heads.query + heads.kv, heads.dim, table, sign);
  cpu::require_cpu(ctx, op);
  cpu::rotate(qkv, heads.query + heads.kv, heads.dim, ctx.positions, table, sign);
}

}  // namespace

void fill_rope_table(const RopeSpec& spec, const Tensor& table) {
  require(spec.dim > 0 && spec.dim % 2 == 0, "rope: the head dimension {} must be even", spec.dim);
  require(table.shape.rank() == 2 && table.cols() == spec.dim && table.dtype == DType::F32,
          "rope: the table is {} {}, not fp32 [positions, {}]", name_of(table.dtype), table.shape.text(), spec.dim);
  if (table.device == Device::Meta) return;
  require(table.device == Device::Cpu, "rope: the table is filled on the CPU, not on {}", name_of(table.device));
  const int64_t half = spec.dim / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float frequency = inverse_frequency(spec, i);
    for (int64_t position = 0; position < table.rows(); ++position) {
      const double angle = static_cast<float>(position) * frequency;  // rounded to fp32 as there
      float* row = table.as<float>() + position * spec.dim;
      row[i] = static_cast<float>(std::cos(angle));
      row[half + i] = static_cast<float>(std::sin(angle));
    }
  }
}

void rope(const Context& ctx, const Tensor& qkv, const Heads& heads, const Tensor& table) {
  rotate(ctx, qkv, heads, table, 1, "rope");
}

void rope_backward(const Context& ctx, const Tensor& dqkv, const Heads& heads, const Tensor& table) {
  rotate(ctx, dqkv, heads, table, -1, "rope_backward");
}

Operand rope_backward_input(const Context& ctx, const Tensor& dqkv, const Heads& heads, const Tensor& table,
                            bool in_place_too) {
  check(ctx, dqkv, heads, table, "rope_backward");
  const Operand rows = fp8_gradient_input(ctx, dqkv.rows(), dqkv.cols());
  if (rows.data && written_as_made(ctx, rows, dqkv.cols()) && cuda::rotates_rows(heads)) {
    if constexpr (kCudaBuild) {
      Timed timed(ctx.profile, Work::Elementwise, "rope_backward");
      if (ctx.cuda()) cuda::rotate_back_rows(ctx, dqkv, heads, table, rows, in_place_too);
    }
    return rows;
  }
  rope_backward(ctx, dqkv, heads, table);
  if (!rows.data) return dqkv;
  to_fp8_into(ctx, dqkv, rows);
  return rows;
}

}  // namespace agoq::ops
