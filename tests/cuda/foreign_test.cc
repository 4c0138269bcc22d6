// Ops on streams and in memory of the caller: the same bits as on our own, and nothing on another stream.
#include <gtest/gtest.h>

#include <chrono>
#include <future>
#include <vector>

#include "bench/one_layer.h"
#include "cuda/pair.h"
#include "device/cuda.h"
#include "train/config/config.h"
#include "train/init_source.h"

namespace agoq::bench {
namespace {

using ops::test::the_gpu;

// --- what a caller brings

class ForeignStream {
 public:
  ForeignStream() { AGOQ_CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
  ~ForeignStream() { EXPECT_EQ(cudaStreamDestroy(stream_), cudaSuccess) << "it is still the caller's"; }
  ForeignStream(const ForeignStream&) = delete;
  ForeignStream& operator=(const ForeignStream&) = delete;
  cudaStream_t get() const { return stream_; }
  void wait() const { AGOQ_CUDA_CHECK(cudaStreamSynchronize(stream_)); }

 private:
  cudaStream_t stream_ = nullptr;
};

// Full of garbage at first, as what a caller's allocator gives.
class ForeignBlock {
 public:
  explicit ForeignBlock(size_t bytes) : memory{nullptr, bytes} {
    AGOQ_CUDA_CHECK(cudaMalloc(&memory.data, bytes));
    AGOQ_CUDA_CHECK(cudaMemset(memory.data, 0xA5, bytes));
    AGOQ_CUDA_CHECK(cudaDeviceSynchronize());
  }
  ~ForeignBlock() { EXPECT_EQ(cudaFree(memory.data), cudaSuccess) << "it is still the caller's"; }
  ForeignBlock(const ForeignBlock&) = delete;
  ForeignBlock& operator=(const ForeignBlock&) = delete;
  ForeignMemory memory;
};

// --- the work

parallel::RunSpec run_spec_of(int64_t sequences) {
  train::TrainConfig config;
  config.model_config = "demo";
  config.seq_length = 128;
  config.micro_batch_size = sequences;
  config.device = "cuda";
  config.deterministic_mode = true;  // bits are compared
  const model::ModelConfig model = train::resolve_model(config);
  return train::make_run_spec(train::resolved(config, model, Device::Cuda), model);
}

using Bytes = std::vector<uint8_t>;

// One layer, forward and backward, of invented numbers: norms, products, attention, SwiGLU, codecs.
class LayerWork {
 public:
  LayerWork(Arena& arena, const parallel::RunSpec& run_spec)
      : bench_(arena, Device::Cuda, run_spec),
        layer_(bench_, run_spec),
        saved_{model::SavedTensors(arena, layer_.spec, layer_.run_spec.recipe, 0, run_spec.tokens())},
        first_(bench_.numbers({run_spec.tokens(), run_spec.model.hidden_size})),
        x_(bench_.zeros(first_.dtype, first_.shape)),
        dx_(bench_.zeros(first_.dtype, first_.shape)) {}

  Context context() const { return bench_.ctx(); }

  void run(const Context& ctx) {
    copy(ctx, first_, x_);
    layer_.model.forward(ctx, layer_.params, x_, 0, 1, saved_);
    copy(ctx, first_, dx_);
    layer_.model.backward(ctx, layer_.params, dx_, 0, 1, saved_, layer_.grads);
  }

  // The layer's output, the gradient of its input and those of its weights.
  std::vector<Bytes> results(const Context& ctx) const {
    std::vector<Bytes> all = {on_host(ctx, x_), on_host(ctx, dx_)};
    for (const model::ParamId& id : layer_.params.ids()) {
      const codec::Quantized grad = layer_.grads.data(id);
      all.push_back(on_host(ctx, grad.codes));
      if (grad.scales) all.push_back(on_host(ctx, grad.scales));
    }
    return all;
  }

  static size_t bytes(const parallel::RunSpec& run_spec) {
    Arena arena(Device::Meta, 0);
    LayerWork work(arena, run_spec);
    work.run(work.context());
    return arena.total_bytes();
  }

 private:
  static Bytes on_host(const Context& ctx, const Tensor& tensor) {
    Bytes bytes(tensor.bytes());
    download(ctx, tensor, bytes.data());
    return bytes;
  }

  Workbench bench_;
  OneLayer layer_;
  std::vector<model::SavedTensors> saved_;
  Tensor first_, x_, dx_;
};

// On a stream and in memory of our own.
std::vector<Bytes> own_results(Gpu& gpu, const parallel::RunSpec& run_spec) {
  Arena arena(gpu, LayerWork::bytes(run_spec));
  LayerWork work(arena, run_spec);
  work.run(work.context());
  return work.results(work.context());
}

void expect_equal(const std::vector<Bytes>& want, const std::vector<Bytes>& got, const char* what) {
  ASSERT_EQ(want.size(), got.size());
  for (size_t i = 0; i < want.size(); ++i) EXPECT_TRUE(want[i] == got[i]) << what << ", result " << i;
}

class Foreign : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!the_gpu()) GTEST_SKIP() << "no GPU";
  }
  // Of different sizes, so that neither can be taken for the other.
  const parallel::RunSpec first_ = run_spec_of(2), second_ = run_spec_of(1);
};

