#include "bench/sum_methods.h"

#include <array>

#include "ops/gradient/reduce_pieces.h"
#include "parallel/gradient_exchange.h"

namespace agoq::bench {
namespace {

using codec::Codec;
using codec::Quantized;
using codec::Rounding;
using parallel::GradientExchange;

// The first rows of a sum that lies there encoded.
void read_rows(const Context& ctx, const Quantized& sum, const Quantized& numbers) {
  codec::decode(ctx, sum.row_range(0, numbers.rows), numbers.plain());
}

// Memory that all ways use in turn.
struct SumBuffers {
  Tensor partial_sum, sum;  // bytes

  SumBuffers(Arena& arena, const SlicedShape& shape) {
    const auto allocate = [&](int64_t rows) {
      return arena.allocate(Owner::Operands, DType::U8, {codec::bytes_in_view(Codec::Fp32, rows, shape.row)});
    };
    partial_sum = allocate(shape.rows());
    sum = allocate(shape.slice);
  }
};

// Codes that are exchanged as the optimizer has them exchanged, and summed as it sums them.
class ExchangedSum : public SumMethod {
 public:
  struct Means {
    const comm::ProcessGroup& group;
    std::shared_ptr<GradientExchange> exchange;  // in the wire's format
  };
  ExchangedSum(const Name& name, const SlicedShape& shape, const SumBuffers& operands, Means means)
      : SumMethod(name, codec::view_in(operands.partial_sum, name.wire, shape.rows(), shape.row)),
        shape_(shape),
        sum_(codec::view_in(operands.sum, name.wire, shape.slice, shape.row)),
        means_(std::move(means)) {}

  void run(const Context& ctx) override {
    const comm::ProcessGroup& group = means_.group;
    const parallel::SlicedGradient gradient{partial_sum_, shape_.rows(), shape_.slice, 0, {}, name().stochastic};
    means_.exchange->start(ctx, group, gradient);
    means_.exchange->finish(ctx);
    if (name().form == SumForm::Reduce) ops::sum_pieces(ctx, pieces(shape_.slice), sum_, rounding(ctx));
    if (name().form == SumForm::AllReduce) means_.exchange->gather_sums(ctx, group, gradient);
  }
  void read(const Context& ctx, const Quantized& numbers) const override {
    const int64_t begin = shape_.slice * means_.group.rank();
    if (name().form == SumForm::Exchange)
      ops::sum_pieces(ctx, pieces(numbers.rows), numbers, Rounding::nearest());
    else
      read_rows(ctx, name().form == SumForm::Reduce ? sum_ : partial_sum_.row_range(begin, begin + numbers.rows),
                numbers);
  }

 private:
  // The first rows of what has arrived.
  ops::GradientSum pieces(int64_t rows) const { return {partial_sum_.row_range(0, rows), shape_.ranks, shape_.slice}; }
  Rounding rounding(const Context& ctx) const {
    if (!name().stochastic) return Rounding::nearest();
    RandomKey key = ctx.random;
    key.stream = RngStream::ReducedGradient;
    return Rounding::random(key, codec::GlobalOffset{}.from_row(shape_.slice * means_.group.rank()));
  }

  SlicedShape shape_;
  Quantized sum_;
  Means means_;
};

// What 8 bits do to a sum that is made on the way, as rings make it: a rank adds its own partial sum to what comes from
// the rank before it, rounds, and sends that on.
class Ring : public SumMethod {
 public:
  Ring(const Name& name, const SlicedShape& shape, const SumBuffers& operands, const comm::ProcessGroup& group)
      : SumMethod(name, codec::view_in(operands.partial_sum, name.wire, shape.rows() + shape.slice, shape.row)),
        shape_(shape),
        arrival_(partial_sum_.row_range(shape.rows(), shape.rows() + shape.slice)),
        group_(group) {
    partial_sum_ = partial_sum_.row_range(0, shape.rows());
  }

  void run(const Context& ctx) override {
    const int ranks = group_.size(), own = group_.rank();
    const auto rank = [&](int i) { return (i + ranks) % ranks; };
    for (int hop = 1; hop < ranks; ++hop) {
      pass(ctx, slice(rank(own - hop)), rank(own + 1), rank(own - 1));
      const int next = rank(own - hop - 1);
      const Quantized partial = slice(next);
      // Its own partial sum and what came: the second lies behind all slices.
      ops::sum_pieces(ctx, {partial, 2, (ranks - next) * shape_.slice}, partial, Rounding::nearest());
    }
  }
  void read(const Context& ctx, const Quantized& numbers) const override {
    read_rows(ctx, slice(group_.rank()), numbers);
  }

