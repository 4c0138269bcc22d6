// The ways to sum a gradient over ranks that are measured beside each other.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "bench/nccl_cuda.h"
#include "codec/codec.h"
#include "comm/process_group.h"

namespace agoq::bench {

// What a rank ends with.
enum class SumForm : uint8_t {
  Exchange,  // the partial sums of its slice, encoded: whoever reads them sums them
  Reduce,    // the sum of its slice
  AllReduce  // the whole sum
};
std::string_view name_of(SumForm form);

// A gradient of equal slices: rows [slice · j, slice · (j + 1)) are those that rank j sums.
struct SlicedShape {
  int64_t slice = 0;
  codec::RowBlocks row;
  int ranks = 1;

  int64_t rows() const { return slice * ranks; }
  // Bytes that a rank must send so that each has its slice's partial sums.
  double bytes_to_send(codec::Codec wire) const {
    return static_cast<double>(slice * (ranks - 1) * codec::full_row_bytes(wire, row));
  }
};

// One way. All ranks of the group do the same in the same order.
class SumMethod {
 public:
  struct Name {
    std::string by;       // "AGoQ", "NCCL", "ring"
    codec::Codec wire{};  // format on the way
    SumForm form{};
    bool stochastic = false;  // how partial sums are rounded
  };
  SumMethod(Name name, const codec::Quantized& partial_sum) : partial_sum_(partial_sum), name_(std::move(name)) {}
  virtual ~SumMethod() = default;
  SumMethod(const SumMethod&) = delete;
  SumMethod& operator=(const SumMethod&) = delete;

  const Name& name() const { return name_; }
  // This rank's partial sum [rows, cols], in the wire's format; to be filled anew after at most 8 runs, since some
  // leave sums of sums.
  const codec::Quantized& partial_sum() const { return partial_sum_; }
  virtual void run(const Context& ctx) = 0;
  // The first rows of this rank's slice of the sum -> numbers [n, cols] in fp32.
  virtual void read(const Context& ctx, const codec::Quantized& numbers) const = 0;

 protected:
  codec::Quantized partial_sum_;

 private:
  Name name_;
};

// All ways that there are on this device, with their operands in the context's arena. `nccl`: its own sums are among
// them; null: sums of bf16 and fp32 by our exchange stand in their place.
std::vector<std::unique_ptr<SumMethod>> sum_methods(const Context& ctx, const comm::ProcessGroup& group,
                                                    const SlicedShape& shape, const NcclSums* nccl);

}  // namespace agoq::bench
