#include <gmock/gmock.h>

#include <optional>
#include <random>

#include "comm/gpu/nccl_cuda.h"
#include "cuda/thread_ranks.h"
#include "device/exposed.h"
#include "device/side_stream.h"
#include "device/transfer.h"

namespace agoq::comm::test {
namespace {

using std::chrono::seconds;

// --- what needs no GPU

TEST(GpuTransportChoice, RanksThatShareAGpuAreStaged) {
  const Gpu::Uuid a{1}, b{2};
  const std::vector<Gpu::Uuid> own = {a, b}, shared = {b, a, b};
  EXPECT_EQ(why_staged({}, own).empty(), kNcclBuild);
  EXPECT_FALSE(why_staged({}, shared).empty());
  EXPECT_FALSE(why_staged({GpuTransport::Staged}, own).empty());
  EXPECT_THROW(why_staged({GpuTransport::Nccl}, shared), Error);
  EXPECT_FALSE(why_staged({GpuTransport::Direct}, shared).empty());
}

// --- ranks as threads

// The element i of a tensor that rank `rank` makes: integers, so that every sum of a few is exact also in bf16.
float number(int rank, int64_t i) {
  return static_cast<float>((i * 7 + rank * 13) % 31 - 15);
}

template <class T>
std::vector<T> numbers(int rank, int64_t count, int64_t first = 0) {
  std::vector<T> all;
  for (int64_t i = 0; i < count; ++i) all.push_back(from_float<T>(number(rank, first + i)));
  return all;
}

template <class T>
Tensor on_gpu(const Rank& r, const std::vector<T>& values) {
  const Tensor t = r.ctx.empty(dtype_of<T>, {static_cast<int64_t>(values.size())});
  upload(r.ctx, values.data(), t);
  return t;
}

template <class T>
std::vector<float> on_host(const Context& ctx, const Tensor& t) {
  std::vector<T> values(static_cast<size_t>(t.count()));
  download(ctx, t, values.data());
  std::vector<float> floats;
  for (const T& x : values) floats.push_back(to_float(x));
  return floats;
}

template <class T>
std::vector<float> floats(const std::vector<T>& values) {
  std::vector<float> all;
  for (const T& x : values) all.push_back(to_float(x));
  return all;
}

struct Case {
  int ranks;
  bool gpu_each;  // then NCCL, otherwise staged
};

class GroupOfGpus : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    const int needed = GetParam().gpu_each ? GetParam().ranks : 1;
    if (!why_no_gpu().empty()) GTEST_SKIP() << "no GPU: none is visible";
    if (visible_gpus() < needed) GTEST_SKIP() << needed << " GPUs are needed, " << visible_gpus() << " are visible";
    if (GetParam().gpu_each && !kNcclBuild) GTEST_SKIP() << "this build has no NCCL";
  }
  static std::vector<int> everyone(const Rank& r) {
    std::vector<int> ranks;
    for (int i = 0; i < r.size; ++i) ranks.push_back(i);
    return ranks;
  }
  static void run(const std::function<void(Rank&)>& body) { run_ranks(GetParam().ranks, GetParam().gpu_each, body); }
};

TEST_P(GroupOfGpus, ChoosesItsLink) {
  run([&](Rank& r) {
    const ProcessGroup group = r.world();
    EXPECT_EQ(group.gpu_link(), "");
    group.open(r.ctx);
    EXPECT_THAT(group.gpu_link(), ::testing::HasSubstr(GetParam().gpu_each ? "NCCL" : "host memory"));
  });
}

