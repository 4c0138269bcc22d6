#include "comm/gpu/nccl_cuda.h"

#include <nccl.h>

#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <string_view>
#include <vector>

#include "base/polling.h"
#include "comm/gpu/side_exchanges_cuda.h"
#include "device/cuda.h"
#include "device/gpu_queues.h"

namespace agoq::comm {
namespace {

constexpr auto kShutdown = std::chrono::seconds(10);  // how long a group that ends waits for ranks that are not so far
constexpr size_t kHandshakeSlots = size_t{1} << 16;   // a byte of each rank

// NVLink multicast needs rights that containers often lack, and NCCL's API has no switch for it.
const char* multicast_remedy() {
  const char* multicast = std::getenv("NCCL_NVLS_ENABLE");
  return multicast && std::string_view(multicast) == "0" ? "" : "NCCL_NVLS_ENABLE=0 does without NVLink multicast, ";
}

void require_success(ncclResult_t result, const char* call) {
  require(result == ncclSuccess, "{}: {} ({}); NCCL_DEBUG=WARN tells more, {}--gpu-transport staged does without NCCL",
          call, ncclGetErrorString(result), ncclGetLastError(nullptr), multicast_remedy());
}

class NcclLink;

// All of a GPU, since they are given up together.
struct OpenLinks {
  std::vector<NcclLink*> links;
};
struct SharedOpenLinks {
  explicit SharedOpenLinks(Gpu&) {}
  std::shared_ptr<OpenLinks> open = std::make_shared<OpenLinks>();
};

// The communicator is a non-blocking one: calls return at once and are asked about, so that a rank that is gone is an
// error here and not a call that never returns. Any error ends the communicator.
class NcclLink : public GpuLink, public Gpu::Watch {
 public:
  NcclLink(Gpu& gpu, const NcclGroup& group);
  ~NcclLink() override;
  NcclLink(const NcclLink&) = delete;
  NcclLink& operator=(const NcclLink&) = delete;

  void connect(Gpu& gpu);
  std::unique_ptr<Pending> start(const Context& ctx, std::span<const Message> sends,
                                 std::span<const Message> receives) override;
  bool all_gather(const Context& ctx, const Tensor& mine, const Tensor& all) override;
  std::string description() const override { return "NCCL " + text(nccl_version().loaded); }

  void check() override;
  void abandon() noexcept override;

 private:
  void shake_hands(Gpu& gpu);
  template <class Call>
  std::unique_ptr<Pending> enqueue(const Context& ctx, const Call& call);
  void settle(ncclResult_t result, const char* call, Polling::Duration timeout);
  void end();

