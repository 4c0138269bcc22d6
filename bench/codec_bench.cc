// Speed of the codecs on one thread, beside memcpy: bytes per second of the fp32 numbers that are read or written. An
// array larger than the last-level cache shows what memory adds; a small one, the arithmetic alone.
#include <benchmark/benchmark.h>
#include <fmt/format.h>
#include <omp.h>

#include <cstring>

#include "base/philox.h"
#include "codec/codec.h"

namespace agoq::bench {
namespace {

using codec::Codec;
constexpr int64_t kCols = 4096;
constexpr int64_t kSmallRows = 16, kLargeRows = 8192;  // 256 KiB, 128 MiB

void fill_normal(const Tensor& x) {
  const RandomKey key{1, RngStream::Sampling, 0, 0, 0};
  float* numbers = x.as<float>();
  for (int64_t i = 0; i < x.count(); i += 2) {
    const Philox4 words = key.draw(static_cast<uint64_t>(i));
    const auto pair = normal_pair(words[0], words[1]);
    numbers[i] = pair[0];
    numbers[i + 1] = pair[1];
  }
}

// Numbers, their codes, and the memory of both.
struct Fixture {
  Fixture(Codec codec, int64_t rows)
      : arena(Device::Cpu, static_cast<size_t>(rows * kCols) * 2 * sizeof(float) + (size_t{1} << 20)),
        ctx(arena, Device::Cpu, DType::F32),
        x(arena.allocate(Owner::Operands, DType::F32, {rows, kCols})),
        q(codec::allocate(arena, Owner::Operands, codec, rows, codec::RowBlocks(kCols))) {
    fill_normal(x);
    codec::encode(ctx, x, q);
  }
  Arena arena;
  Context ctx;
  Tensor x;
  codec::Quantized q;
};

void count_bytes(benchmark::State& state, const Tensor& x) {
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(x.bytes()));
}

void encode(benchmark::State& state, int64_t rows, Codec codec, bool stochastic) {
  Fixture f(codec, rows);
  codec::Rounding rounding = codec::Rounding::nearest();
  if (stochastic) rounding = codec::Rounding::random({});
  for ([[maybe_unused]] auto _ : state) {
    codec::encode(f.ctx, f.x, f.q, rounding);
    benchmark::ClobberMemory();
  }
  count_bytes(state, f.x);
}

void decode(benchmark::State& state, int64_t rows, Codec codec) {
  Fixture f(codec, rows);
  for ([[maybe_unused]] auto _ : state) {
    codec::decode(f.ctx, f.q, f.x);
    benchmark::ClobberMemory();
  }
  count_bytes(state, f.x);
}

void copy(benchmark::State& state, int64_t rows) {
  Fixture f(Codec::Fp32, rows);
  for ([[maybe_unused]] auto _ : state) {
    std::memcpy(f.q.codes.data, f.x.data, f.x.bytes());
    benchmark::ClobberMemory();
  }
  count_bytes(state, f.x);
}

template <class Function, class... Arguments>
void add(const std::string& name, Function function, Arguments... arguments) {
  for (const auto& [size, rows] : {std::pair{"256KiB", kSmallRows}, std::pair{"128MiB", kLargeRows}})
    benchmark::RegisterBenchmark((name + "/" + size).c_str(), function, rows, arguments...)
        ->Unit(benchmark::kMicrosecond);
}

// Registered before benchmark_main parses the flags.
const bool registered = [] {
  omp_set_num_threads(1);
  add("memcpy", copy);
  for (const Codec codec : {Codec::Bf16, Codec::Fp8, Codec::Int8, Codec::Fp6, Codec::Fp5, Codec::Fp4, Codec::Nf4,
                            Codec::Int4, Codec::Dyn8, Codec::Dyn8Unsigned}) {
    const std::string name(codec::name_of(codec));
    add("encode/" + name, encode, codec, false);
    add("encode_stochastic/" + name, encode, codec, true);
    add("decode/" + name, decode, codec);
  }
  return true;
}();

}  // namespace
}  // namespace agoq::bench
