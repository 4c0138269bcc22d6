// What summing gradients over W ranks does to them, by the format in which they travel.
//
//   build/bench/reduction_error | python3 -m json.tool
//
// Every rank has a gradient g_r = signal + noise_r, [rows, cols] in fp32. Its sum over the first W ranks is compared
// with the same sum in fp64, s:
//
//   error  = sqrt(Σ (got - s)²) / sqrt(Σ s²)
//   signed = Σ (got - s) · sign(s) / Σ |s|      what the sum has lost (-) or gained (+) in size
//
// QuanGrad is the program's own exchange (parallel/gradient_exchange.h): ranks are threads, each encodes its gradient
// once. Sharded, the sum is read in fp32 where it is needed; in the all-reduce form it is encoded once more. The
// others are rings: the sum of slice j starts at rank j + 1 and is rounded to the ring's format at every hop.
#include <fmt/format.h>
#include <omp.h>

#include <CLI/CLI.hpp>
#include <cmath>
#include <functional>
#include <nlohmann/json.hpp>
#include <thread>
#include <vector>

#include "comm/transport/local_transport.h"
#include "ops/gradient/reduce_pieces.h"
#include "parallel/gradient_exchange.h"

namespace agoq::bench {
namespace {

using codec::Codec;
using codec::Quantized;
using Values = std::vector<float>;

struct Options {
  int64_t rows = 256, cols = 1024;
  int most_ranks = 64;
  uint64_t seed = 1;
};

// What ranks have in common, in units of the noise, and whether single numbers are far out.
struct Input {
  const char* name;
  float signal;
  bool heavy_tailed;
};
constexpr Input kInputs[] = {{"independent", 0.0f, false}, {"correlated", 0.5f, false}, {"heavy-tailed", 0.5f, true}};

// Gaussian; heavy-tailed: Student's t with 3 degrees of freedom. Stream 0 is the signal, 1 + r the noise of rank r.
Values invent(const Options& options, bool heavy_tailed, uint32_t stream) {
  const RandomKey key{options.seed, RngStream::Initialization, 0, 0, stream};
  Values values(static_cast<size_t>(options.rows * options.cols));
  for (size_t i = 0; i < values.size(); ++i) {
    const Philox4 words = key.draw(i);
    const auto [x, a] = normal_pair(words[0], words[1]);
    const auto [b, c] = normal_pair(words[2], words[3]);
    values[i] = heavy_tailed ? x / std::sqrt((a * a + b * b + c * c) / 3) : x;
  }
  return values;
}

// Gradients of all ranks, and where they lie.
struct Gradients {
  int64_t rows = 0;
  codec::RowBlocks row;
  std::vector<Values> of_rank;

