#include "comm/rendezvous.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <nlohmann/json.hpp>

#include "processes.h"
#include "traffic.h"

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
                               "from 127.0.0.1 port {}",
                               port)));
}

TEST(Rendezvous, WithoutRankZeroSaysWhereItWasSought) {
  const int port = free_port();
  Processes processes(1, [=](int) -> std::string {
    ConnectOptions options;
    options.rendezvous_timeout = milliseconds(500);
    connect(launch_of(1, 2, port), options);
    return "";
  });
  EXPECT_THAT(processes.text(0), HasSubstr(fmt::format("rank 1 found no rank 0 at 127.0.0.1 port {} within 0.5 s: "
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

// Someone who is not of us comes to the meeting point first and says something else, and someone who says nothing.
TEST(Rendezvous, ForeignConnectionsDisturbNobody) {
  const int port = free_port();
  Processes processes(3, [=](int rank) -> std::string {
    if (rank != 0) std::this_thread::sleep_for(milliseconds(500));
    const auto transport = connect(launch_of(rank, 3, port), patient(seconds(30), seconds(30)));
    all_to_all(*transport, 1, 3, 1000);
    return "ok";
  });
  std::string error;
  std::vector<FileDescriptor> foreign;
  for (const char* says : {"GET / HTTP/1.1\r\n\r\n", "AGOQ/1 \xff\xff\xff\xff", "AGO", ""}) {
    FileDescriptor socket;
    const Deadline deadline = Deadline::clock::now() + seconds(10);
    while (!socket.valid() && Deadline::clock::now() < deadline)
      socket = connect_tcp("127.0.0.1", port, deadline, error);
    ASSERT_TRUE(socket.valid()) << error;
    ASSERT_GE(::send(socket.get(), says, std::strlen(says), MSG_NOSIGNAL), 0);
    foreign.push_back(std::move(socket));
  }
  EXPECT_THAT(processes.texts(), Each("ok"));
}

// Fills the queue of one who accepts nobody: who comes now is not answered, as behind a firewall.
std::vector<FileDescriptor> deaf_door(int& port) {
  std::vector<FileDescriptor> sockets;
  sockets.push_back(listen_tcp(0, true));
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
    const std::vector<FileDescriptor> door = deaf_door(closed);
    const Deadline deadline = Deadline::clock::now() + seconds(20);
    FileDescriptor control;
    std::string error;
    while (!control.valid() && Deadline::clock::now() < deadline)
      control = connect_tcp("127.0.0.1", port, deadline, error);
    const nlohmann::json place = {{"host", "elsewhere"}, {"name", "rank 1"}, {"port", closed}};
    send_json(control,
              {{"protocol", 1}, {"world", 3}, {"rank", 1}, {"place", place}, {"agreement", nlohmann::json::array()}},
              deadline);
    const nlohmann::json roster = receive_json(control, deadline);
    const FileDescriptor zero =
        connect_tcp("127.0.0.1", roster.at("ranks").at(0).at("port").get<int>(), deadline, error);
    send_json(zero, {{"token", roster.at("token")}, {"rank", 1}}, deadline);
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
