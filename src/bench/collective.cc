#include "bench/collective.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/text.h"
#include "bench/measure.h"
#include "device/stopwatch.h"
#include "device/transfer.h"

namespace agoq::bench {
namespace {

using codec::Codec;
using codec::Quantized;

constexpr int64_t kCols = 4096;
constexpr int64_t kInventedRows = 128;  // of a gradient; further ones repeat them

constexpr double kExchangeSample = 2e-3;  // seconds; far more than a clock's resolution
constexpr double kMostRuns = 7;           // of a sample, with the one before it: see SumMethod::partial_sum()
constexpr size_t kFewestSamples = 5, kMostSamples = 50;

constexpr size_t kGpuReserve = size_t{2} << 30;  // left to libraries

SlicedShape shape_of(int64_t bytes, int ranks) {
  const int64_t row = kCols * static_cast<int64_t>(sizeof(float));
  return {std::max<int64_t>(1, bytes / row / ranks), codec::RowBlocks(kCols), ranks};
}

double greatest(const comm::ProcessGroup& group, double mine) {
  const std::vector<double> all = group.values(mine);
  return *std::max_element(all.begin(), all.end());
}

// What a rank may take of its GPU's memory, which ranks may share.
size_t budget_on(const DeviceMemory& memory, const comm::ProcessGroup& group) {
  if constexpr (kCudaBuild) {
    if (const Gpu* gpu = memory.gpu()) {
      const auto gpus = group.values(gpu->uuid());
      const auto sharers = static_cast<size_t>(std::count(gpus.begin(), gpus.end(), gpu->uuid()));
      group.barrier();
      const size_t free = gpu->free_memory();
      const auto budgets = group.values(free > kGpuReserve ? (free - kGpuReserve) / sharers : 0);
      return *std::min_element(budgets.begin(), budgets.end());
    }
  }
  return std::numeric_limits<size_t>::max();
}

}  // namespace

// Gaussian gradients, other ones on every rank.
class CollectiveBench::TestGradients {
 public:
  TestGradients(const comm::ProcessGroup& group, uint64_t seed) : sum_(kInventedRows * kCols) {
    for (int rank = 0; rank < group.size(); ++rank) {
      std::vector<float> partial_sum = invented(seed, static_cast<uint32_t>(rank));
      for (size_t i = 0; i < sum_.size(); ++i) sum_[i] += static_cast<double>(partial_sum[i]);
      if (rank == group.rank()) own_ = std::move(partial_sum);
    }
  }

  // The first rows of this rank's gradient.
  Tensor own() const { return host_tensor(own_.data(), {kInventedRows, kCols}); }
  // The exact sum of row r over all ranks.
  const double* sum(int64_t r) const { return sum_.data() + r % kInventedRows * kCols; }

 private:
  static std::vector<float> invented(uint64_t seed, uint32_t rank) {
    const RandomKey key{seed, RngStream::Sampling, 0, 0, rank};
    std::vector<float> values(kInventedRows * kCols);
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < values.size(); i += 4) {
      const Philox4 words = key.draw(i / 4);
      const auto [a, b] = normal_pair(words[0], words[1]);
      const auto [c, d] = normal_pair(words[2], words[3]);
      values[i] = a, values[i + 1] = b, values[i + 2] = c, values[i + 3] = d;
    }
    return values;
  }

  std::vector<float> own_;
  std::vector<double> sum_;
};

// All methods at one size. On Meta only memory is counted.
class CollectiveBench::Round {
 public:
  struct With {
    const comm::ProcessGroup& group;
    const TestGradients& inputs;
    const NcclSums* nccl;
  };
  Round(Arena& arena, Device target, const SlicedShape& shape, With with)
      : ctx_(arena, target, DType::F32),
        shape_(shape),
        with_(with),
        numbers_(arena.allocate(Owner::Operands, DType::F32, with.inputs.own().shape)),
        read_(codec::allocate(arena, Owner::Operands, Codec::Fp32, std::min(shape.slice, kInventedRows), shape.row)),
        methods_(sum_methods(ctx_, with.group, shape, with.nccl)),
        watch_(ctx_) {
    if (!ctx_.meta()) upload(ctx_, with.inputs.own().data, numbers_);
  }

  // Everything once.
  void warm_up() {
    for (const auto& method : methods_) {
      fill(*method);
      method->run(ctx_);
      method->read(ctx_, read_);
    }
  }

  std::vector<SumTime> measure(double seconds) {
    std::vector<SumTime> results;
    std::vector<Samples> samples;
    for (const auto& method : methods_) {
      results.push_back({method->name(), 0, 0, 0, 0, error(*method)});
      samples.push_back({{}, runs_in(kExchangeSample, sample(*method, 1))});
    }
    for (bool more = true; more;) {
      more = false;
      for (size_t i = 0; i < methods_.size(); ++i) {
        if (samples[i].enough(seconds)) continue;
        samples[i].seconds.push_back(sample(*methods_[i], samples[i].runs));
        more = true;
      }
    }
    for (size_t i = 0; i < methods_.size(); ++i) {
      const std::vector<double>& times = samples[i].seconds;
      results[i].median = median(times);
      results[i].least = *std::min_element(times.begin(), times.end());
      results[i].samples = static_cast<int64_t>(times.size());
      results[i].sent_bytes =
          shape_.bytes_to_send(results[i].name.wire) * (results[i].name.form == SumForm::AllReduce ? 2 : 1);
    }
    return results;
  }