// Work on memory of the caller, on the compute stream of `gpu`.
struct ForeignWork {
  ForeignWork(Gpu& gpu, const parallel::RunSpec& run_spec)
      : block(LayerWork::bytes(run_spec)), arena(gpu, block.memory), work(cleared(arena), run_spec) {}

  static Arena& cleared(Arena& arena) {
    zero(Context(arena, Device::Cuda, DType::F32), arena.memory());
    return arena;
  }

  ForeignBlock block;
  Arena arena;
  LayerWork work;
};

TEST_F(Foreign, TwoStreamsAtOnceGiveTheBitsOfOne) {
  const std::vector<Bytes> want_a = own_results(*the_gpu(), first_), want_b = own_results(*the_gpu(), second_);
  const ForeignStream stream_a, stream_b;
  Gpu gpu_a(0, stream_a.get()), gpu_b(0, stream_b.get());
  EXPECT_EQ(gpu_a.stream(), stream_a.get());
  ForeignWork a(gpu_a, first_), b(gpu_b, second_);
  a.work.run(a.work.context());
  b.work.run(b.work.context());
  expect_equal(want_a, a.work.results(a.work.context()), "stream a");
  expect_equal(want_b, b.work.results(b.work.context()), "stream b");
}

TEST_F(Foreign, CudasDefaultStreamIsAStream) {
  const std::vector<Bytes> want = own_results(*the_gpu(), second_);
  Gpu gpu(0, nullptr);
  ForeignWork foreign(gpu, second_);
  foreign.work.run(foreign.work.context());
  expect_equal(want, foreign.work.results(foreign.work.context()), "the default stream");
}

// What streams wait at; opened at the latest when it goes.
class Gate {
 public:
  ~Gate() {
    open();
    for (cudaStream_t stream : streams_) cudaStreamSynchronize(stream);
  }
  void close(cudaStream_t stream) {
    AGOQ_CUDA_CHECK(cudaLaunchHostFunc(stream, &Gate::wait, this));
    streams_.push_back(stream);
  }
  void open() {
    if (!opened_) opening_.set_value();
    opened_ = true;
  }

 private:
  static void wait(void* gate) { static_cast<Gate*>(gate)->future_.wait_for(std::chrono::seconds(60)); }

  std::promise<void> opening_;
  std::shared_future<void> future_ = opening_.get_future();
  bool opened_ = false;
  std::vector<cudaStream_t> streams_;
};

// Two contexts of one GPU share its libraries. The second one's work ends although the first one's stream and the GPU's
// own stand still: nothing of it is there. The first one's is right although it is given while its stream stands still:
// all of it is there.
TEST_F(Foreign, WorkGoesToTheStreamOfItsContextAlone) {
  Gpu& gpu = *the_gpu();
  const std::vector<Bytes> want_a = own_results(gpu, first_), want_b = own_results(gpu, second_);
  const ForeignStream stream_a, stream_b;
  ForeignWork a(gpu, first_), b(gpu, second_);
  Context ctx_a = a.work.context(), ctx_b = b.work.context();
  ctx_a.use_stream(stream_a.get());
  ctx_b.use_stream(stream_b.get());
  gpu.synchronize();  // inputs were made on its stream
  agoq::cuda::Event end_a, end_b;

  Gate gate;
  gate.close(gpu.stream());
  gate.close(stream_a.get());
  a.work.run(ctx_a);
  end_a.record(stream_a.get());
  b.work.run(ctx_b);
  end_b.record(stream_b.get());
  const auto start = std::chrono::steady_clock::now();
  while (!end_b.reached() && std::chrono::steady_clock::now() - start < std::chrono::seconds(20)) {
  }
  EXPECT_TRUE(end_b.reached()) << "the second stream waits for another";
  EXPECT_FALSE(end_a.reached()) << "the first stream went on behind a closed gate";
  gate.open();
  stream_a.wait();
  expect_equal(want_a, a.work.results(ctx_a), "stream a");
  expect_equal(want_b, b.work.results(ctx_b), "stream b");
}

TEST_F(Foreign, MemoryOfAnotherDeviceIsRefused) {
  std::vector<uint8_t> host(1024);
  const auto address = reinterpret_cast<uintptr_t>(host.data());
  void* aligned = host.data() + (Arena::kAlignment - address % Arena::kAlignment) % Arena::kAlignment;
  EXPECT_THROW(Arena(*the_gpu(), ForeignMemory{aligned, 256}), Error);
  const ForeignBlock block(1024);
  EXPECT_THROW(Arena(*the_gpu(), ForeignMemory{static_cast<uint8_t*>(block.memory.data) + 64, 256}), Error);
}

}  // namespace
}  // namespace agoq::bench
