// The LM head and its loss over a group whose ranks are threads that share one GPU, against one rank with all rows.
#include "comm/process_group.h"
#include "cuda/pair.h"
#include "cuda/thread_ranks.h"
#include "model/layer_spec.h"
#include "ops/head/cross_entropy.h"

namespace agoq::ops::test {
namespace {

struct Sizes {
  int64_t tokens, hidden, vocabulary;
};

// Results of one rank, or of one alone.
struct Result {
  Values loss, nll, dn, dw;  // nll of the loss alone, and of its gradient
};

class CudaDividedHead : public CudaTest {
 protected:
  // Every fifth token does not count; the others weigh 1 or 0.25.
  struct Inputs {
    Tensor n, w, tokens, weights;  // on the CPU
  };
  Inputs make(const Sizes& s, double size) {
    const auto weight = [](int64_t i) { return i % 5 == 0 ? 0.0 : i % 3 == 0 ? 0.25 : 1.0; };
    const auto target = [&](int64_t i) { return static_cast<double>((i * 31 + s.vocabulary - 1) % s.vocabulary); };
    return {cpu->random({s.tokens, s.hidden}, size),
            cpu->random({s.vocabulary, s.hidden}, 1 / std::sqrt(static_cast<double>(s.hidden))),
            cpu->filled({s.tokens}, target, DType::I32), cpu->filled({s.tokens}, weight, DType::F32)};
  }

  // The ops on some rows of w, with the peak of a dry run.
  static Result run(Context& ctx, const Inputs& in, const model::Range& rows) {
    const auto up = [&](const Tensor& t) {
      const Tensor there = ctx.arena().allocate(Owner::Operands, t.dtype, t.shape);
      if (!ctx.meta()) upload(ctx, t.data, there);
      return there;
    };
    const auto down = [&](const Tensor& t) {
      std::vector<uint8_t> bytes(ctx.meta() ? 0 : t.bytes());
      if (ctx.meta()) return Values{};
      download(ctx, t, bytes.data());
      return values(Tensor{bytes.data(), t.dtype, Device::Cpu, t.shape});
    };
    const Tensor n = up(in.n), w = up(in.w.row_range(rows.begin, rows.end));
    const Targets targets{up(in.tokens), up(in.weights), rows.begin, in.w.shape[0]};
    const Tensor nll = ctx.arena().allocate(Owner::Operands, DType::F32, in.tokens.shape);
    const MainGrad dw{
        codec::allocate(ctx.arena(), Owner::Operands, codec::Codec::Fp32, rows.count(), codec::RowBlocks(in.n.cols())),
        7, true};
    Result result;
    head_loss(ctx, n, w, targets, nll);
    result.loss = down(nll);
    Scope scope(ctx);
    result.dn = down(head_loss_backward(ctx, n, w, targets, 0.5f, nll, dw));
    result.nll = down(nll);
    result.dw = down(dw.data.plain());
    return result;
  }

  // Of each rank; each must push what a dry run for it does.
  std::vector<Result> on_ranks(const Inputs& in, int ranks) {
    std::vector<Result> results(static_cast<size_t>(ranks));
    comm::test::run_ranks(ranks, false, [&](comm::test::Rank& r) {
      const model::Range rows = model::part_of(in.w.shape[0], {ranks, r.rank});
      const comm::ProcessGroup group = r.world(), planned_group = comm::ProcessGroup::planned(ranks, r.rank);
      Arena memory(r.ctx.gpu(), arena->capacity()), plan(Device::Meta, 0);
      Context ctx(memory, Device::Cuda, g().compute()), planned(plan, Device::Cuda, g().compute());
      ctx.tensor = &group, planned.tensor = &planned_group;
      results[static_cast<size_t>(r.rank)] = run(ctx, in, rows);
      run(planned, in, rows);
      EXPECT_EQ(memory.peak_stack_bytes(), plan.peak_stack_bytes()) << "rank " << r.rank;
    });
    return results;
  }

  void compare(const Sizes& s, int ranks, double size = 1) {
    SCOPED_TRACE(fmt::format("[{}, {}] of {} over {} ranks", s.tokens, s.hidden, s.vocabulary, ranks));
    const Inputs in = make(s, size);
    const Result one = run(g(), in, {0, s.vocabulary});
    const std::vector<Result> parts = on_ranks(in, ranks);
    if (HasFailure()) return;
    Values dn(one.dn.size()), dw;
    for (const Result& part : parts) {
      EXPECT_EQ(part.loss, parts[0].loss);
      EXPECT_EQ(part.nll, parts[0].loss);
      for (size_t i = 0; i < dn.size(); ++i) dn[i] += part.dn[i];
      dw.insert(dw.end(), part.dw.begin(), part.dw.end());
    }
    // Products of a part may be added up in another order than those of the whole. Gradients of the logits are rounded
    // to bf16, alike but for ties; each partial sum of dn is rounded once more.
    const bool exact = g().compute() == DType::F32;
    expect_close(parts[0].loss, one.loss, 2e-6, 4e-6 * size, "nll");
    expect_relative(one.dn, dn, exact ? 5e-6 : 0x1p-8, "dn");
    expect_relative(one.dw, dw, exact ? 5e-6 : 0x1p-9, "dw");
  }
};

TEST_F(CudaDividedHead, UnevenParts) {
  for (const DType compute : {DType::BF16, DType::F32}) {
    start(compute);
    for (const int ranks : {2, 3}) {
      compare({60, 24, 257}, ranks);
      compare({60, 24, 8200}, ranks);
    }
    compare({60, 24, 257}, 2, 50);
  }
}

TEST_F(CudaDividedHead, SeveralChunksOfLogits) {
  start(DType::BF16, size_t{3} << 30);
  compare({2500, 16, 131073}, 2);  // by their own parts, one rank would take chunks of 2048 tokens, the other of 1920
}

}  // namespace
}  // namespace agoq::ops::test
