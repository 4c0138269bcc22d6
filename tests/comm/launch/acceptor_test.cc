// What strangers can do to a rank that accepts connections: little.
#include "comm/launch/acceptor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <nlohmann/json.hpp>

#include "comm/launch/roster.h"
#include "comm/processes.h"
#include "comm/traffic.h"

namespace agoq::comm {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::AllOf;
using testing::Each;
using testing::HasSubstr;

Deadline after(milliseconds time) {
  return Deadline::clock::now() + time;
}

std::vector<FileDescriptor> idle_connections(int count, int port) {
  std::vector<FileDescriptor> idle;
  std::string error;
  for (int i = 0; i < count; ++i) idle.push_back(connect_tcp("localhost", port, after(seconds(10)), error));
  return idle;
}

// Whether the server has closed it.
bool gone(const FileDescriptor& connection) {
  std::string said;
  return !read_some(connection, said, 1);
}

double cpu_seconds() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
         1e-6 * static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}

// As many as there are descriptors, and more: rank 0 neither runs out of them nor of time.
TEST(Acceptor, IdleConnectionsNeitherStarveRanksNorKeepRankZeroBusy) {
  const int port = free_port();
  const Gate gate;
  Processes processes(3, [&](int rank) -> std::string {
    if (rank != 0) gate.wait();
    const rlimit few = {150, 150};
    if (rank == 0) ::setrlimit(RLIMIT_NOFILE, &few);
    const auto transport = connect(launch_of(rank, 3, port), patient(seconds(30), seconds(30)));
    all_to_all(*transport, 1, 3, 1000);
    return cpu_seconds() < 0.5 ? "ok" : fmt::format("{} s", cpu_seconds());
  });
  std::string error;
  FileDescriptor first;
  for (const Deadline deadline = after(seconds(10)); !first.valid() && Deadline::clock::now() < deadline;)
    first = connect_tcp("localhost", port, deadline, error);
  const std::vector<FileDescriptor> idle = idle_connections(200, port);
  std::this_thread::sleep_for(milliseconds(500));  // in which rank 0 has nothing to do
  for (int rank = 1; rank < 3; ++rank) gate.open();
  EXPECT_THAT(processes.texts(), Each("ok"));
}

TEST(Acceptor, WithoutDescriptorsTimesOutAllTheSame) {
  const int port = free_port();
  Processes processes(1, [=](int) -> std::string {
    const rlimit few = {20, 20};
    ::setrlimit(RLIMIT_NOFILE, &few);
    std::vector<FileDescriptor> taken;
    Acceptor acceptor(listen_tcp(port, "localhost"), {});
    for (int number = ::dup(0); number >= 0; number = ::dup(0)) taken.emplace_back(number);
    const auto begin = Clock::now();
    acceptor.next(after(milliseconds(1500)));
    return seconds_since(begin) < 3 && cpu_seconds() < 0.5 ? "ok" : fmt::format("{} s", cpu_seconds());
  });
  std::this_thread::sleep_for(milliseconds(300));
  const std::vector<FileDescriptor> idle = idle_connections(5, port);
  EXPECT_EQ(processes.text(0), "ok");
}

TEST(Acceptor, VisitsEnd) {
  std::vector<FileDescriptor> listeners = listen_tcp(0, "localhost");
  const int port = port_of(listeners.front());
  Acceptor acceptor(std::move(listeners), {.credentials = {}, .handshake_timeout = milliseconds(100)});
  const std::vector<FileDescriptor> idle = idle_connections(2, port);
  int sent = 0;
  std::thread slow([&] {  // a byte now and then buys no time
    while (sent < static_cast<int>(sizeof(ClientHello)) && send_bytes(idle[1], "A", after(seconds(1)))) {
      ++sent;
      std::this_thread::sleep_for(milliseconds(20));
    }
  });
  for (const Deadline end = after(seconds(20)); !(gone(idle[0]) && gone(idle[1])) && Deadline::clock::now() < end;)
    EXPECT_FALSE(acceptor.next(after(milliseconds(20))).has_value());
  EXPECT_TRUE(gone(idle[0]));
  EXPECT_TRUE(gone(idle[1]));
  slow.join();
  EXPECT_LT(sent, static_cast<int>(sizeof(ClientHello))) << "it left when it had said too much";
  EXPECT_EQ(acceptor.turned_away(),
            "2 connections that did not show this job's secret were closed, the last from 127.0.0.1");
}

TEST(Acceptor, TheFirstMakesRoomForTheLast) {
  std::vector<FileDescriptor> listeners = listen_tcp(0, "localhost");
  const int port = port_of(listeners.front());
  Acceptor acceptor(std::move(listeners), {.credentials = {}, .strangers = 1});
  const std::vector<FileDescriptor> idle = idle_connections(3, port);
  for (const Deadline end = after(seconds(20)); !gone(idle[0]) && Deadline::clock::now() < end;)
    acceptor.next(after(milliseconds(20)));
  EXPECT_TRUE(gone(idle[0]));
  EXPECT_FALSE(gone(idle[1]));
  EXPECT_FALSE(gone(idle[2]));
  EXPECT_EQ(acceptor.turned_away(),
            "a connection that did not show this job's secret was closed, the last from 127.0.0.1");
}

