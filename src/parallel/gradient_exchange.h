// Slices of gradients on their way between the ranks of a reduction group, through two staging buffers, so that one is
// filled while the other travels. Backward does not wait for them: on a GPU all of it is in a stream of its own; where
// the host carries the bytes, what has no buffer yet stays in a queue until one is free.
#pragma once

#include <array>
#include <deque>
#include <map>
#include <memory>
#include <optional>

#include "device/side_stream.h"
#include "ops/gradient/gradient_sum.h"
#include "parallel/groups.h"
#include "parallel/shard_plan.h"

namespace agoq::parallel {

// A gradient with room for equal slices: rows [slice · j, slice · (j + 1)) belong to rank j.
struct SlicedGradient {
  codec::Quantized storage;  // [ranks · slice, cols]
  int64_t rows = 0;          // without padding
  int64_t slice = 0;
  uint32_t tensor = 0;                // logical id, for draws
  codec::GlobalOffset global_offset;  // likewise
  bool stochastic = true;             // how the wire's format and sums are rounded
};

class GradientExchange {
 public:
  // `wire`: the format on the way. If it differs from that of the gradients, which then are fp32, partial sums are
  // encoded, summed as they arrive, and the sum is stored in fp32; otherwise codes travel as they are. `staging_bytes`:
  // of a staging buffer, none if 0; what does not fit in one goes in several rounds.
  GradientExchange(Arena& arena, codec::Codec wire, bool wire_differs, int64_t staging_bytes);
  // The staging buffer that holds so many rows, of all ranks' slices together; it must hold one of each.
  static int64_t staging_bytes(codec::Codec wire, int64_t rows, const codec::RowBlocks& row);
  // The one for a gradient of so many rows: as large as helps, but no larger than what has to travel.
  static int64_t usual_staging_bytes(codec::Codec wire, int64_t rows, int ranks, const codec::RowBlocks& row);

  // Sends every rank its slice, behind the gradients started before. Until finish(), nobody touches the gradient. All
  // ranks of a group start the same gradients in the same order.
  void start(const Context& ctx, const comm::ProcessGroup& group, const SlicedGradient& gradient);
  // Goes on with what was started, as far as nothing has to be waited for; from time to time, where the host carries
  // the bytes.
  void advance();
  // What `ctx` is given from now on finds everything exchanged.
  void finish(const Context& ctx);
  // Whether a finished gradient is the sum itself, in this rank's slice, and not the partial sums.
  bool stores_sums() const { return wire_differs_; }
  // Partial sums that have arrived -> their sum, encoded once in the wire's format, and of all slices on all ranks (the
  // all-reduce form).
  void gather_sums(const Context& ctx, const comm::ProcessGroup& group, const SlicedGradient& gradient);

 private:
  // Rows [begin, end) of every slice: what a staging buffer carries at a time.
  struct Bucket {
    const comm::ProcessGroup* group = nullptr;
    SlicedGradient gradient;
    int64_t begin = 0, end = 0;
  };
  // One buffer and what it carries.
  struct StagingBuffer {
    Tensor out, in;  // bytes; `in` where the wire's format differs
    std::unique_ptr<comm::Pending> pending;
    ops::GradientSum arrived;  // in `in`, to be summed
    codec::Quantized sum;      // into these rows
  };
  void begin_bucket();
  void send(const Context& ctx, const Bucket& bucket, StagingBuffer& buffer) const;
  void empty(StagingBuffer& buffer);
  int64_t rows_at_once(const comm::ProcessGroup& group, const SlicedGradient& gradient) const;
  void gather_stored(const Context& ctx, const comm::ProcessGroup& group, const SlicedGradient& gradient);
  void gather_encoded(const Context& ctx, const Bucket& bucket) const;
  void encode_partial_sum(const Context& ctx, int rank, const SlicedGradient& gradient, model::Range rows,
                          const codec::Quantized& to) const;
  // The gradient where other ranks reach it, if they do and its codes travel as they are kept: then it is exchanged in
  // place, and no staging buffer is needed. Asked for once; the group and the gradient's place tell windows apart.
  comm::Window* window(const Context& ctx, const comm::ProcessGroup& group, const SlicedGradient& gradient);
  struct RoundingRng {
    RngStream stream{};
    int64_t first_row = 0;
    uint32_t rank = 0;  // ranks round independently of each other
  };
  codec::Rounding rounding(const Context& ctx, const SlicedGradient& gradient, RoundingRng draws) const;

  codec::Codec wire_;
  bool wire_differs_;
  std::array<StagingBuffer, 2> buffers_;  // in turn
  size_t next_ = 0;
  std::deque<Bucket> waiting_;  // for a staging buffer
  SideStream side_;
  std::optional<Context> beside_;  // of the side stream, as the last start() left it
  std::map<std::pair<const comm::ProcessGroup*, void*>, std::shared_ptr<comm::Window>> windows_;
  std::vector<std::unique_ptr<comm::Pending>> in_place_;
};

}  // namespace agoq::parallel
