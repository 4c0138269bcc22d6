#include "parallel/gradient_exchange.h"

#include <algorithm>
#include <limits>

#include "codec/codec.h"
#include "device/transfer.h"
#include "ops/gradient/reduce_pieces.h"

namespace agoq::parallel {
namespace {

using codec::Quantized;

constexpr int64_t kPadding = 512;                     // behind codes and behind scales
constexpr int64_t kStagingBytes = int64_t{32} << 20;  // more makes nothing faster

void add(std::vector<comm::Message>& messages, int peer, const Quantized& q) {
  if (q.rows == 0) return;
  messages.push_back({peer, q.codes});
  if (q.scales) messages.push_back({peer, q.scales});
}

// Rows [begin, end) of rank j's slice, without padding.
model::Range rows_of_slice(const SlicedGradient& gradient, int j, int64_t begin, int64_t end) {
  const int64_t there = std::clamp<int64_t>(gradient.rows - j * gradient.slice, begin, end);
  return {j * gradient.slice + begin, j * gradient.slice + there};
}

void copy_rows(const Context& ctx, const Quantized& from, const Quantized& to) {
  if (from.rows == 0) return;
  copy(ctx, from.codes, to.codes);
  if (from.scales) copy(ctx, from.scales, to.scales);
}

}  // namespace

GradientExchange::GradientExchange(Arena& arena, codec::Codec wire, bool wire_differs, const StagingBytes& staging)
    : wire_(wire), wire_differs_(wire_differs) {
  const auto allocate = [&](int64_t bytes) {
    return bytes == 0 ? Tensor{} : arena.allocate(Owner::Communication, DType::U8, {bytes});
  };
  for (StagingBuffer& buffer : buffers_) {
    buffer.out = allocate(staging.out);
    buffer.in = allocate(staging.in);
  }
}

int64_t GradientExchange::staging_bytes(codec::Codec wire, int64_t rows, const codec::RowBlocks& row) {
  return rows * codec::full_row_bytes(wire, row) + kPadding;
}

int64_t GradientExchange::usual_staging_bytes(codec::Codec wire, int64_t rows, int ranks, const codec::RowBlocks& row) {
  const auto of_slices = [&](int64_t slice) { return staging_bytes(wire, ranks * slice, row); };
  return std::clamp(kStagingBytes, of_slices(1), of_slices(slice_rows(rows, ranks)));
}

std::shared_ptr<const Exchanged> GradientExchange::start(const Context& ctx, const comm::ProcessGroup& group,
                                                         const SlicedGradient& gradient) {
  auto exchanged = std::make_shared<Exchanged>();
  exchanged->ended = group.alone();
  if (group.alone()) return exchanged;
  const codec::Codec kept = gradient.storage.codec;
  const codec::Codec expected = wire_differs_ && !gradient.folded() ? codec::Codec::Fp32 : wire_;
  require(kept == expected, "gradients in {} cannot travel in {}: use the same format for both, or keep them in fp32",
          codec::name_of(kept), codec::name_of(wire_));
  if (comm::Window* here = window(ctx, group, gradient)) {
    in_place_.push_back(here->all_to_all(ctx));
    exchanged->ended = true;
    return exchanged;
  }
  beside_.emplace(side_.behind(ctx));
  // Rounds of one size: a small one costs as many messages as a large one.
  const int64_t step = rows_at_once(group, gradient), rounds = (gradient.slice + step - 1) / step;
  for (int64_t i = 0; i < rounds; ++i)
    waiting_.push_back({&group, gradient, gradient.slice * i / rounds, gradient.slice * (i + 1) / rounds,
                        i + 1 == rounds ? exchanged : nullptr});
  advance();
  return exchanged;
}

void GradientExchange::wait_for(const Context& ctx, const Exchanged& exchanged) {
  while (!exchanged.ended) {
    if (!waiting_.empty()) {
      begin_bucket();
      continue;
    }
    for (size_t i = 0; i < buffers_.size(); ++i) empty(buffers_[(next_ + i) % buffers_.size()]);
  }
  SideStream::wait(ctx, exchanged.mark);
}

// Of each slice, that a staging buffer holds.
int64_t GradientExchange::rows_at_once(const comm::ProcessGroup& group, const SlicedGradient& gradient) const {
  const StagingBuffer& buffer = buffers_[0];
  int64_t bytes = std::numeric_limits<int64_t>::max();
  if (!gradient.folded()) bytes = buffer.out.count();
  if (summed_on_arrival(gradient)) bytes = std::min(bytes, buffer.in.count());
  const int64_t of_a_row = codec::full_row_bytes(wire_, gradient.storage.row);
  const int64_t rows = (bytes - kPadding) / of_a_row / group.size();
  require(rows > 0, "a staging buffer of {} bytes has no room for a row of {} columns from each of {} ranks", bytes,
          gradient.storage.row.cols, group.size());
  return rows;
}

void GradientExchange::advance() {
  const auto free = [](const StagingBuffer& buffer) { return !buffer.pending || buffer.pending->ready(); };
  while (!waiting_.empty() && free(buffers_[next_])) begin_bucket();
}

void GradientExchange::begin_bucket() {
  StagingBuffer& buffer = buffers_[next_];
  next_ = 1 - next_;
  empty(buffer);
  send(*beside_, waiting_.front(), buffer);
  buffer.bucket = std::move(waiting_.front());
  waiting_.pop_front();
}

void GradientExchange::send(const Context& ctx, const Bucket& bucket, StagingBuffer& buffer) const {
  const comm::ProcessGroup& group = *bucket.group;
  const SlicedGradient& gradient = bucket.gradient;
  const int64_t begin = bucket.begin, end = bucket.end;
  const Quantized& storage = gradient.storage;
  const int ranks = group.size(), own = group.rank();
  const bool sums = summed_on_arrival(gradient), encodes = sums && !gradient.folded();
  const auto rows_of = [&](int j) { return rows_of_slice(gradient, j, begin, end); };
  const int64_t arriving = rows_of(own).count();
  const Quantized out =
      gradient.folded() ? Quantized{} : codec::view_in(buffer.out, wire_, ranks * (end - begin), storage.row);
  const Quantized in = sums ? codec::view_in(buffer.in, wire_, ranks * (end - begin), storage.row) : storage;
  const int64_t in_stride = sums ? end - begin : gradient.slice, in_begin = sums ? 0 : begin;
  const auto put = [&](const model::Range& rows, const Quantized& to) {
    if (rows.count() == 0) return;
    encodes ? encode_partial_sum(ctx, own, gradient, rows, to)
            : copy_rows(ctx, storage.row_range(rows.begin, rows.end), to);
  };

  std::vector<comm::Message> sends, receives;
  for (int j = 0; j < ranks; ++j) {
    const model::Range rows = rows_of(j);
    const Quantized arrival = in.row_range(j * in_stride + in_begin, j * in_stride + in_begin + arriving);
    if (j == own) {
      if (sums) put(rows, arrival);
      continue;
    }
    if (gradient.folded()) {
      add(sends, j, storage.row_range(rows.begin, rows.end));
    } else {
      const Quantized staged = out.row_range(j * (end - begin), j * (end - begin) + rows.count());
      put(rows, staged);
      add(sends, j, staged);
    }
    add(receives, j, arrival);
  }
  buffer.pending = group.start(ctx, sends, receives);
  buffer.arrived = {};
  if (sums && arriving > 0) buffer.arrived = {in.row_range(0, arriving), ranks, in_stride};
}

// An fp32 partial sum in the wire's format.
void GradientExchange::encode_partial_sum(const Context& ctx, int rank, const SlicedGradient& gradient,
                                          model::Range rows, const Quantized& to) const {
  codec::encode(
      ctx, gradient.storage.row_range(rows.begin, rows.end).plain(), to,
      // Ranks round independently of each other; an even one, since the next would mirror it.
      rounding(ctx, gradient, {RngStream::WireGradient, rows.begin, gradient.draws + 2 * static_cast<uint32_t>(rank)}));
}

codec::Rounding GradientExchange::rounding(const Context& ctx, const SlicedGradient& gradient,
                                           RoundingRng draws) const {
  if (!gradient.stochastic || wire_ == codec::Codec::Fp32) return codec::Rounding::nearest();
  RandomKey key = ctx.random;
  key.stream = draws.stream;
  key.micro_batch = draws.micro_batch;
  key.tensor = gradient.tensor;
  return codec::Rounding::random(key, gradient.global_offset.from_row(draws.first_row));
}

// Waits until what it carries has arrived.
void GradientExchange::empty(StagingBuffer& buffer) {
  if (!buffer.pending) return;
  buffer.pending->wait();
  buffer.pending.reset();
  if (buffer.arrived.first.kept()) sum_arrived(buffer);
  if (Exchanged* exchanged = buffer.bucket.last_of.get()) {
    side_.mark(exchanged->mark);
    exchanged->ended = true;
  }
}

void GradientExchange::sum_arrived(const StagingBuffer& buffer) {
  const SlicedGradient& gradient = buffer.bucket.gradient;
  const int own = buffer.bucket.group->rank();
  const model::Range rows = rows_of_slice(gradient, own, buffer.bucket.begin, buffer.bucket.end);
  if (!gradient.folded())
    return ops::sum_pieces(*beside_, buffer.arrived, gradient.storage.row_range(rows.begin, rows.end),
                           codec::Rounding::nearest());
  const RunningSum& sum = gradient.running_sum;
  const Quantized to = sum.slice.row_range(buffer.bucket.begin, buffer.bucket.begin + rows.count());
  const auto fold = sum.fresh ? ops::sum_pieces : ops::add_pieces;
  fold(*beside_, buffer.arrived, to,
       rounding(*beside_, gradient, {RngStream::ReducedGradient, rows.begin, sum.micro_batch}));
}

comm::Window* GradientExchange::window(const Context& ctx, const comm::ProcessGroup& group,
                                       const SlicedGradient& gradient) {
  if (summed_on_arrival(gradient) || ctx.meta()) return nullptr;
  const Quantized& q = gradient.storage;
  const auto [known, fresh] = windows_.try_emplace({&group, q.codes.data});
  if (fresh) {
    const std::array<Tensor, 2> tensors = {q.codes, q.scales};
    known->second = group.window(ctx, std::span(tensors).first(q.scales ? 2 : 1));
  }
  return known->second.get();
}

void GradientExchange::finish(const Context& ctx) {
  for (const auto& exchange : in_place_) exchange->wait();
  in_place_.clear();
  while (!waiting_.empty()) begin_bucket();
  for (size_t i = 0; i < buffers_.size(); ++i) empty(buffers_[(next_ + i) % buffers_.size()]);
  side_.join(ctx);
}

void GradientExchange::gather_sums(const Context& ctx, const comm::ProcessGroup& group,
                                   const SlicedGradient& gradient) {
  if (group.alone()) return;
  if (!wire_differs_) return gather_stored(ctx, group, gradient);
  const int64_t step = rows_at_once(group, gradient);
  for (int64_t begin = 0; begin < gradient.slice; begin += step)
    gather_encoded(ctx, {&group, gradient, begin, std::min(begin + step, gradient.slice)});
}

// The partial sums of this rank's slice lie in all slices.
void GradientExchange::sum_slice(const Context& ctx, const comm::ProcessGroup& group,
                                 const SlicedGradient& gradient) const {
  const model::Range rows = rows_of_slice(gradient, group.rank(), 0, gradient.slice);
  if (group.alone() || stores_sums() || rows.count() == 0) return;
  ops::sum_pieces(ctx, {gradient.storage.row_range(0, rows.count()), group.size(), gradient.slice},
                  gradient.storage.row_range(rows.begin, rows.end),
                  rounding(ctx, gradient, {RngStream::ReducedGradient, rows.begin, gradient.draws}));
}

void GradientExchange::gather_stored(const Context& ctx, const comm::ProcessGroup& group,
                                     const SlicedGradient& gradient) {
  const Quantized& storage = gradient.storage;
  const auto rows_of = [&](int j) {
    const model::Range rows = rows_of_slice(gradient, j, 0, gradient.slice);
    return storage.row_range(rows.begin, rows.end);
  };
  sum_slice(ctx, group, gradient);
  const Quantized own = rows_of(group.rank());
  if (comm::Window* here = window(ctx, group, gradient))
    return expose(ctx, Exposed::Gradients, [&] { here->all_gather(ctx)->wait(); });
  std::vector<comm::Message> sends, receives;
  for (int j = 0; j < group.size(); ++j) {
    if (j == group.rank()) continue;
    add(sends, j, own);
    add(receives, j, rows_of(j));
  }
  group.exchange(ctx, sends, receives);
}

// All ranks keep what the codes say, also the one that has the sum itself.
void GradientExchange::gather_encoded(const Context& ctx, const Bucket& bucket) const {
  const comm::ProcessGroup& group = *bucket.group;
  const Quantized& storage = bucket.gradient.storage;
  const int64_t count = bucket.end - bucket.begin;
  const Quantized codes = codec::view_in(buffers_[0].in, wire_, group.size() * count, storage.row);
  const auto rows_of = [&](int j) { return rows_of_slice(bucket.gradient, j, bucket.begin, bucket.end); };
  const auto codes_of = [&](int j) { return codes.row_range(j * count, j * count + rows_of(j).count()); };
  const auto numbers_of = [&](int j) { return storage.row_range(rows_of(j).begin, rows_of(j).end).plain(); };

  const int own = group.rank();
  if (rows_of(own).count() > 0)
    codec::encode(
        ctx, numbers_of(own), codes_of(own),
        rounding(ctx, bucket.gradient, {RngStream::ReducedGradient, rows_of(own).begin, bucket.gradient.draws}));
  std::vector<comm::Message> sends, receives;
  for (int j = 0; j < group.size(); ++j) {
    if (j == own) continue;
    add(sends, j, codes_of(own));
    add(receives, j, codes_of(j));
  }
  group.exchange(ctx, sends, receives);
  for (int j = 0; j < group.size(); ++j)
    if (rows_of(j).count() > 0) codec::decode(ctx, codes_of(j), numbers_of(j));
}

}  // namespace agoq::parallel