// As after a process was stopped for longer than a handshake may take: here it may take no time at all.
TEST(Acceptor, WhatWaitsIsHeardBeforeAVisitEnds) {
  std::vector<FileDescriptor> listeners = listen_tcp(0, "localhost");
  const int port = port_of(listeners.front());
  Acceptor acceptor(std::move(listeners), {.credentials = {}, .handshake_timeout = milliseconds(0)});
  const FileDescriptor caller = std::move(idle_connections(1, port).front());
  const ClientHello hello;
  ASSERT_TRUE(send_bytes(caller, {reinterpret_cast<const char*>(&hello), sizeof hello}, after(seconds(10))));
  std::string said;
  for (const Deadline end = after(seconds(20)); Deadline::clock::now() < end;) {
    acceptor.next(after(milliseconds(1)));
    if (!read_some(caller, said, 1000)) break;
  }
  EXPECT_EQ(said.size(), sizeof(ServerHello));
}

TEST(Acceptor, TheAddressOfAConnectionThatWasResetIsKnown) {
  std::vector<FileDescriptor> listeners = listen_tcp(0, "localhost");
  const int port = port_of(listeners.front());
  Acceptor acceptor(std::move(listeners), {});
  {
    const FileDescriptor caller = std::move(idle_connections(1, port).front());
    const linger none{1, 0};  // close() resets the connection
    ASSERT_EQ(::setsockopt(caller.get(), SOL_SOCKET, SO_LINGER, &none, sizeof none), 0);
  }
  for (const Deadline end = after(seconds(20)); acceptor.turned_away().empty() && Deadline::clock::now() < end;)
    acceptor.next(after(milliseconds(1)));
  EXPECT_EQ(acceptor.turned_away(),
            "a connection that did not show this job's secret was closed, the last from 127.0.0.1");
}

// Whoever knows the key (or joins an open run) and says what no rank says is no rank: he is sent away, and the others
// start.
TEST(Acceptor, WhatMakesNoSenseEndsNothing) {
  const int port = free_port();
  const Gate gate;
  Processes processes(2, [&](int rank) -> std::string {
    if (rank != 0) gate.wait();
    const auto transport = connect(launch_of(rank, 2, port), patient(seconds(30), seconds(30)));
    all_to_all(*transport, 1, 2, 1000);
    return "ok";
  });
  const nlohmann::json place = {{"host", "h"}, {"address", ""}, {"name", "n"}, {"port", 1}};
  const nlohmann::json good = {{"place", place}, {"agreement", nlohmann::json::array()}};
  const auto with = [&](const char* where, const nlohmann::json& value) {
    nlohmann::json changed = good;
    changed[nlohmann::json::json_pointer(where)] = value;
    return changed.dump();
  };
  const std::vector<std::string> messages = {"{}",
                                             "null",
                                             "[1",
                                             "\xff\xfe",
                                             std::string(3000, '['),
                                             std::string(1 << 16, ' ') + "{}",
                                             with("/place", 3),
                                             with("/place/port", -1),
                                             with("/place/port", 65536),
                                             with("/place/port", 1099511627776),
                                             with("/place/port", 1.5),
                                             with("/place/port", "1"),
                                             with("/place/name", std::string(200, 'n')),
                                             with("/place/host", nlohmann::json::object()),
                                             with("/agreement", "none"),
                                             with("/agreement", {{"build", 3}}),
                                             with("/agreement", {{"build"}})};
  std::string error;
  const auto say = [&](const Claim& claim, const std::string& message) {
    const Deadline deadline = after(seconds(20));
    FileDescriptor socket;
    while (!socket.valid() && Deadline::clock::now() < deadline)
      socket = connect_tcp("localhost", port, deadline, error);
    if (shake_hands(socket, {{}, "meet"}, claim, deadline) != HandshakeResult::Known) return;
    const auto length = static_cast<uint32_t>(message.size());
    send_bytes(socket, std::string(reinterpret_cast<const char*>(&length), sizeof length) + message, deadline);
  };
  for (const std::string& message : messages) say({2, 1, 0}, message);
  for (const Claim& claim : {Claim{2, 0, 0}, Claim{2, 2, 0}, Claim{2, 0xffffffff, 0}, Claim{0, 0, 0}})
    say(claim, good.dump());
  gate.open();
  EXPECT_THAT(processes.texts(), Each("ok"));
}

TEST(Acceptor, TextsThatAreTooDeepAreNotParsed) {
  EXPECT_TRUE(parse_json("[[[[[[[[]]]]]]]]").is_array());
  EXPECT_TRUE(parse_json("[[[[[[[[[]]]]]]]]]").is_null());
  EXPECT_TRUE(parse_json(R"({"a": "[[[[[[[[[[ \" {{{{{{{{{{"})").is_object());
}

}  // namespace
}  // namespace agoq::comm
