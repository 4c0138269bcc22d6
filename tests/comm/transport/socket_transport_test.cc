#include "comm/transport/socket_transport.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "comm/processes.h"
#include "comm/traffic.h"

namespace agoq::comm {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::Each;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::StartsWith;

constexpr seconds kLong{60};

void expect_all_end(Processes& processes, int world, const std::string& text, std::initializer_list<int> except) {
  for (int rank = 0; rank < world; ++rank)
    if (std::find(except.begin(), except.end(), rank) == except.end()) {
      EXPECT_EQ(processes.text(rank), "error: " + text) << "rank " << rank;
    }
}

TEST(Sockets, AllToAllOfRandomSizesFromTwoThreads) {
  Processes processes = connected(4, [](Transport& transport) {
    on_two_threads(transport, 30, 300'000);
    return "ok";
  });
  EXPECT_THAT(processes.texts(), Each("ok"));
}

TEST(Sockets, EarlyMessagesKeepTheirOrder) {
  Processes processes = connected(3, [](Transport& transport) {
    early_in_order(transport, 4000);
    return "ok";
  });
  EXPECT_THAT(processes.texts(), Each("ok"));
}

TEST(Sockets, LongMessagesDoNotHoldUpOtherChannels) {
  Processes processes = connected(3, [](Transport& transport) {
    long_ring(transport, size_t{64} << 20);
    return "ok";
  });
  EXPECT_THAT(processes.texts(), Each("ok"));
}

TEST(Sockets, OverTcpToo) {
  ConnectOptions options = patient(kLong, kLong);
  options.local_sockets = false;
  Processes processes = connected(
      4,
      [](Transport& transport) {
        on_two_threads(transport, 20, 300'000);
        early_in_order(transport, 2000);
        long_ring(transport, size_t{16} << 20);
        return "ok";
      },
      options);
  EXPECT_THAT(processes.texts(), Each("ok"));
}

TEST(Sockets, OverTcpAKilledRankIsNamedByAll) {
  ConnectOptions options = patient(kLong, kLong);
  options.local_sockets = false;
  constexpr int kWorld = 4;
  Processes processes = connected(
      kWorld,
      [](Transport& transport) {
        for (int i = 0;; ++i) {
          if (transport.rank() == 3 && i == 20) ::raise(SIGKILL);
          all_to_all(transport, 1, 1, 500'000);
        }
        return "";
      },
      options);
  expect_all_end(processes, kWorld, "rank 3 is gone: its connection was closed", {3});
}

TEST(Sockets, CountsFramingApart) {
  Processes processes = connected(2, [](Transport& transport) {
    const uint64_t before = dynamic_cast<SocketTransport&>(transport).framing_bytes_sent();
    if (transport.rank() == 0)
      send_to(transport, 1, 7, size_t{3} << 20);
    else
      receive_from(transport, 0, 7, size_t{3} << 20);
    const uint64_t framing = dynamic_cast<SocketTransport&>(transport).framing_bytes_sent() - before;
    require(framing < 1000 && (transport.rank() == 1 || framing > 0), "{} bytes of framing", framing);
    return fmt::format("{}", transport.bytes_sent(7));
  });
  EXPECT_THAT(processes.texts(), ElementsAre("3145728", "0"));
}

TEST(Sockets, AWorldOfOneNeedsNoNetwork) {
  const auto transport = connect({});
  EXPECT_EQ(transport->size(), 1);
  transport->start(0, {}, {})->wait();
  const Send to_itself{0, nullptr, 0};
  EXPECT_THROW(transport->start(0, {&to_itself, 1}, {}), Error);
}

TEST(Sockets, SizesThatDoNotMatchAreNamed) {
  for (const size_t expected : {size_t{96}, size_t{4} << 20}) {
    Processes processes = connected(2, [=](Transport& transport) {
      if (transport.rank() == 0)
        send_to(transport, 1, 3, 100);
      else
        receive_from(transport, 0, 3, expected);
      return "ok";
    });
    EXPECT_EQ(processes.text(1),
              fmt::format("error: rank 0 has sent 100 bytes on channel 3, but rank 1 expects {} from it", expected));
  }
}

TEST(Sockets, AKilledRankIsNamedByAll) {
  const auto begin = Clock::now();
  constexpr int kWorld = 5;
  Processes processes = connected(kWorld, [](Transport& transport) {
    for (int i = 0;; ++i) {
      if (transport.rank() == 3 && i == 20) ::raise(SIGKILL);
      all_to_all(transport, 1, 1, 500'000);
    }
    return "";
  });
  expect_all_end(processes, kWorld, "rank 3 is gone: its connection was closed", {3});
  EXPECT_LT(seconds_since(begin), 30);
}

// Rank 1 alone waits for rank 3, and its own end must not be taken for the cause by those who wait for rank 1.
TEST(Sockets, TheFirstCauseIsReportedDownAChain) {
  constexpr int kWorld = 4;
  Processes processes = connected(kWorld, [](Transport& transport) {
    if (transport.rank() == 3) {
      std::this_thread::sleep_for(milliseconds(300));
      ::raise(SIGKILL);
    }
    receive_from(transport, transport.rank() == 0 ? 3 : transport.rank() - 1, 1, 8);
    return "";
  });
  expect_all_end(processes, kWorld, "rank 3 is gone: its connection was closed", {3});
}

TEST(Sockets, AStoppedRankIsNamedByAll) {
  constexpr int kWorld = 4;
  Processes processes = connected(
      kWorld,
      [](Transport& transport) {
        for (int i = 0;; ++i) {
          if (transport.rank() == 2 && i == 5) ::raise(SIGSTOP);
          all_to_all(transport, 1, 1, 100'000);
        }
        return "";
      },
      patient(kLong, seconds(2)));
  const std::string text = "rank 2 does not answer: no sign of life for 2 s (stopped, or its host or network is down)";
  expect_all_end(processes, kWorld, text, {2});
  processes.signal(2, SIGCONT);  // it finds that the others have given it up
  EXPECT_EQ(processes.text(2), "error: " + text);
}

TEST(Sockets, AReasonReachesAll) {
  constexpr int kWorld = 4;
  const auto begin = Clock::now();
  Processes processes = connected(kWorld, [](Transport& transport) -> std::string {
    all_to_all(transport, 1, 3, 1000);
    if (transport.rank() == 3) transport.abandon("the disk is full");
    all_to_all(transport, 1, 100, 1'000'000);
    return "";
  });
  expect_all_end(processes, kWorld, "rank 3: the disk is full", {});
  EXPECT_LT(seconds_since(begin), 30);
}

TEST(Sockets, AnExceptionIsAbandonment) {
  Processes processes = connected(3, [](Transport& transport) -> std::string {
    if (transport.rank() == 1) fail("a bug");
    receive_from(transport, 1, 1, 8);
    return "";
  });
  EXPECT_EQ(processes.text(1), "error: a bug");
  expect_all_end(processes, 3, "rank 1: it ends with an exception", {1});
}

TEST(Sockets, AHangIsFoundBehindThoseWhoWaitForIt) {
  constexpr int kWorld = 4;
  Processes processes = connected(
      kWorld,
      [](Transport& transport) {
        if (transport.rank() == 0)
          for (;;) std::this_thread::sleep_for(seconds(1));
        receive_from(transport, transport.rank() - 1, 6, 8);
        return "";
      },
      patient(seconds(2), kLong));
  for (int rank = 1; rank < kWorld; ++rank) {
    EXPECT_THAT(processes.text(rank), StartsWith("error: rank 0 has not come, though alive: rank ")) << rank;
    EXPECT_THAT(processes.text(rank), HasSubstr("has waited 2 s for 8 B from rank")) << rank;
  }
}

TEST(Sockets, ADeadlockIsCalledOne) {
  Processes processes = connected(
      2,
      [](Transport& transport) {
        receive_from(transport, 1 - transport.rank(), 6, 8);
        return "";
      },
      patient(seconds(1), kLong));
  EXPECT_THAT(processes.texts(), Each(StartsWith("error: ranks 0, 1 wait for each other: rank ")));
}

TEST(Sockets, TheProgramHearsOfAFaultWhileItIsBusyElsewhere) {
  constexpr int kWorld = 3;
  const int port = free_port();
  Processes processes(kWorld, [=](int rank) -> std::string {
    ConnectOptions options = patient(kLong, kLong);
    std::atomic<int> calls = 0;
    std::string heard;
    options.on_fault = [&](const std::string& cause) {
      heard = cause;
      ++calls;
    };
    const auto transport = connect(launch_of(rank, kWorld, port), options);
    if (rank == 1) ::raise(SIGKILL);
    while (calls == 0) std::this_thread::sleep_for(milliseconds(10));
    std::this_thread::sleep_for(milliseconds(200));
    return fmt::format("{} call: {}", calls.load(), heard);
  });
  for (const int rank : {0, 2}) EXPECT_EQ(processes.text(rank), "1 call: rank 1 is gone: its connection was closed");
}

TEST(Sockets, ARankMayEndBeforeTheOthers) {
  Processes processes = connected(3, [](Transport& transport) {
    all_to_all(transport, 1, 3, 100'000);
    if (transport.rank() == 0) return "ok";
    std::this_thread::sleep_for(milliseconds(300));
    if (transport.rank() == 1)
      send_to(transport, 2, 2, 8);
    else
      receive_from(transport, 1, 2, 8);
    return "ok";
  });
  EXPECT_THAT(processes.texts(), Each("ok"));
}

TEST(Sockets, AMessageSentBeforeTheEndStillArrives) {
  Processes processes = connected(2, [](Transport& transport) {
    if (transport.rank() == 0)
      send_to(transport, 1, 2, 8'000'000);
    else {
      std::this_thread::sleep_for(milliseconds(300));
      receive_from(transport, 0, 2, 8'000'000);
    }
    return "ok";
  });
  EXPECT_THAT(processes.texts(), Each("ok"));
}

TEST(Sockets, WaitingForARankThatHasEndedIsAFault) {
  Processes processes = connected(3, [](Transport& transport) {
    if (transport.rank() == 1) receive_from(transport, 0, 2, 8);
    if (transport.rank() == 2) receive_from(transport, 1, 2, 8);
    return "ok";
  });
  EXPECT_EQ(processes.text(0), "ok");
  expect_all_end(processes, 3, "rank 0 has ended, but rank 1 expects 8 bytes from it on channel 2", {0});
}

// A Pending that goes without wait() leaves its buffers alone and the stream in order.
TEST(Sockets, AnExchangeThatIsGivenUpDisturbsNobody) {
  Processes processes = connected(2, [](Transport& transport) {
    constexpr size_t kBytes = size_t{20} << 20;
    if (transport.rank() == 0) {
      Bytes data = content(0, 1, 1, 0, kBytes);
      const Send send{1, data.data(), data.size()};
      transport.start(1, {&send, 1}, {}).reset();
      std::fill(data.begin(), data.end(), uint8_t{0});
      send_to(transport, 1, 1, 10);
    } else {
      Bytes data(kBytes);
      const Receive receive{0, data.data(), data.size()};
      transport.start(1, {}, {&receive, 1})->wait();
      expect(data, content(0, 1, 1, 0, kBytes), "a send that was given up");
      Bytes ten(10, 7);
      const Receive small{0, ten.data(), ten.size()};
      transport.start(1, {}, {&small, 1})->wait();
      expect(ten, Bytes(10), "what followed");
    }
    Bytes room(kBytes, 5);
    const Receive receive{1 - transport.rank(), room.data(), room.size()};
    transport.start(2, {}, {&receive, 1}).reset();
    const Bytes as_given_up = room;  // a part may have come
    send_to(transport, 1 - transport.rank(), 2, kBytes);
    send_to(transport, 1 - transport.rank(), 2, 3);
    receive_from(transport, 1 - transport.rank(), 2, 3);
    expect(room, as_given_up, "the buffer of a receive that was given up");
    return "ok";
  });
  EXPECT_THAT(processes.texts(), Each("ok"));
}

}  // namespace
}  // namespace agoq::comm