  NcclGroup group_;
  std::shared_ptr<OpenLinks> links_;
  ncclComm_t comm_ = nullptr;  // null before connect() and after abandon()
  SideExchanges exchanges_;
};

NcclLink::NcclLink(Gpu& gpu, const NcclGroup& group) : group_(group), links_(gpu.library<SharedOpenLinks>().open) {
  links_->links.push_back(this);
}

void NcclLink::connect(Gpu& gpu) {
  ncclUniqueId id{};
  static_assert(sizeof(id) == sizeof(group_.id));
  std::memcpy(&id, group_.id.data(), sizeof(id));
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  try {
    settle(ncclCommInitRankConfig(&comm_, group_.size, id, group_.rank, &config), "ncclCommInitRankConfig",
           group_.timeout);
  } catch (...) {
    abandon();
    throw;
  }
  shake_hands(gpu);
}

// Two ranks connect at their first message, and both hosts wait for that. In a pipeline the one may come to it long
// before the other, so all pairs exchange a byte while all ranks are here.
void NcclLink::shake_hands(Gpu& gpu) {
  Arena arena(gpu, kHandshakeSlots);
  const Context ctx(arena, Device::Cuda, DType::F32);
  const Tensor own = ctx.empty(DType::U8, {1}), others = ctx.empty(DType::U8, {group_.size, 1});
  std::vector<Message> sends, receives;
  for (int i = 0; i < group_.size; ++i) {
    if (i == group_.rank) continue;
    sends.push_back({i, own});
    receives.push_back({i, others.row_range(i, i + 1)});
  }
  start(ctx, sends, receives)->wait();
  gpu.synchronize();
}

// Waits until a call has done its part on the host; for an exchange: until its kernels are in the stream.
void NcclLink::settle(ncclResult_t result, const char* call, Polling::Duration timeout) {
  const Polling polling;
  while (result == ncclInProgress) {
    require_success(ncclCommGetAsyncError(comm_, &result), "ncclCommGetAsyncError");
    if (result != ncclInProgress) break;
    if (group_.transport) group_.transport->check();
    if (polling.elapsed() > timeout)
      throw PeerError(
          fmt::format("{}: not all of the {} ranks of a group have come within {} s; see the logs of the others", call,
                      group_.size, group_.timeout.count()));
    polling.pause();
  }
  if (result == ncclRemoteError) throw PeerError(fmt::format("{}: a rank of the group is gone", call));
  require_success(result, call);
}

template <class Call>
std::unique_ptr<Pending> NcclLink::enqueue(const Context& ctx, const Call& call) {
  require(comm_ != nullptr, "this group of {} ranks was given up after an error", group_.size);
  const Context beside = exchanges_.begin(ctx);
  try {
    settle(call(cuda::stream(beside)), "an exchange by NCCL", group_.timeout);
  } catch (...) {
    abandon();
    throw;
  }
  return exchanges_.end(ctx, beside);
}

std::unique_ptr<Pending> NcclLink::start(const Context& ctx, std::span<const Message> sends,
                                         std::span<const Message> receives) {
  return enqueue(ctx, [&](cudaStream_t stream) {
    ncclResult_t result = ncclGroupStart();
    for (const Message& m : sends) {
      if (result != ncclSuccess || m.data.bytes() == 0) continue;
      result = ncclSend(m.data.data, m.data.bytes(), ncclUint8, m.peer, comm_, stream);
    }
    for (const Message& m : receives) {
      if (result != ncclSuccess || m.data.bytes() == 0) continue;
      result = ncclRecv(m.data.data, m.data.bytes(), ncclUint8, m.peer, comm_, stream);
    }
    const ncclResult_t end = ncclGroupEnd();  // also after an error: it leaves the group
    return result == ncclSuccess ? end : result;
  });
}

bool NcclLink::all_gather(const Context& ctx, const Tensor& mine, const Tensor& all) {
  enqueue(ctx, [&](cudaStream_t stream) {
    return ncclAllGather(mine.data, all.data, mine.bytes(), ncclUint8, comm_, stream);
  })->wait();
  return true;
}

// A rank that dies while it writes to this GPU's memory tells NCCL nothing: the transport or the clock must.
void NcclLink::check() {
  if (!comm_) return;
  if (group_.transport) group_.transport->check();
  ncclResult_t state = ncclSuccess;
  require_success(ncclCommGetAsyncError(comm_, &state), "ncclCommGetAsyncError");
  if (state != ncclInProgress) settle(state, "an exchange by NCCL", group_.timeout);
  exchanges_.require_progress(group_.timeout, group_.size);
}

// An abort waits for the GPU, and so for the kernels of all communicators: only a group of aborts tells all of them to
// stop before it waits.
void NcclLink::abandon() noexcept {
  if (!comm_) return;
  ncclGroupStart();
  for (const NcclLink* link : links_->links)
    if (link->comm_) ncclCommAbort(link->comm_);
  ncclGroupEnd();
  for (NcclLink* link : links_->links) link->comm_ = nullptr;
}

void NcclLink::end() {
  settle(ncclCommFinalize(comm_), "ncclCommFinalize", kShutdown);
  ncclCommDestroy(comm_);
  comm_ = nullptr;
}

// A rank that ends by an error does not wait for the others.
NcclLink::~NcclLink() {
  try {
    if (comm_ && std::uncaught_exceptions() == 0) end();
  } catch (...) {
    // It is given up below.
  }
  abandon();
  std::erase(links_->links, this);
}

}  // namespace

NcclId make_nccl_id() {
  ncclUniqueId id{};
  require_success(ncclGetUniqueId(&id), "ncclGetUniqueId");
  NcclId bytes{};
  std::memcpy(bytes.data(), &id, sizeof(id));
  return bytes;
}

LibraryVersion nccl_version() {
  int version = 0;
  require_success(ncclGetVersion(&version), "ncclGetVersion");
  return {"NCCL", {NCCL_MAJOR, NCCL_MINOR, NCCL_PATCH}, decode_version(static_cast<size_t>(version))};
}

std::shared_ptr<GpuLink> open_nccl(Gpu& gpu, const NcclGroup& group) {
  require_fit(nccl_version());
  require_gpu_queues();
  gpu.make_current();
  const auto link = std::make_shared<NcclLink>(gpu, group);
  gpu.watch(link);
  link->connect(gpu);
  return link;
}

}  // namespace agoq::comm