 private:
  Quantized slice(int j) const { return partial_sum_.row_range(j * shape_.slice, (j + 1) * shape_.slice); }
  void pass(const Context& ctx, const Quantized& partial, int to, int from) const {
    const std::array<comm::Message, 2> sends = {{{to, partial.codes}, {to, partial.scales}}};
    const std::array<comm::Message, 2> receives = {{{from, arrival_.codes}, {from, arrival_.scales}}};
    group_.exchange(ctx, sends, receives);
  }

  SlicedShape shape_;
  Quantized arrival_;
  const comm::ProcessGroup& group_;
};

class NcclSum : public SumMethod {
 public:
  NcclSum(const Name& name, const SlicedShape& shape, const SumBuffers& operands, const comm::ProcessGroup& group,
          const NcclSums& nccl)
      : SumMethod(name, codec::view_in(operands.partial_sum, name.wire, shape.rows(), shape.row)),
        slice_(shape.slice),
        rank_(group.rank()),
        sum_(codec::view_in(operands.sum, name.wire, shape.slice, shape.row)),
        nccl_(nccl) {}

  void run(const Context& ctx) override {
    if (ctx.meta()) return;
    if (name().form == SumForm::Reduce)
      nccl_.reduce_scatter(ctx, partial_sum_.plain(), sum_.plain());
    else
      nccl_.all_reduce(ctx, partial_sum_.plain());
  }
  void read(const Context& ctx, const Quantized& numbers) const override {
    read_rows(ctx, name().form == SumForm::Reduce ? sum_ : partial_sum_.row_range(rank_ * slice_, (rank_ + 1) * slice_),
              numbers);
  }

 private:
  int64_t slice_;
  int rank_;
  Quantized sum_;
  const NcclSums& nccl_;
};

}  // namespace

std::string_view name_of(SumForm form) {
  constexpr std::array<std::string_view, 3> kNames = {"exchange", "reduce", "all-reduce"};
  return kNames.at(static_cast<size_t>(form));
}

std::vector<std::unique_ptr<SumMethod>> sum_methods(const Context& ctx, const comm::ProcessGroup& group,
                                                    const SlicedShape& shape, const NcclSums* nccl) {
  const SumBuffers operands(ctx.arena(), shape);
  std::vector<std::unique_ptr<SumMethod>> all;
  const auto add_exchanged = [&](Codec wire, bool stochastic, std::initializer_list<SumForm> forms) {
    const int64_t staging =
        group.alone() ? 0 : GradientExchange::usual_staging_bytes(wire, shape.rows(), shape.ranks, shape.row);
    const auto exchange =
        std::make_shared<GradientExchange>(ctx.arena(), wire, false, parallel::StagingBytes{staging, 0});
    for (const SumForm form : forms)
      all.push_back(std::make_unique<ExchangedSum>(SumMethod::Name{"AGoQ", wire, form, stochastic}, shape, operands,
                                                   ExchangedSum::Means{group, exchange}));
  };
  for (const Codec wire : {Codec::Int8, Codec::Fp8}) {
    if (group.alone()) add_exchanged(wire, true, {SumForm::Reduce});  // alone there is nothing to move
    if (!group.alone()) add_exchanged(wire, true, {SumForm::Exchange, SumForm::Reduce, SumForm::AllReduce});
  }
  for (const Codec wire : {Codec::Bf16, Codec::Fp32}) {
    if (!nccl) add_exchanged(wire, false, {SumForm::Reduce, SumForm::AllReduce});
    if (!nccl) continue;
    for (const SumForm form : {SumForm::Reduce, SumForm::AllReduce})
      all.push_back(std::make_unique<NcclSum>(SumMethod::Name{"NCCL", wire, form}, shape, operands, group, *nccl));
  }
  if (!group.alone())
    all.push_back(std::make_unique<Ring>(SumMethod::Name{"ring", Codec::Fp8, SumForm::Reduce}, shape, operands, group));
  return all;
}

}  // namespace agoq::bench