 private:
  // Of a method: seconds of a run, the same on all ranks.
  struct Samples {
    std::vector<double> seconds;
    double runs = 1;  // in a sample
    bool enough(double wanted) const {
      double total = 0;
      for (const double s : seconds) total += s * runs;
      return seconds.size() >= kMostSamples || (seconds.size() >= kFewestSamples && total >= wanted);
    }
  };
  static double runs_in(double seconds, double one) {
    return std::clamp(std::ceil(seconds / std::max(one, 1e-9)), 1.0, kMostRuns);
  }

  void fill(const SumMethod& method) const {
    const Quantized& q = method.partial_sum();
    RandomKey key = ctx_.random;
    key.micro_batch = 2 * static_cast<uint32_t>(with_.group.rank());  // ranks round independently of each other
    for (int64_t begin = 0; begin < q.rows; begin += kInventedRows) {
      const int64_t end = std::min(begin + kInventedRows, q.rows);
      codec::encode(ctx_, numbers_.row_range(0, end - begin), q.row_range(begin, end),
                    method.name().stochastic ? codec::Rounding::random(key, codec::GlobalOffset{}.from_row(begin))
                                             : codec::Rounding::nearest());
    }
  }

  // Seconds of a run, of the slowest rank. The run before the first mark brings the ranks into step.
  double sample(SumMethod& method, double runs) {
    fill(method);
    if constexpr (kCudaBuild)
      if (ctx_.cuda()) ctx_.gpu().wait_for_stream(ctx_.stream());
    with_.group.barrier();
    method.run(ctx_);
    watch_.mark();
    for (int i = 0; i < runs; ++i) method.run(ctx_);
    watch_.mark();
    return greatest(with_.group, watch_.take().front() / runs);
  }

  double error(SumMethod& method) {
    fill(method);
    method.run(ctx_);
    method.read(ctx_, read_);
    std::vector<float> got(static_cast<size_t>(read_.plain().count()));
    download(ctx_, read_.plain(), got.data());
    struct Squares {
      double error = 0, exact = 0;
    } own, all;
    for (int64_t r = 0; r < read_.rows; ++r) {
      const double* exact = with_.inputs.sum(shape_.slice * with_.group.rank() + r);
      for (int64_t i = 0; i < kCols; ++i) {
        const double difference = static_cast<double>(got[static_cast<size_t>(r * kCols + i)]) - exact[i];
        own.error += difference * difference;
        own.exact += exact[i] * exact[i];
      }
    }
    for (const Squares& one : with_.group.values(own)) all.error += one.error, all.exact += one.exact;
    return std::sqrt(all.error / all.exact);
  }

  Context ctx_;
  SlicedShape shape_;
  With with_;
  Tensor numbers_;  // of Inputs
  Quantized read_;  // the first rows of this rank's slice of a sum
  std::vector<std::unique_ptr<SumMethod>> methods_;
  Stopwatch watch_;
};

const SumTime* SumTimes::rival_of(const SumTime& time, Codec wire) const {
  const SumForm form = time.name.form == SumForm::Exchange ? SumForm::Reduce : time.name.form;
  const auto rival = std::find_if(times.begin(), times.end(),
                                  [&](const SumTime& t) { return t.name.wire == wire && t.name.form == form; });
  return rival == times.end() || rival->name.wire == time.name.wire ? nullptr : &*rival;
}

CollectiveBench::CollectiveBench(DeviceMemory& memory, const comm::ProcessGroup& group, const SweepOptions& options)
    : memory_(memory), group_(group), options_(options), inputs_(std::make_unique<TestGradients>(group, options.seed)) {
  if constexpr (comm::kNcclBuild) {
    if (Gpu* gpu = memory.gpu()) {
      group.open(Context(memory.reserve(1), memory.device(), DType::F32));
      if (comm::why_staged(options.links, group.values(gpu->uuid())).empty()) nccl_ = open_nccl_sums(*gpu, group);
    }
  }
  budget_ = budget_on(memory, group);
}

CollectiveBench::~CollectiveBench() = default;

SumTimes CollectiveBench::measure(int64_t bytes) {
  const SlicedShape shape = shape_of(bytes, group_.size());
  SumTimes result{shape.rows() * kCols * static_cast<int64_t>(sizeof(float)), "", {}};
  Arena counted(Device::Meta, 0);
  const comm::ProcessGroup planned = comm::ProcessGroup::planned(group_.size(), group_.rank());
  Round(counted, memory_.device(), shape, {planned, *inputs_, nccl_.get()}).warm_up();
  if (counted.total_bytes() > budget_) {
    result.skipped = fmt::format("needs {} of each GPU's memory for each rank, and there are {}",
                                 human_bytes(counted.total_bytes()), human_bytes(budget_));
    return result;
  }
  {
    Round round(memory_.reserve(counted.total_bytes()), memory_.device(), shape, {group_, *inputs_, nccl_.get()});
    result.times = round.measure(options_.seconds);
  }
  group_.barrier();  // nobody reaches into memory that the next size reserves anew
  return result;
}

}  // namespace agoq::bench
