#include "comm/launch/rendezvous.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <net/if.h>
#include <netdb.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <nlohmann/json.hpp>

#include "base/text.h"
#include "comm/launch/handshake.h"
#include "comm/launch/peer_connector.h"
#include "comm/launch/roster.h"
#include "comm/processes.h"
#include "comm/traffic.h"

namespace agoq::comm {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::Each;
using testing::HasSubstr;

TEST(Rendezvous, NamesRanksThatDoNotCome) {
  const int port = free_port();
  Processes processes(3, [=](int rank) -> std::string {
    ConnectOptions options;
    options.rendezvous_timeout = milliseconds(1500);
    connect(launch_of(rank == 2 ? 4 : rank, 5, port), options);
    return "";
  });
  EXPECT_THAT(processes.texts(),
              Each(fmt::format("error: ranks 2, 3 of 5 did not come within 1.5 s: not started, or kept "
                               "from localhost port {}",
                               port)));
}

// Before anything waits for ranks that could not all be connected.
TEST(Rendezvous, NeedsAnOpenSocketForEachRank) {
  Processes processes(1, [](int) -> std::string {
    const rlimit few{128, 512};
    ::setrlimit(RLIMIT_NOFILE, &few);
    connect(launch_of(1, 1000, 1), {});
    return "";
  });
  EXPECT_THAT(processes.text(0),
              HasSubstr("1000 ranks need 1064 open files and sockets on rank 1, and this host allows 512"));
}

TEST(Rendezvous, WithoutRankZeroSaysWhereItWasSought) {
  const int port = free_port();
  Processes processes(1, [=](int) -> std::string {
    ConnectOptions options;
    options.rendezvous_timeout = milliseconds(500);
    connect(launch_of(1, 2, port), options);
    return "";
  });
  EXPECT_THAT(processes.text(0), HasSubstr(fmt::format("rank 1 found no rank 0 at localhost port {} within 0.5 s: "
                                                       "Connection refused. AGOQ_MASTER_ADDR",
                                                       port)));
}

TEST(Rendezvous, RefusesAnotherWorldSizeOnEveryRank) {
  const int port = free_port();
  Processes processes(3, [=](int rank) -> std::string {
    connect(launch_of(rank, rank == 2 ? 4 : 3, port));
    return "";
  });
  EXPECT_THAT(processes.texts(), Each("error: rank 2 was started as one of 4, but rank 0 as one of 3"));
}

TEST(Rendezvous, RefusesARankTwice) {
  const int port = free_port();
  Processes processes(3, [=](int rank) -> std::string {
    connect(launch_of(rank == 2 ? 1 : rank, 3, port));
    return "";
  });
  EXPECT_THAT(processes.texts(),
              Each(HasSubstr("error: two processes say that they are rank 1 of 3: of two jobs at one "
                             "port, which AGOQ_MASTER_PORT keeps apart?")));
}

TEST(Rendezvous, RefusesWhatDiffersOnEveryRank) {
  const int port = free_port();
  Processes processes(3, [=](int rank) -> std::string {
    ConnectOptions options;
    options.agreement = {{"build", "abc"}, {"config", rank == 1 ? "lr = 2" : "lr = 1"}};
    connect(launch_of(rank, 3, port), options);
    return "";
  });
  EXPECT_THAT(processes.texts(), Each("error: the ranks differ where they must agree: config is 'lr = 1' on rank 0 "
                                      "and 'lr = 2' on rank 1"));
}

TEST(Rendezvous, LaterAgreementToo) {
  Processes processes = connected(3, [](Transport& transport) {
    agree(transport, 0, {{"data", "same on all"}});
    agree(transport, 0, {{"data", "fine"}, {"config", transport.rank() == 2 ? "b" : "a longer text"}});
    return "";
  });
  EXPECT_THAT(processes.texts(),
              Each("error: rank 0: the ranks differ where they must agree: config is 'a longer text' on "
                   "rank 0 and 'b' on rank 2"));
}

// A connection on which the handshake is done; calls until the deadline.
FileDescriptor called(const std::string& host, int port, const Credentials& credentials, const Claim& claim,
                      Deadline deadline) {
  std::string error;
  while (Deadline::clock::now() < deadline) {
    FileDescriptor socket = connect_tcp(host, port, deadline, error);
    if (socket.valid() && shake_hands(socket, credentials, claim, deadline) == HandshakeResult::Known) return socket;
    std::this_thread::sleep_for(milliseconds(20));
  }
  return {};
}

// Someone who is not of us comes to the meeting point first and says something else, and someone who says nothing.
TEST(Rendezvous, ForeignConnectionsDisturbNobody) {
  const int port = free_port();
  const Gate gate;
  Processes processes(3, [&](int rank) -> std::string {
    if (rank != 0) gate.wait();
    const auto transport = connect(launch_of(rank, 3, port), patient(seconds(30), seconds(30)));
    all_to_all(*transport, 1, 3, 1000);
    return "ok";
  });
  std::string error;
  std::vector<FileDescriptor> foreign;
  for (const char* says : {"GET / HTTP/1.1\r\n\r\n", "AGOQ/1 \xff\xff\xff\xff", "AGO", "AGQh\1", ""}) {
    FileDescriptor socket;
    const Deadline deadline = Deadline::clock::now() + seconds(10);
    while (!socket.valid() && Deadline::clock::now() < deadline)
      socket = connect_tcp("127.0.0.1", port, deadline, error);
    ASSERT_TRUE(socket.valid()) << error;
    ASSERT_GE(::send(socket.get(), says, std::strlen(says), MSG_NOSIGNAL), 0);
    foreign.push_back(std::move(socket));
  }
  for (int rank = 1; rank < 3; ++rank) gate.open();
  EXPECT_THAT(processes.texts(), Each("ok"));
}

ConnectOptions with_secret(const std::string& secret) {
  ConnectOptions options = patient(seconds(30), seconds(30));
  options.key.bytes = keyed_hash(secret, "of a test");
  return options;
}

// It takes no seat, and learns nothing: the rank whose seat it wants comes later, and all start.
TEST(Rendezvous, WhoDoesNotKnowTheSecretTakesNoSeat) {
  const int port = free_port();
  Processes processes(3, [=](int rank) -> std::string {
    if (rank == 2) return connect(launch_of(1, 2, port), with_secret("theirs")) ? "let in" : "";
    if (rank == 1) std::this_thread::sleep_for(milliseconds(500));
    const auto transport = connect(launch_of(rank, 2, port), with_secret("ours"));
    all_to_all(*transport, 1, 2, 1000);
    return "ok";
  });
  EXPECT_EQ(processes.text(0), "ok");
  EXPECT_EQ(processes.text(1), "ok");
  processes.signal(2, SIGKILL);
}

// Which of a rank and rank 0 is the wrong one, neither can know: each says what it sees, and what to do.
TEST(Rendezvous, AnotherSecretIsSaid) {
  const int port = free_port();
  Processes processes(2, [=](int rank) -> std::string {
    ConnectOptions options = with_secret(rank == 0 ? "ours" : "theirs");
    options.rendezvous_timeout = rank == 0 ? seconds(8) : seconds(60);
    connect(launch_of(rank, 2, port), options);
    return "";
  });
  EXPECT_THAT(
      processes.text(1),
      testing::AllOf(HasSubstr(fmt::format("rank 1 cannot join rank 0 at localhost port {}: it does not have this "
                                           "job's secret",
                                           port)),
                     HasSubstr("export AGOQ_JOB_SECRET=")));
  EXPECT_THAT(processes.text(0),
              testing::AllOf(HasSubstr("rank 1 of 2 did not come within 8 s"),
                             HasSubstr("connections that did not show this job's secret were closed, the last "
                                       "from 127.0.0.1")));
}

TEST(Rendezvous, AnotherAtRankZerosPlaceMustStayToBeBelieved) {
  WrongServer wrong(seconds(3));
  const Deadline begin{};
  EXPECT_FALSE(wrong.stays(HandshakeResult::OtherKey, begin));
  EXPECT_FALSE(wrong.stays(HandshakeResult::OtherKey, begin + seconds(2)));
  EXPECT_FALSE(wrong.stays(HandshakeResult::NoAnswer, begin + seconds(3))) << "it is gone, and the port free";
  EXPECT_FALSE(wrong.stays(HandshakeResult::OtherProtocol, begin + seconds(9))) << "the next";
  EXPECT_FALSE(wrong.stays(HandshakeResult::OtherKey, begin + milliseconds(11900)));
  EXPECT_TRUE(wrong.stays(HandshakeResult::OtherKey, begin + seconds(12)));
}

// Rank 0 gives the roster to a rank; from then on connections between ranks are for those who know the secret, too.
TEST(Rendezvous, PairsKnowEachOtherByTheSecret) {
  const int port = free_port();
  Processes processes(2, [=](int rank) -> std::string {
    const ConnectOptions options = with_secret("ours");
    if (rank == 0) {
      all_to_all(*connect(launch_of(rank, 2, port), options), 1, 2, 1000);
      return "ok";
    }
    const Deadline deadline = Deadline::clock::now() + seconds(30);
    const Endpoints endpoints(1, "localhost", false);
    const FileDescriptor control = called("localhost", port, {options.key.bytes, "meet"}, {2, 1, 0}, deadline);
    send_json(control, as_json(Registration{endpoints.place(), {}}), deadline);
    const std::optional<Roster> roster = roster_in(receive_json(control, deadline), 2);
    const std::string purpose = "pair " + roster->token;
    std::vector<FileDescriptor> callers;
    std::string error, found;
    const auto call = [&](const Digest& key, const std::string& to) {
      callers.push_back(connect_tcp("localhost", roster->places.at(0).port, deadline, error));
      return shake_hands(callers.back(), {key, to}, {2, 1, 0}, deadline);
    };
    if (call(keyed_hash("theirs", "of a test"), purpose) != HandshakeResult::OtherKey) return "another key";
    if (call(options.key.bytes, "pair of an earlier start") != HandshakeResult::OtherKey) return "another start";
    if (call(options.key.bytes, "meet") != HandshakeResult::OtherKey) return "another purpose";
    if (call(options.key.bytes, purpose) != HandshakeResult::Known) return "the right one";
    send_json(control, {{"trouble", ""}}, deadline);
    if (!receive_json(control, deadline).contains("go")) return "no go";
    std::vector<FileDescriptor> sockets(2);
    sockets[0] = std::move(callers.back());
    SocketTransport transport(1, std::move(sockets));
    all_to_all(transport, 1, 2, 1000);
    return "ok";
  });
  EXPECT_THAT(processes.texts(), Each("ok"));
}

// Machines that were restored from one snapshot look like one host. Rank 1 is where rank 2 seems to be, but its local
// socket is not: rank 2 finds it by TCP.
TEST(Rendezvous, RanksThatOnlySeemToBeOnOneHostConnectByTcp) {
  const int port = free_port();
  Processes processes(3, [=](int rank) -> std::string {
    const ConnectOptions options = with_secret("ours");
    if (rank != 1) {
      all_to_all(*connect(launch_of(rank, 3, port), options), 1, 3, 1000);
      return "ok";
    }
    const Deadline deadline = Deadline::clock::now() + seconds(30);
    Endpoints endpoints(1, "localhost", true);
    const FileDescriptor control = called("localhost", port, {options.key.bytes, "meet"}, {3, 1, 0}, deadline);
    PeerAddress place = endpoints.place();
    if (place.host != this_host()) return "no local sockets are tried";
    place.name += "-of-the-clone";
    send_json(control, as_json(Registration{place, {}}), deadline);
    Roster roster = *roster_in(receive_json(control, deadline), 3);
    for (PeerAddress& each : roster.places) each.address = "127.0.0.1";
    std::vector<FileDescriptor> sockets =
        PeerConnector(launch_of(1, 3, port), options.key.bytes, std::move(endpoints), std::move(roster), deadline)
            .connect();
    const std::string caller = peer_address(sockets[2]);
    send_json(control, {{"trouble", ""}}, deadline);
    receive_json(control, deadline);
    SocketTransport transport(1, std::move(sockets));
    all_to_all(transport, 1, 3, 1000);
    return caller == "127.0.0.1" ? "ok" : "by " + caller;
  });
  EXPECT_THAT(processes.texts(), Each("ok"));
}

// Whatever the loopback address that rank 0 is said to be at.
TEST(Rendezvous, MeetsOnAnyLoopback) {
  for (const char* address : {"localhost", "127.0.0.1", "127.0.1.1", "::1"}) {
    std::string error;
    const std::vector<FileDescriptor> probe = listen_tcp(0, "localhost");
    if (std::string(address) == "::1" && probe.size() < 2) continue;  // a host without IPv6
    for (const bool local : {true, false}) {
      const int port = free_port();
      Processes processes(3, [=](int rank) -> std::string {
        ConnectOptions options = with_secret("ours");
        options.local_sockets = local;
        Launch launch = launch_of(rank, 3, port);
        launch.master_addr = address;
        all_to_all(*connect(launch, options), 1, 3, 1000);
        return "ok";
      });
      EXPECT_THAT(processes.texts(), Each("ok")) << address;
    }
  }
}

// A network of this process's own, in which the loopback has no IPv4 address; false where that is not allowed.
bool leave_ipv4() {
  if (::unshare(CLONE_NEWNET) != 0 && ::unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0) return false;
  const FileDescriptor socket(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  ifreq loopback{};
  std::strcpy(loopback.ifr_name, "lo");
  loopback.ifr_flags = IFF_UP;
  if (::ioctl(socket.get(), SIOCSIFFLAGS, &loopback) != 0) return false;
  sockaddr_in none{};
  none.sin_family = AF_INET;
  std::memcpy(&loopback.ifr_addr, &none, sizeof none);
  ::ioctl(socket.get(), SIOCSIFADDR, &loopback);
  return listen_tcp(0, "localhost").size() == 1;
}

TEST(Rendezvous, MeetsOnAHostThatHasIpv6Alone) {
  Processes host(1, [](int) -> std::string {
    if (!leave_ipv4()) return "cannot";
    const int port = free_port();
    Processes processes(3, [=](int rank) -> std::string {
      ConnectOptions options = with_secret("ours");
      options.local_sockets = false;
      const auto transport = connect(launch_of(rank, 3, port), options);
      all_to_all(*transport, 1, 3, 1000);
      return "ok";
    });
    return join(processes.texts(), " ");
  });
  if (host.text(0) == "cannot") GTEST_SKIP() << "no network namespaces";
  EXPECT_EQ(host.text(0), "ok ok ok");
}

TEST(Rendezvous, OnALoopbackNobodyElseHearsOfIt) {
  for (const FileDescriptor& listener : listen_tcp(0, "localhost")) {
    sockaddr_storage address{};
    socklen_t size = sizeof address;
    ASSERT_EQ(::getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address), &size), 0);
    std::array<char, NI_MAXHOST> host{};
    ::getnameinfo(reinterpret_cast<sockaddr*>(&address), size, host.data(), host.size(), nullptr, 0, NI_NUMERICHOST);
    EXPECT_TRUE(is_loopback(host.data())) << host.data();
  }
  for (const char* other : {"node1", "10.0.0.1", "127.example.org", "::", "fd00::1", "128.0.0.1"})
    EXPECT_FALSE(is_loopback(other)) << other;
}

