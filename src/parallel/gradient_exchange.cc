#include "parallel/gradient_exchange.h"

#include <algorithm>

#include "codec/codec.h"
#include "device/transfer.h"
#include "ops/reduce_pieces.h"

namespace agoq::parallel {
namespace {

using codec::Quantized;

constexpr int64_t kPadding = 512;  // behind codes and behind scales

void add(std::vector<comm::Message>& messages, int peer, const Quantized& q) {
  if (q.rows == 0) return;
  messages.push_back({peer, q.codes});
  if (q.scales) messages.push_back({peer, q.scales});
}

void copy_rows(const Context& ctx, const Quantized& from, const Quantized& to) {
  if (from.rows == 0) return;
  copy(ctx, from.codes, to.codes);
  if (from.scales) copy(ctx, from.scales, to.scales);
}

}  // namespace

GradientExchange::GradientExchange(Arena& arena, codec::Codec wire, bool wire_differs, int64_t lane_bytes)
    : wire_(wire), wire_differs_(wire_differs) {
  if (lane_bytes == 0) return;
  for (Lane& lane : lanes_) {
    lane.out = arena.allocate("communication", DType::U8, {lane_bytes});
    if (wire_differs) lane.in = arena.allocate("communication", DType::U8, {lane_bytes});
  }
}

int64_t GradientExchange::lane_bytes(codec::Codec wire, int64_t rows, const codec::RowBlocks& row) {
  return rows * codec::full_row_bytes(wire, row) + kPadding;
}

void GradientExchange::start(const Context& ctx, const comm::ProcessGroup& group, const SlicedGradient& gradient) {
  if (group.alone()) return;
  const codec::Codec kept = gradient.storage.codec, expected = wire_differs_ ? codec::Codec::Fp32 : wire_;
  require(kept == expected, "gradients in {} cannot travel in {}: use the same format for both, or keep them in fp32",
          codec::name_of(kept), codec::name_of(wire_));
  const int64_t lane_rows = (lanes_[0].out.count() - kPadding) / codec::full_row_bytes(wire_, gradient.storage.row);
  const int64_t step = lane_rows / group.size();
  require(step > 0, "a lane of {} bytes has no room for a row of {} columns from each of {} ranks",
          lanes_[0].out.count(), gradient.storage.row.cols, group.size());
  beside_.emplace(side_.behind(ctx));
  for (int64_t begin = 0; begin < gradient.slice; begin += step)
    waiting_.push_back({&group, gradient, begin, std::min(begin + step, gradient.slice)});
  advance();
}

void GradientExchange::advance() {
  const auto free = [](const Lane& lane) { return !lane.pending || lane.pending->ready(); };
  while (!waiting_.empty() && free(lanes_[next_])) begin_round();
}

void GradientExchange::begin_round() {
  Lane& lane = lanes_[next_];
  next_ = 1 - next_;
  empty(lane);
  send(*beside_, waiting_.front(), lane);
  waiting_.pop_front();
}

void GradientExchange::send(const Context& ctx, const Round& round, Lane& lane) const {
  const comm::ProcessGroup& group = *round.group;
  const SlicedGradient& gradient = round.gradient;
  const int64_t begin = round.begin, end = round.end;
  const Quantized& storage = gradient.storage;
  const int ranks = group.size(), own = group.rank();
  // Of rank j's slice, those of the rows that are no padding.
  const auto rows_of = [&](int j) {
    const int64_t there = std::clamp<int64_t>(gradient.rows - j * gradient.slice, begin, end);
    return model::Range{j * gradient.slice + begin, j * gradient.slice + there};
  };
  const int64_t arriving = rows_of(own).count();
  const Quantized out = codec::view_in(lane.out, wire_, ranks * (end - begin), storage.row);
  const Quantized in = wire_differs_ ? codec::view_in(lane.in, wire_, ranks * (end - begin), storage.row) : storage;
  const int64_t in_stride = wire_differs_ ? end - begin : gradient.slice, in_begin = wire_differs_ ? 0 : begin;

  std::vector<comm::Message> sends, receives;
  for (int j = 0; j < ranks; ++j) {
    const model::Range rows = rows_of(j);
    const Quantized from = storage.row_range(rows.begin, rows.end);
    const Quantized arrival = in.row_range(j * in_stride + in_begin, j * in_stride + in_begin + arriving);
    if (j == own) {
      if (wire_differs_ && arriving > 0) encode_addend(ctx, own, gradient, rows, arrival);
      continue;
    }
    const Quantized staged = out.row_range(j * (end - begin), j * (end - begin) + rows.count());
    if (!wire_differs_) copy_rows(ctx, from, staged);
    if (wire_differs_ && rows.count() > 0) encode_addend(ctx, own, gradient, rows, staged);
    add(sends, j, staged);
    add(receives, j, arrival);
  }
  lane.pending = group.start(ctx, sends, receives);
  if (!wire_differs_ || arriving == 0) return;
  lane.arrived = {in.row_range(0, arriving), ranks, in_stride};
  const model::Range rows = rows_of(own);
  lane.sum = storage.row_range(rows.begin, rows.end);
}

// An fp32 addend in the wire's format.
void GradientExchange::encode_addend(const Context& ctx, int rank, const SlicedGradient& gradient, model::Range rows,
                                     const Quantized& to) const {
  codec::encode(ctx, gradient.storage.row_range(rows.begin, rows.end).plain(), to,
                rounding(ctx, gradient, {Purpose::WireGradient, rows.begin, static_cast<uint32_t>(rank)}));
}

codec::Rounding GradientExchange::rounding(const Context& ctx, const SlicedGradient& gradient, Draws draws) const {
  if (!gradient.stochastic || wire_ == codec::Codec::Fp32) return codec::Rounding::nearest();
  RandomKey key = ctx.random;
  key.purpose = draws.purpose;
  key.micro_batch = 2 * draws.rank;  // an even one: only micro-batches of one rank mirror each other
  key.tensor = gradient.tensor;
  return codec::Rounding::random(key, gradient.origin.from_row(draws.first_row));
}

// Waits until what it carries has arrived.
void GradientExchange::empty(Lane& lane) {
  if (!lane.pending) return;
  lane.pending->wait();
  lane.pending.reset();
  if (lane.sum.kept()) ops::sum_pieces(*beside_, lane.arrived, lane.sum, codec::Rounding::nearest());
  lane.sum = {};
}

void GradientExchange::finish(const Context& ctx) {
  while (!waiting_.empty()) begin_round();
  for (size_t i = 0; i < lanes_.size(); ++i) empty(lanes_[(next_ + i) % lanes_.size()]);
  side_.join(ctx);
}

void GradientExchange::gather_sums(const Context& ctx, const comm::ProcessGroup& group,
                                   const SlicedGradient& gradient) {
  if (group.alone()) return;
  const Quantized& storage = gradient.storage;
  const auto rows_of = [&](int j) {
    const model::Range rows = row_slice(gradient.rows, group.size(), j);
    return storage.row_range(rows.begin, rows.end);
  };
  const Quantized own = rows_of(group.rank());
  if (!wire_differs_ && own.rows > 0) {
    // The addends of this rank's slice lie in all slices; their sum goes where the slice itself lies.
    ops::sum_pieces(ctx, {storage.row_range(0, own.rows), group.size(), gradient.slice}, own,
                    rounding(ctx, gradient, {Purpose::ReducedGradient, group.rank() * gradient.slice}));
  }
  std::vector<comm::Message> sends, receives;
  for (int j = 0; j < group.size(); ++j) {
    if (j == group.rank()) continue;
    add(sends, j, own);
    add(receives, j, rows_of(j));
  }
  group.exchange(ctx, sends, receives);
}

}  // namespace agoq::parallel
