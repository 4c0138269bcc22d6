#include "comm/launch/peer_connector.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <exception>
#include <thread>

#include "base/error.h"
#include "base/error_of.h"
#include "comm/processes.h"

namespace agoq::comm {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

const Credentials kCredentials{{}, "pair start"};

// Of two ranks on hosts of their own. Rank 0 can be found at `port`.
Roster roster(int port) {
  return {"start", {{"node0", "127.0.0.1", "", port}, {"node1", "127.0.0.1", "", 1}}};
}

// Lets a caller come as far as its proof, and closes without a look at it.
void drop_a_caller(const FileDescriptor& listener, Deadline deadline) {
  FileDescriptor caller;
  std::string address;
  while (!caller.valid() && Deadline::clock::now() < deadline) caller = accept_from(listener, address);
  EXPECT_EQ(address, "127.0.0.1");
  ClientHello hello;
  const std::string said = receive_bytes(caller, sizeof hello, deadline);
  ASSERT_EQ(said.size(), sizeof hello);
  std::memcpy(&hello, said.data(), sizeof hello);
  ServerHello answer;
  answer.proof = server_proof(kCredentials, hello, answer.nonce);
  send_bytes(caller, {reinterpret_cast<const char*>(&answer), sizeof answer}, deadline);
  EXPECT_EQ(receive_bytes(caller, sizeof(Proof), deadline).size(), sizeof(Proof));
}

// Rank 0 drops a caller whose proof it has not read, as it does where others need the room.
TEST(PeerConnector, ACallerThatIsDroppedAfterItsProofCallsAgain) {
  Endpoints endpoints(0, "127.0.0.1", false);
  const int port = port_of(endpoints.listeners.front());
  const Deadline deadline = Deadline::clock::now() + seconds(10);
  std::string trouble = "not connected";
  std::thread rank_1([&] {
    const Launch launch = launch_of(1, 2, port);
    try {
      const std::vector<FileDescriptor> connections =
          PeerConnector(launch, {}, Endpoints(1, "127.0.0.1", false), roster(port), deadline).connect();
      if (connections.front().valid()) trouble = "";
    } catch (const std::exception& e) {
      trouble = e.what();
    }
  });
  drop_a_caller(endpoints.listeners.front(), deadline);
  Acceptor acceptor(std::move(endpoints.listeners), {kCredentials, 0, 2});
  EXPECT_TRUE(acceptor.next(deadline).has_value()) << "rank 1 takes itself for connected, and is not";
  rank_1.join();
  EXPECT_EQ(trouble, "");
}

TEST(PeerConnector, WhoDoesNotComeIsToldWithWhoCameInstead) {
  Endpoints endpoints(0, "127.0.0.1", false);
  const int port = port_of(endpoints.listeners.front());
  const Deadline deadline = Deadline::clock::now() + milliseconds(500);
  const Launch launch = launch_of(0, 2, port);
  std::string error;
  const FileDescriptor stranger = connect_tcp("127.0.0.1", port, deadline, error);
  send_bytes(stranger, std::string(sizeof(ClientHello), 'G'), deadline);
  EXPECT_EQ(error_of([&] { PeerConnector(launch, {}, std::move(endpoints), roster(port), deadline).connect(); }),
            "rank 1 did not connect to rank 0; a connection that did not show this job's secret was closed, the last "
            "from 127.0.0.1");
}

}  // namespace
}  // namespace agoq::comm