TEST_P(GroupOfGpus, AllGather) {
  run([](Rank& r) {
    const ProcessGroup group = r.world();
    for (const int64_t count : {1, 1000, 300'007}) {
      Scope scope(r.ctx);
      const Tensor mine = on_gpu(r, numbers<float>(r.rank, count));
      const Tensor all = r.ctx.empty(DType::F32, {r.size, count});
      const uint64_t before = group.bytes_sent();
      group.all_gather(r.ctx, mine, all);
      if (count > 1) {  // the first one also opened the group
        EXPECT_EQ(group.bytes_sent() - before, mine.bytes() * static_cast<size_t>(r.size - 1));
      }
      std::vector<float> want;
      for (int rank = 0; rank < r.size; ++rank)
        for (const float x : numbers<float>(rank, count)) want.push_back(x);
      EXPECT_EQ(on_host<float>(r.ctx, all), want);

      const Tensor own = all.row_range(r.rank, r.rank + 1);
      zero(r.ctx, all);
      copy(r.ctx, mine, own);
      group.all_gather(r.ctx, own, all);
      EXPECT_EQ(on_host<float>(r.ctx, all), want) << "in place";
    }
  });
}

template <class T>
void reduce_scatter(Rank& r, int64_t count) {
  const ProcessGroup group = r.world();
  Scope scope(r.ctx);
  const Tensor sum = r.ctx.empty(dtype_of<T>, {count});
  group.reduce_scatter_sum(r.ctx, on_gpu(r, numbers<T>(r.rank, count * r.size)), sum);
  std::vector<float> want(static_cast<size_t>(count), 0);
  for (int rank = 0; rank < r.size; ++rank)
    for (int64_t i = 0; i < count; ++i) want[static_cast<size_t>(i)] += number(rank, r.rank * count + i);
  EXPECT_EQ(on_host<T>(r.ctx, sum), want);
}

TEST_P(GroupOfGpus, ReduceScatter) {
  run([](Rank& r) {
    reduce_scatter<float>(r, 100'003);
    reduce_scatter<Bf16>(r, 4096);
  });
}

TEST_P(GroupOfGpus, AllReduce) {
  run([](Rank& r) {
    const ProcessGroup group = r.world();
    const int64_t count = 5003;
    const Tensor x = on_gpu(r, numbers<float>(r.rank, count));
    group.all_reduce_sum(r.ctx, x);
    std::vector<float> want(static_cast<size_t>(count), 0);
    for (int rank = 0; rank < r.size; ++rank)
      for (int64_t i = 0; i < count; ++i) want[static_cast<size_t>(i)] += number(rank, i);
    EXPECT_EQ(on_host<float>(r.ctx, x), want);
  });
}

// Every rank draws the same sizes, a message may be empty, and two exchanges are on their way at once.
TEST_P(GroupOfGpus, ExchangesOfRandomSizes) {
  run([](Rank& r) {
    const ProcessGroup group = r.world();
    std::mt19937 draw(7);
    struct Expected {
      Tensor got;
      std::vector<float> want;
    };
    for (int round = 0; round < 10; ++round) {
      Scope scope(r.ctx);
      std::vector<Expected> expected;
      std::vector<std::unique_ptr<Pending>> pending;
      for (int64_t exchange = 0; exchange < 2; ++exchange) {
        std::vector<Message> sends, receives;
        for (int from = 0; from < r.size; ++from)
          for (int to = 0; to < r.size; ++to) {
            const int64_t count = std::uniform_int_distribution<int64_t>(0, 1 << (2 * round))(draw) - 1;
            if (from == to || count < 0) continue;
            const std::vector<float> values = numbers<float>(from, count, to + exchange);
            if (from == r.rank) sends.push_back({to, on_gpu(r, values)});
            if (to != r.rank) continue;
            receives.push_back({from, r.ctx.empty(DType::F32, {count})});
            expected.push_back({receives.back().data, values});
          }
        pending.push_back(group.start(r.ctx, sends, receives));
      }
      for (const auto& one : pending) one->wait();
      for (const auto& [got, want] : expected) EXPECT_EQ(on_host<float>(r.ctx, got), want) << "round " << round;
    }
  });
}

// What the stream does to a tensor before start() is sent, what it does after wait() is not; and what it does to the
// place of a message before start() does not harm the message.
TEST_P(GroupOfGpus, KeepsTheOrderOfTheStream) {
  run([](Rank& r) {
    const ProcessGroup group = r.world();
    const int64_t count = 4 << 20;
    const int next = (r.rank + 1) % r.size, previous = (r.rank + r.size - 1) % r.size;
    const Tensor old_value = on_gpu(r, numbers<float>(r.rank, count));
    const Tensor x = r.ctx.empty(DType::F32, {count}), y = r.ctx.empty(DType::F32, {count});
    const Tensor received = r.ctx.empty(DType::F32, {count});
    for (int round = 0; round < 5; ++round) {
      for (int again = 0; again < 20; ++again) copy(r.ctx, old_value, received);  // keeps the stream busy
      copy(r.ctx, old_value, x);
      zero(r.ctx, y);
      const Message send{next, x}, receive{previous, y};
      group.start(r.ctx, {&send, 1}, {&receive, 1})->wait();
      copy(r.ctx, y, received);
      zero(r.ctx, x);
      zero(r.ctx, y);
      EXPECT_EQ(on_host<float>(r.ctx, received), numbers<float>(previous, count)) << "round " << round;
    }
  });
}

// An exchange in a side stream begins behind what the compute stream was given before, and ends before what it is given
// after join(); in between the compute stream does not wait for it.
TEST_P(GroupOfGpus, ExchangesBesideTheComputeStream) {
  run([](Rank& r) {
    const ProcessGroup group = r.world();
    SideStream side;
    const int64_t count = 4 << 20;
    const int next = (r.rank + 1) % r.size, previous = (r.rank + r.size - 1) % r.size;
    const Tensor old_value = on_gpu(r, numbers<float>(r.rank, count));
    const Tensor x = r.ctx.empty(DType::F32, {count}), staged = r.ctx.empty(DType::F32, {count});
    const Tensor y = r.ctx.empty(DType::F32, {count}), other = r.ctx.empty(DType::F32, {count});
    for (int round = 0; round < 5; ++round) {
      for (int again = 0; again < 20; ++again) copy(r.ctx, old_value, other);  // keeps the compute stream busy
      copy(r.ctx, old_value, x);
      zero(r.ctx, y);
      const Context beside = side.behind(r.ctx);
      copy(beside, x, staged);
      zero(beside, x);
      const Message send{next, staged}, receive{previous, y};
      const auto pending = group.start(beside, {&send, 1}, {&receive, 1});
      for (int again = 0; again < 20; ++again) copy(r.ctx, old_value, other);
      pending->wait();
      copy(beside, y, x);
      side.join(r.ctx);
      copy(r.ctx, x, other);
      zero(r.ctx, x);
      EXPECT_EQ(on_host<float>(r.ctx, other), numbers<float>(previous, count)) << "round " << round;
    }
  });
}

// A pipeline: its forward and backward messages go by groups of their own, and a stage waits for one while the other is
// on its way.
TEST_P(GroupOfGpus, GroupsDoNotWaitForEachOther) {
  run([](Rank& r) {
    const ProcessGroup forward = r.world(1), backward = r.world(2);
    forward.open(r.ctx);
    backward.open(r.ctx);
    const int64_t count = 100'000;
    const Tensor x = on_gpu(r, numbers<float>(r.rank, count));
    const Tensor down = r.ctx.empty(DType::F32, {count}), up = r.ctx.empty(DType::F32, {count});
    const bool first = r.rank == 0, last = r.rank == r.size - 1;
    std::vector<Message> from_above, to_above;
    if (!last) from_above.push_back({r.rank + 1, up});
    if (!first) to_above.push_back({r.rank - 1, x});
    const auto awaited = backward.start(r.ctx, {}, from_above);  // before anyone sends
    if (!first) forward.receive(r.ctx, r.rank - 1, down);
    if (!last) forward.send(r.ctx, r.rank + 1, x);
    const auto sent = backward.start(r.ctx, to_above, {});
    awaited->wait();
    sent->wait();
    if (!first) {
      EXPECT_EQ(on_host<float>(r.ctx, down), numbers<float>(r.rank - 1, count));
    }
    if (!last) {
      EXPECT_EQ(on_host<float>(r.ctx, up), numbers<float>(r.rank + 1, count));
    }
  });
}

// Rank 0 comes late: the streams of the others stand still, and computing before and after does not count.
TEST_P(GroupOfGpus, MeasuresHowLongTheStreamStandsStill) {
  run([](Rank& r) {
    ProcessGroup group = r.world();
    group.awaited_as(Exposed::Tensor).open(r.ctx);
    const Tensor mine = on_gpu(r, numbers<float>(r.rank, 1000)), all = r.ctx.empty(DType::F32, {r.size, 1000});
    const Tensor big = r.ctx.empty(DType::U8, {32 << 20});
    ExposedTimes times(r.ctx);
    r.ctx.exposed = &times;
    for (int round = 0; round < 2; ++round) {
      r.ctx.gpu().synchronize();
      group.barrier();
      if (r.rank == 0) std::this_thread::sleep_for(std::chrono::milliseconds(200));
      zero(r.ctx, big);
      group.all_gather(r.ctx, mine, all);
      zero(r.ctx, big);
      const ExposedSeconds seconds = times.take();
      const auto of = [&](Exposed kind) { return seconds[static_cast<size_t>(kind)]; };
      if (r.rank != 0) {
        EXPECT_GE(of(Exposed::Tensor), 0.15);
      }
      EXPECT_GT(of(Exposed::Tensor), 0);
      EXPECT_EQ(of(Exposed::Pipeline) + of(Exposed::Gradients) + of(Exposed::Weights), 0);
    }
    r.ctx.exposed = nullptr;
  });
}

// --- memory of other ranks

// Byte i of part `part` of what rank `rank` has.
uint8_t byte_of(int rank, int part, int64_t i) {
  return static_cast<uint8_t>(rank * 101 + part * 17 + i * 7 + i / 251);
}

Tensor parts(const Rank& r, int64_t bytes_each) {
  std::vector<uint8_t> all;
  for (int part = 0; part < r.size; ++part)
    for (int64_t i = 0; i < bytes_each; ++i) all.push_back(byte_of(r.rank, part, i));
  const Tensor t = r.ctx.empty(DType::U8, {r.size * bytes_each});
  upload(r.ctx, all.data(), t);
  return t;
}

// Part j is `expected(j)`: whose, and which of his parts.
void expect_parts(const Rank& r, const Tensor& t, const std::function<std::pair<int, int>(int)>& expected) {
  std::vector<uint8_t> got(t.bytes());
  download(r.ctx, t, got.data());
  const int64_t each = t.count() / r.size;
  for (int part = 0; part < r.size; ++part) {
    const auto [rank, of_his] = expected(part);
    for (int64_t i = 0; i < each; ++i)
      ASSERT_EQ(got[static_cast<size_t>(part * each + i)], byte_of(rank, of_his, i))
          << "rank " << r.rank << ", part " << part << " of " << each << " bytes, byte " << i;
  }
}

TEST_P(GroupOfGpus, WindowsExchangeInPlace) {
  if (GetParam().gpu_each) GTEST_SKIP() << "threads reach each other's memory on one GPU only";
  run([](Rank& r) {
    const ProcessGroup group(r.transport, everyone(r), 0, {GpuTransport::Direct, seconds(20)});
    // Whole words, single bytes, nothing for one half of a pair, more than all threads take at once.
    for (const auto& [codes, scales] : std::vector<std::pair<int64_t, int64_t>>{
             {4096 * 16, 512}, {1003, 17}, {1, 2}, {(8 << 20) + 48, 3 << 16}, {160, 0}}) {
      Scope scope(r.ctx);
      std::vector<Tensor> tensors = {parts(r, codes)};
      if (scales > 0) tensors.push_back(parts(r, scales));
      const auto window = group.window(r.ctx, tensors);
      ASSERT_NE(window, nullptr);
      const uint64_t before = group.bytes_sent();
      for (int times = 1; times <= 3; ++times) {
        window->all_to_all(r.ctx)->wait();
        for (const Tensor& t : tensors)
          expect_parts(r, t,
                       [&](int part) { return times % 2 == 1 ? std::pair(part, r.rank) : std::pair(r.rank, part); });
      }
      window->all_gather(r.ctx)->wait();
      for (const Tensor& t : tensors) expect_parts(r, t, [](int part) { return std::pair(part, part); });
      EXPECT_EQ(group.bytes_sent() - before, static_cast<uint64_t>(4 * (codes + scales) * (r.size - 1)));
      group.barrier();
    }
  });
}

// Nobody's part is taken before the stream has come to the exchange, and nothing that the stream does later meets it.
TEST_P(GroupOfGpus, WindowsKeepTheOrderOfTheStream) {
  if (GetParam().gpu_each) GTEST_SKIP() << "threads reach each other's memory on one GPU only";
  run([](Rank& r) {
    const ProcessGroup group(r.transport, everyone(r), 0, {GpuTransport::Direct, seconds(20)});
    const Tensor x = parts(r, 1 << 20), given = r.ctx.empty(DType::U8, x.shape), got = r.ctx.empty(DType::U8, x.shape);
    copy(r.ctx, x, given);
    const auto window = group.window(r.ctx, {&x, 1});
    for (int round = 0; round < 5; ++round) {
      zero(r.ctx, x);
      for (int again = 0; again < 20 * (r.rank + 1); ++again) copy(r.ctx, given, got);  // ranks come one by one
      copy(r.ctx, given, x);
      window->all_to_all(r.ctx)->wait();
      copy(r.ctx, x, got);
      zero(r.ctx, x);
      expect_parts(r, got, [&](int part) { return std::pair(part, r.rank); });
    }
    group.barrier();
  });
}

TEST_P(GroupOfGpus, WindowsAreForThoseWhoAskForThem) {
  run([](Rank& r) {
    const Tensor x = r.ctx.empty(DType::U8, {r.size});
    EXPECT_EQ(r.world().window(r.ctx, {&x, 1}), nullptr);
  });
}

// A rank that does not come to an exchange ends it for the others.
TEST_P(GroupOfGpus, AWindowThatARankDoesNotComeToIsAnError) {
  if (GetParam().gpu_each) GTEST_SKIP() << "threads reach each other's memory on one GPU only";
  run([](Rank& r) {
    const ProcessGroup group(r.transport, everyone(r), 0, {GpuTransport::Direct, seconds(2)});
    const Tensor x = r.ctx.empty(DType::U8, {r.size * 1000});
    const auto window = group.window(r.ctx, {&x, 1});
    if (r.rank > 0) {
      window->all_to_all(r.ctx)->wait();
      EXPECT_THROW(r.ctx.gpu().synchronize(), PeerError);
      EXPECT_THROW(window->all_to_all(r.ctx), Error) << "the group is given up";
    }
    group.barrier();
  });
}

INSTANTIATE_TEST_SUITE_P(Ranks, GroupOfGpus,
                         ::testing::Values(Case{2, false}, Case{4, false}, Case{2, true}, Case{4, true}),
                         [](const auto& info) {
                           return std::to_string(info.param.ranks) + (info.param.gpu_each ? "ByNccl" : "Staged");
                         });

// --- NCCL itself, as far as one GPU goes

class Nccl : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!why_no_gpu().empty()) GTEST_SKIP() << "no GPU: none is visible";
    if (!kNcclBuild) GTEST_SKIP() << "this build has no NCCL";
    arena = std::make_unique<Arena>(gpu.emplace(), size_t{64} << 20);
    ctx = std::make_unique<Context>(*arena, Device::Cuda, DType::BF16);
  }
  std::shared_ptr<GpuLink> open(const NcclGroup& group) {
    if constexpr (kNcclBuild) return open_nccl(*gpu, group);
    fail("a group of {} by NCCL in a build without it", group.size);
  }
  static NcclId id() {
    if constexpr (kNcclBuild) return make_nccl_id();
    return {};
  }

  std::optional<Gpu> gpu;
  std::unique_ptr<Arena> arena;
  std::unique_ptr<Context> ctx;
};