  int ranks() const { return static_cast<int>(of_rank.size()); }
  size_t size() const { return of_rank.front().size(); }
  Tensor tensor(int rank) const { return host_tensor(of_rank[static_cast<size_t>(rank)].data(), {rows, row.cols}); }
  Gradients first(int ranks) const { return {rows, row, {of_rank.begin(), of_rank.begin() + ranks}}; }
};

Gradients invent(const Options& options, const Input& input) {
  Gradients g{options.rows, codec::RowBlocks(options.cols), {}};
  const Values signal = invent(options, input.heavy_tailed, 0);
  for (int r = 0; r < options.most_ranks; ++r) {
    g.of_rank.push_back(invent(options, input.heavy_tailed, static_cast<uint32_t>(1 + r)));
    for (size_t i = 0; i < signal.size(); ++i) g.of_rank.back()[i] += input.signal * signal[i];
  }
  return g;
}

struct QuanGrad {
  Codec codec;
  bool stochastic, sharded;
};

// One rank: its rows of the sum -> `sum`.
void quangrad_rank(comm::Transport& transport, const Gradients& g, const QuanGrad& how, Values& sum) {
  omp_set_num_threads(1);
  const int rank = transport.rank(), ranks = transport.size();
  const int64_t slice = parallel::slice_rows(g.rows, ranks);
  const int64_t staging = parallel::GradientExchange::staging_bytes(how.codec, slice * ranks, g.row);
  const size_t workspace = size_t{1} << 20;
  Arena arena(Device::Cpu, 3 * static_cast<size_t>(staging) + workspace);
  Context ctx(arena, Device::Cpu, DType::F32);
  ctx.random.seed = 99;
  std::vector<int> everyone(static_cast<size_t>(ranks));
  for (int r = 0; r < ranks; ++r) everyone[static_cast<size_t>(r)] = r;
  const comm::ProcessGroup group(transport, everyone, 0);

  const parallel::SlicedGradient gradient{
      codec::allocate(arena, Owner::Operands, how.codec, slice * ranks, g.row), g.rows, slice, 0, {}, how.stochastic};
  RandomKey key = ctx.random;
  key.micro_batch = 2 * static_cast<uint32_t>(rank);  // as micro-batches of different ranks
  codec::encode(ctx, g.tensor(rank), gradient.storage.row_range(0, g.rows),
                how.stochastic ? codec::Rounding::random(key) : codec::Rounding::nearest());
  parallel::GradientExchange exchange(arena, how.codec, false, {staging, 0});
  exchange.start(ctx, group, gradient);
  exchange.finish(ctx);

  const model::Range rows = parallel::row_slice(g.rows, ranks, rank);
  Quantized out;
  out.codec = Codec::Fp32;
  out.rows = rows.count();
  out.row = g.row;
  out.device = Device::Cpu;
  const Tensor numbers = host_tensor(sum.data() + rows.begin * g.row.cols, {rows.count(), g.row.cols});
  out.codes = Tensor{numbers.data, DType::U8, Device::Cpu, {rows.count(), g.row.cols * int64_t{sizeof(float)}}};
  if (how.sharded) {
    const ops::GradientSum pieces{gradient.storage.row_range(0, rows.count()), ranks, slice};
    ops::sum_pieces(ctx, pieces, out, codec::Rounding::nearest());
  } else {
    exchange.gather_sums(ctx, group, gradient);
    codec::decode(ctx, gradient.storage.row_range(rows.begin, rows.end), numbers);
  }
}

Values quangrad(const Gradients& g, const QuanGrad& how) {
  Values sum(g.size());
  comm::LocalWorld world(g.ranks());
  std::vector<std::thread> ranks;
  for (int r = 0; r < g.ranks(); ++r) ranks.emplace_back([&, r] { quangrad_rank(world.transport(r), g, how, sum); });
  for (std::thread& rank : ranks) rank.join();
  return sum;
}

// Rows of numbers through a format and back, to nearest.
void round_to(const Context& ctx, Codec codec, const Tensor& x) {
  if (codec == Codec::Fp32) return;
  Scope scope(ctx);
  const Quantized q = codec::push(ctx, codec, x.rows(), codec::RowBlocks(x.cols()));
  codec::encode(ctx, x, q);
  codec::decode(ctx, q, x);
}

Values ring(const Gradients& g, Codec codec) {
  Arena arena(Device::Cpu, 2 * sizeof(float) * g.size() + (size_t{1} << 20));
  const Context ctx(arena, Device::Cpu, DType::F32);
  Values sum(g.size()), next_sum(g.size());
  for (int j = 0; j < g.ranks(); ++j) {
    const model::Range rows = parallel::row_slice(g.rows, g.ranks(), j);
    if (rows.count() == 0) continue;
    const auto slice_of = [&](Values& v) {
      return host_tensor(v.data(), {g.rows, g.row.cols}).row_range(rows.begin, rows.end);
    };
    const Tensor total = slice_of(sum), next = slice_of(next_sum);
    for (int hop = 1; hop <= g.ranks(); ++hop) {
      const Tensor own = g.tensor((j + hop) % g.ranks()).row_range(rows.begin, rows.end);
      std::copy_n(own.as<float>(), own.count(), next.as<float>());
      round_to(ctx, codec, next);
      for (int64_t i = 0; i < own.count(); ++i) total.as<float>()[i] += next.as<float>()[i];
      round_to(ctx, codec, total);
    }
  }
  return sum;
}

struct Method {
  const char* name;
  std::function<Values(const Gradients&)> sum;
};

std::vector<Method> methods() {
  const auto quan = [](Codec codec, bool stochastic, bool sharded) {
    return [=](const Gradients& g) { return quangrad(g, {codec, stochastic, sharded}); };
  };
  const auto ring_in = [](Codec codec) { return [=](const Gradients& g) { return ring(g, codec); }; };
  return {{"QuanGrad int8, sharded", quan(Codec::Int8, true, true)},
          {"QuanGrad int8, all-reduce", quan(Codec::Int8, true, false)},
          {"QuanGrad fp8, sharded", quan(Codec::Fp8, true, true)},
          {"QuanGrad fp8, all-reduce", quan(Codec::Fp8, true, false)},
          {"QuanGrad int8 to nearest, sharded", quan(Codec::Int8, false, true)},
          {"QuanGrad fp8 to nearest, sharded", quan(Codec::Fp8, false, true)},
          {"fp32 ring", ring_in(Codec::Fp32)},
          {"bf16 ring", ring_in(Codec::Bf16)},
          {"fp8 ring", ring_in(Codec::Fp8)}};
}

std::vector<double> exact_sum(const Gradients& g) {
  std::vector<double> sum(g.size());
  for (const Values& values : g.of_rank)
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += values[i];
  return sum;
}

struct Errors {
  double relative = 0, signed_share = 0;
};

Errors compare(const Values& got, const std::vector<double>& exact) {
  double squares = 0, norm = 0, towards = 0, size = 0;
  for (size_t i = 0; i < exact.size(); ++i) {
    const double error = got[i] - exact[i];
    squares += error * error;
    norm += exact[i] * exact[i];
    towards += std::copysign(1.0, exact[i]) * error;
    size += std::abs(exact[i]);
  }
  return {std::sqrt(squares / norm), towards / size};
}

void run(const Options& options) {
  nlohmann::ordered_json json = {{"rows", options.rows}, {"cols", options.cols}};
  for (const Input& input : kInputs) {
    const Gradients all = invent(options, input);
    for (int ranks = 2; ranks <= options.most_ranks; ranks *= 2) {
      const Gradients g = all.first(ranks);
      const std::vector<double> exact = exact_sum(g);
      for (const Method& method : methods()) {
        const Errors errors = compare(method.sum(g), exact);
        json["results"].push_back({{"input", input.name},
                                   {"method", method.name},
                                   {"ranks", ranks},
                                   {"error", errors.relative},
                                   {"signed", errors.signed_share}});
      }
    }
  }
  fmt::print("{}\n", json.dump(1));
}

}  // namespace
}  // namespace agoq::bench

int main(int argc, char** argv) try {
  CLI::App program("Error of gradients summed over ranks, by the format in which they travel.", "reduction_error");
  agoq::bench::Options options;
  program.add_option("--rows", options.rows, "of the gradient")->capture_default_str()->check(CLI::PositiveNumber);
  program.add_option("--cols", options.cols, "of the gradient")->capture_default_str()->check(CLI::PositiveNumber);
  program.add_option("--most-ranks", options.most_ranks, "2, 4, ... up to this")
      ->capture_default_str()
      ->check(CLI::Range(2, 1024));
  program.add_option("--seed", options.seed, "of the gradients")->capture_default_str();
  CLI11_PARSE(program, argc, argv);
  agoq::bench::run(options);
  return 0;
} catch (const std::exception& error) {
  fmt::print(stderr, "reduction_error: error: {}\n", error.what());
  return 1;
}
