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

// What a rank keeps of the gradients of a step's micro-batches, where ranks sum each at once (ZeRO-2).
struct RunningSum {
  codec::Quantized slice;    // [slice, cols], the rank's own; not kept: partial sums stay partial sums
  bool fresh = true;         // nothing was added yet: overwrite it
  uint32_t micro_batch = 0;  // counted by what was added, for draws
};

// A gradient with room for equal slices: rows [slice · j, slice · (j + 1)) belong to rank j.
struct SlicedGradient {
  codec::Quantized storage;  // [ranks · slice, cols]
  int64_t rows = 0;          // without padding
  int64_t slice = 0;
  uint32_t tensor = 0;                // logical id, for draws
  codec::GlobalOffset global_offset;  // likewise
  bool stochastic = true;             // how the wire's format and sums are rounded
  uint32_t draws = 0;                 // even, and 2 · ranks apart for different sums of the same numbers
  RunningSum running_sum = {};
  bool folded() const { return running_sum.slice.kept(); }
};

// One gradient's exchange.
struct Exchanged {
  bool ended = false;  // nobody reads its storage any more, on the CPU; on a GPU behind the mark
  SideMark mark;
};

// Bytes of staging buffers, 0: none. `out`: of rows on their way out that are not sent from where they lie; `in`: of
// rows that are summed as they arrive.
struct StagingBytes {
  int64_t out = 0, in = 0;
};

class GradientExchange {
 public:
  // `wire`: the format on the way. If it differs from that of the gradients, which then are fp32, partial sums are
  // encoded, summed as they arrive, and the sum is stored in fp32; otherwise codes travel as they are. A gradient with
  // a running sum is stored in `wire`, and summed as it arrives. What does not fit in a staging buffer goes in several
  // rounds.
  GradientExchange(Arena& arena, codec::Codec wire, bool wire_differs, const StagingBytes& staging);
  // The staging buffer that holds so many rows, of all ranks' slices together; it must hold one of each.
  static int64_t staging_bytes(codec::Codec wire, int64_t rows, const codec::RowBlocks& row);
  // The one for a gradient of so many rows: as large as helps, but no larger than what has to travel.
  static int64_t usual_staging_bytes(codec::Codec wire, int64_t rows, int ranks, const codec::RowBlocks& row);

  // Sends every rank its slice, behind the gradients started before. Until finish(), or wait_for() if its sum is kept
  // elsewhere, nobody touches the gradient. All
  // ranks of a group start the same gradients in the same order.
  std::shared_ptr<const Exchanged> start(const Context& ctx, const comm::ProcessGroup& group,
                                         const SlicedGradient& gradient);
  // What `ctx` is given from now on may overwrite a gradient whose sum is kept elsewhere.
  void wait_for(const Context& ctx, const Exchanged& exchanged);
  // Goes on with what was started, as far as nothing has to be waited for; from time to time, where the host carries
  // the bytes.
  void advance();
  // What `ctx` is given from now on finds everything exchanged.
  void finish(const Context& ctx);
  // Whether a finished gradient is the sum itself, in this rank's slice, and not the partial sums.
  bool stores_sums() const { return wire_differs_; }
  // Partial sums that have arrived -> their sum, encoded once, where this rank's slice lies in the storage.
  void sum_slice(const Context& ctx, const comm::ProcessGroup& group, const SlicedGradient& gradient) const;
  // The same, in the wire's format, and of all slices on all ranks (the all-reduce form).
  void gather_sums(const Context& ctx, const comm::ProcessGroup& group, const SlicedGradient& gradient);

 private:
  // Rows [begin, end) of every slice: what a staging buffer carries at a time.
  struct Bucket {
    const comm::ProcessGroup* group = nullptr;
    SlicedGradient gradient;
    int64_t begin = 0, end = 0;
    std::shared_ptr<Exchanged> last_of = {};  // the exchange that it ends, if it does
  };
  // One buffer and what it carries.
  struct StagingBuffer {
    Tensor out, in;  // bytes
    std::unique_ptr<comm::Pending> pending;
    Bucket bucket;
    ops::GradientSum arrived;  // in `in`, to be summed, if there are rows for this rank
  };
  void begin_bucket();
  void send(const Context& ctx, const Bucket& bucket, StagingBuffer& buffer) const;
  void empty(StagingBuffer& buffer);
  void sum_arrived(const StagingBuffer& buffer);
  bool summed_on_arrival(const SlicedGradient& gradient) const { return wire_differs_ || gradient.folded(); }
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
    uint32_t micro_batch = 0;
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