TEST_F(Nccl, AGroupOfOneSendsToItself) {
  const auto link = open({.id = id()});
  const std::vector<float> values = numbers<float>(3, 100'000);
  const Tensor x = ctx->empty(DType::F32, {100'000}), y = ctx->empty(DType::F32, {100'000});
  const Tensor all = ctx->empty(DType::F32, {100'000});
  upload(*ctx, values.data(), x);
  const Message send{0, x}, receive{0, y};
  link->start(*ctx, {&send, 1}, {&receive, 1})->wait();
  EXPECT_EQ(on_host<float>(*ctx, y), values);
  EXPECT_TRUE(link->all_gather(*ctx, x, all));
  EXPECT_EQ(on_host<float>(*ctx, all), values);
}

TEST_F(Nccl, ARankThatNeverComesIsAnError) {
  try {
    open({.id = id(), .size = 2, .rank = 0, .timeout = seconds(2)});
    FAIL() << "a group of two was opened by one";
  } catch (const PeerError& error) {
    EXPECT_THAT(error.what(), ::testing::HasSubstr("have come within 2 s"));
  }
}

TEST_F(Nccl, ARankThatIsGoneIsAnErrorAtOnce) {
  LocalWorld world(2, std::chrono::seconds(60));
  world.transport(1).abandon("gone");
  Transport& transport = world.transport(0);
  EXPECT_THROW(open({.id = id(), .size = 2, .rank = 0, .timeout = seconds(600), .transport = &transport}), PeerError);
}

// --- the host does not wait for ever

class Hopeless : public Gpu::Watch {
 public:
  void check() override { throw PeerError("nobody comes"); }
  void abandon() noexcept override { ++abandoned; }
  int abandoned = 0;
};

TEST_F(Nccl, WhoWaitsForTheGpuLooksAfterItsWatches) {
  const auto one = std::make_shared<Hopeless>(), other = std::make_shared<Hopeless>();
  gpu->watch(one);
  gpu->watch(other);
  const Tensor x = ctx->empty(DType::U8, {32 << 20});
  for (int i = 0; i < 2000; ++i) zero(*ctx, x);  // some 20 ms
  EXPECT_THROW(gpu->synchronize(), PeerError);
  EXPECT_EQ(one->abandoned, 1);
  EXPECT_EQ(other->abandoned, 1);
}

TEST_F(Nccl, AMessageThatNeverComesIsAnError) {
  if (visible_gpus() < 2) GTEST_SKIP() << "2 GPUs are needed";
  run_ranks(2, true, [](Rank& r) {
    const ProcessGroup group(r.transport, {0, 1}, 0, {.timeout = seconds(2)});
    group.open(r.ctx);
    if (r.rank == 1) return;
    const Tensor x = r.ctx.empty(DType::F32, {1000});
    group.receive(r.ctx, 1, x);
    EXPECT_THROW(r.ctx.gpu().synchronize(), PeerError);
    EXPECT_THROW(group.receive(r.ctx, 1, x), Error) << "the group is given up";
  });
}

}  // namespace
}  // namespace agoq::comm::test
