#include "bench/nccl_cuda.h"

#include <nccl.h>

#include <cstring>

#include "comm/gpu/nccl_cuda.h"
#include "device/cuda.h"

namespace agoq::bench {
namespace {

void require_success(ncclResult_t result, const char* call) {
  require(result == ncclSuccess, "{}: {} ({}); NCCL_DEBUG=WARN tells more", call, ncclGetErrorString(result),
          ncclGetLastError(nullptr));
}

ncclDataType_t type_of(const Tensor& x) {
  require(x.dtype == DType::F32 || x.dtype == DType::BF16, "NCCL sums fp32 or bf16 here, not {}", name_of(x.dtype));
  return x.dtype == DType::F32 ? ncclFloat32 : ncclBfloat16;
}

class Communicator : public NcclSums {
 public:
  explicit Communicator(const comm::ProcessGroup& group) {
    const comm::NcclId bytes = group.values(group.rank() == 0 ? comm::make_nccl_id() : comm::NcclId{}).front();
    ncclUniqueId id{};
    static_assert(sizeof(id) == sizeof(bytes));
    std::memcpy(&id, bytes.data(), sizeof(id));
    require_success(ncclCommInitRank(&comm_, group.size(), id, group.rank()), "ncclCommInitRank");
  }
  // Does not wait for other ranks: they may be gone.
  ~Communicator() override { ncclCommAbort(comm_); }
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  void reduce_scatter(const Context& ctx, const Tensor& partial_sums, const Tensor& sum) const override {
    require_success(ncclReduceScatter(partial_sums.data, sum.data, static_cast<size_t>(sum.count()), type_of(sum),
                                      ncclSum, comm_, cuda::stream(ctx)),
                    "ncclReduceScatter");
  }
  void all_reduce(const Context& ctx, const Tensor& x) const override {
    require_success(
        ncclAllReduce(x.data, x.data, static_cast<size_t>(x.count()), type_of(x), ncclSum, comm_, cuda::stream(ctx)),
        "ncclAllReduce");
  }

 private:
  ncclComm_t comm_ = nullptr;
};

}  // namespace

std::unique_ptr<NcclSums> open_nccl_sums(Gpu& gpu, const comm::ProcessGroup& group) {
  gpu.make_current();
  return std::make_unique<Communicator>(group);
}

}  // namespace agoq::bench
