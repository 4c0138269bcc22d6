// Gradients that go between GPUs, beside a stream that computes, end up as they do between CPUs.
#include "parallel/gradient_exchange.h"

#include <gtest/gtest.h>

#include "comm/thread_transport.h"
#include "cuda/thread_ranks.h"
#include "device/transfer.h"
#include "parallel/gradients.h"

namespace agoq::parallel {
namespace {

using codec::Codec;

constexpr int64_t kRows = 997;

struct Case {
  int ranks;
  bool gpu_each;  // then NCCL, otherwise staged
  Codec main;
  int64_t staging_rows;  // of one rank's slice
};

void append(const Context& ctx, const Tensor& t, std::vector<uint8_t>& bytes) {
  const size_t at = bytes.size();
  bytes.resize(at + t.bytes());
  download(ctx, t, bytes.data() + at);
}

// What a rank's storage holds after its exchanges. Each gradient is made on the device right before it starts, and
// other work comes between start and finish.
std::vector<uint8_t> exchanged(const Context& ctx, comm::Transport& transport, const Case& c) {
  const codec::RowBlocks row(1280, 160);
  Parallelism parallelism;
  parallelism.mesh = training_mesh({1, transport.size(), 1});
  parallelism.rank = transport.rank();
  const Groups groups(transport, parallelism);
  const int ranks = groups.data().size();
  const int64_t staging = GradientExchange::staging_bytes(Codec::Int8, ranks * c.staging_rows, row);
  GradientExchange exchange(ctx.arena(), Codec::Int8, c.main != Codec::Int8, {staging, staging});
  std::vector<SlicedGradient> gradients;
  const int64_t slice = slice_rows(kRows, ranks);
  const Tensor fresh = ctx.arena().allocate(Owner::Operands, DType::F32, {kRows, row.cols});
  std::vector<float> values(static_cast<size_t>(fresh.count()));
  for (uint32_t tensor = 0; tensor < 4; ++tensor) {
    for (size_t i = 0; i < values.size(); ++i)
      values[i] = static_cast<float>((i * 31 + tensor * 17 + static_cast<size_t>(transport.rank()) * 7) % 1009) - 500;
    upload(ctx, values.data(), fresh);
    SlicedGradient g{{}, kRows, slice, tensor, {}, true};
    g.storage = codec::allocate(ctx.arena(), Owner::Operands, c.main, slice * ranks, row);
    codec::encode(ctx, fresh, g.storage.row_range(0, kRows));
    exchange.start(ctx, groups.data(), g);
    exchange.advance();
    gradients.push_back(g);
  }
  exchange.finish(ctx);
  std::vector<uint8_t> bytes;
  for (const SlicedGradient& g : gradients)
    for (const Tensor& part : {g.storage.codes, g.storage.scales})
      if (part) append(ctx, part, bytes);
  return bytes;
}

class GradientsOfAGroupOfGpus : public testing::TestWithParam<Case> {};

TEST_P(GradientsOfAGroupOfGpus, AreThoseOfCpusToTheBit) {
  const Case& c = GetParam();
  const int needed = c.gpu_each ? c.ranks : 1;
  if (!why_no_gpu().empty()) GTEST_SKIP() << "no GPU: none is visible";
  if (visible_gpus() < needed) GTEST_SKIP() << needed << " GPUs are needed, " << visible_gpus() << " are visible";
  if (c.gpu_each && !comm::kNcclBuild) GTEST_SKIP() << "this build has no NCCL";
  std::vector<std::vector<uint8_t>> want(static_cast<size_t>(c.ranks));
  test::ThreadWorld(c.ranks).run([&](comm::Transport& transport) {
    Arena arena(Device::Cpu, size_t{64} << 20);
    want[static_cast<size_t>(transport.rank())] = exchanged({arena, Device::Cpu, DType::BF16}, transport, c);
  });
  comm::test::run_ranks(c.ranks, c.gpu_each, [&](comm::test::Rank& r) {
    EXPECT_EQ(exchanged(r.ctx, r.transport, c), want[static_cast<size_t>(r.rank)]) << "rank " << r.rank;
  });
}

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const bool gpu_each : {false, true})
    for (const int ranks : {2, 4})
      for (const Codec main : {Codec::Int8, Codec::Fp32})
        for (const int64_t staging_rows : {1000, 50}) all.push_back({ranks, gpu_each, main, staging_rows});
  return all;
}
INSTANTIATE_TEST_SUITE_P(All, GradientsOfAGroupOfGpus, testing::ValuesIn(cases()), [](const auto& info) {
  const Case& c = info.param;
  return fmt::format("{}_{}_{}_{}", c.ranks, c.gpu_each ? "ByNccl" : "Staged", codec::name_of(c.main), c.staging_rows);
});

}  // namespace
}  // namespace agoq::parallel