// Fills the queue of one who accepts nobody: who comes now is not answered, as behind a firewall.
std::vector<FileDescriptor> deaf_door(int& port) {
  std::vector<FileDescriptor> sockets;
  sockets.push_back(std::move(listen_tcp(0, "127.0.0.1").front()));
  ::listen(sockets.front().get(), 0);
  port = port_of(sockets.front());
  std::string error;
  while (true) {
    FileDescriptor socket = connect_tcp("127.0.0.1", port, Deadline::clock::now() + milliseconds(100), error);
    if (!socket.valid()) return sockets;
    sockets.push_back(std::move(socket));
  }
}

// Rank 1 lets nobody in: rank 2, who calls it, tells why, while rank 1 only knows that nobody came.
TEST(Rendezvous, AFirewallBetweenTwoIsNamedByAll) {
  const int port = free_port();
  Processes processes(3, [=](int rank) -> std::string {
    ConnectOptions options;
    options.local_sockets = false;
    options.rendezvous_timeout = seconds(1);
    if (rank != 1) connect(launch_of(rank, 3, port), options);
    int closed = 0;
    const std::vector<FileDescriptor> server = deaf_door(closed);
    const Deadline deadline = Deadline::clock::now() + seconds(20);
    const FileDescriptor control = called("localhost", port, {options.key.bytes, "meet"}, {3, 1, 0}, deadline);
    const PeerAddress place{"elsewhere", "", "rank 1", closed};
    send_json(control, as_json(Registration{place, {}}), deadline);
    const std::optional<Roster> roster = roster_in(receive_json(control, deadline), 3);
    const FileDescriptor zero = called("localhost", roster->places.at(0).port,
                                       {options.key.bytes, "pair " + roster->token}, {3, 1, 0}, deadline);
    std::this_thread::sleep_for(milliseconds(1500));  // as long as it waits for rank 2
    send_json(control, {{"trouble", "rank 2 did not connect to rank 1"}}, deadline);
    return "error: " + receive_json(control, deadline).value("trouble", "");
  });
  EXPECT_THAT(processes.texts(), Each(testing::MatchesRegex("error: rank 2 cannot connect to rank 1 at 127.0.0.1 port "
                                                            "[0-9]+: Connection timed out; hosts must let .*")));
}

TEST(Rendezvous, MeetsAtTheHostsName) {
  const int port = free_port();
  Processes processes(3, [=](int rank) -> std::string {
    Launch launch = launch_of(rank, 3, port);
    std::array<char, 256> name{};
    ::gethostname(name.data(), name.size() - 1);
    launch.master_addr = rank == 0 ? "0.0.0.0" : name.data();
    const auto transport = connect(launch, patient(seconds(30), seconds(30)));
    all_to_all(*transport, 1, 3, 1000);
    return "ok";
  });
  EXPECT_THAT(processes.texts(), Each("ok"));
}

}  // namespace
}  // namespace agoq::comm
