#include "comm/launch/handshake.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <atomic>
#include <cstring>
#include <functional>
#include <thread>

#include "comm/launch/acceptor.h"

namespace agoq::comm {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

Deadline after(milliseconds time) {
  return Deadline::clock::now() + time;
}

Credentials credentials(const std::string& secret, const std::string& purpose = "meet") {
  return {keyed_hash(secret, "of a test"), purpose};
}

constexpr Claim kClaim{3, 2, 0};

template <class Message>
std::string bytes_of(const Message& message) {
  return {reinterpret_cast<const char*>(&message), sizeof message};
}

// RFC 4231, test cases 1, 2 and 6.
TEST(KeyedHash, IsHmacSha256) {
  EXPECT_EQ(hex(keyed_hash(std::string(20, '\x0b'), "Hi There")),
            "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7");
  EXPECT_EQ(hex(keyed_hash("Jefe", "what do ya want for nothing?")),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
  EXPECT_EQ(hex(keyed_hash(std::string(131, '\xaa'), "Test Using Larger Than Block-Size Key - Hash Key First")),
            "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54");
}

TEST(KeyedHash, ComparesAllBytesAndDrawsAnew) {
  Digest a = random_digest(), b = a;
  EXPECT_TRUE(same(a, b));
  b.back() ^= 1;
  EXPECT_FALSE(same(a, b));
  EXPECT_NE(hex(a), hex(random_digest()));
}

// Rank 0 as the server in this thread, a client in another; what each has found out.
struct Conversation {
  HandshakeResult caller = HandshakeResult::NoAnswer;
  bool let_in = false;
  std::string turned_away;
};
Conversation talk(const Credentials& server, const Credentials& caller, const Claim& claim = kClaim) {
  std::vector<FileDescriptor> listeners = listen_tcp(0, "localhost");
  const int port = port_of(listeners.front());
  Acceptor acceptor(std::move(listeners), {.credentials = server});
  Conversation found;
  std::atomic<bool> done = false;
  std::thread thread([&] {
    std::string error;
    const FileDescriptor socket = connect_tcp("localhost", port, after(seconds(20)), error);
    found.caller = shake_hands(socket, caller, claim, after(seconds(20)));
    done = true;
  });
  while (!done && !found.let_in) found.let_in = acceptor.next(after(milliseconds(20))).has_value();
  if (!found.let_in) found.let_in = acceptor.next(after(milliseconds(300))).has_value();
  thread.join();
  found.turned_away = acceptor.turned_away();
  return found;
}

TEST(Handshake, WhoKnowsTheKeyIsLetIn) {
  const Conversation found = talk(credentials("ours"), credentials("ours"));
  EXPECT_EQ(found.caller, HandshakeResult::Known);
  EXPECT_TRUE(found.let_in);
  EXPECT_EQ(found.turned_away, "");
}

TEST(Handshake, AnotherSecretOrPurposeIsSeenByBoth) {
  for (const Credentials& other : {credentials("theirs"), credentials("ours", "pair of ranks")}) {
    const Conversation found = talk(credentials("ours"), other);
    EXPECT_EQ(found.caller, HandshakeResult::OtherKey);
    EXPECT_FALSE(found.let_in);
    EXPECT_EQ(found.turned_away,
              "a connection that did not show this job's secret was closed, the last from 127.0.0.1");
  }
}

TEST(Handshake, WhoCallsAnotherRankIsAtTheWrongDoor) {
  const Conversation found = talk(credentials("ours"), credentials("ours"), {3, 2, 1});
  EXPECT_EQ(found.caller, HandshakeResult::NoAnswer);
  EXPECT_FALSE(found.let_in);
}

// A server that says what `answer` makes of the hello that it gets. What came after that is `heard`.
HandshakeResult shaken_by(const std::function<std::string(const ClientHello&)>& answer, std::string& heard) {
  std::array<int, 2> ends{};
  EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, ends.data()), 0);
  const FileDescriptor server(ends[0]);
  FileDescriptor caller(ends[1]);
  std::thread thread([&] {
    const std::string said = receive_bytes(server, sizeof(ClientHello), after(seconds(20)));
    ClientHello hello;
    std::memcpy(&hello, said.data(), sizeof hello);
    send_bytes(server, answer(hello), after(seconds(20)));
    ::shutdown(server.get(), SHUT_WR);
    heard = receive_bytes(server, 1000, after(seconds(20)));
  });
  const HandshakeResult result = shake_hands(caller, credentials("ours"), kClaim, after(seconds(20)));
  caller.close();
  thread.join();
  return result;
}

// What a server that has the key answers.
ServerHello right_answer(const ClientHello& hello) {
  ServerHello answer;
  answer.nonce = random_digest();
  answer.proof = server_proof(credentials("ours"), hello, answer.nonce);
  return answer;
}

TEST(Handshake, ADoorThatClosesOnTheProofHasNotLetTheCallerIn) {
  std::string heard;
  EXPECT_EQ(shaken_by([](const ClientHello& hello) { return bytes_of(right_answer(hello)); }, heard),
            HandshakeResult::NoAnswer);
  EXPECT_EQ(heard.size(), sizeof(Proof));
}

TEST(Handshake, ADoorWithoutTheKeyGetsNoProof) {
  std::string heard;
  ServerHello recorded;
  EXPECT_EQ(shaken_by(
                [&](const ClientHello& hello) {
                  recorded = right_answer(hello);
                  return bytes_of(recorded).append(kConfirmation);
                },
                heard),
            HandshakeResult::Known);
  EXPECT_EQ(heard.size(), sizeof(Proof));
  // What a real server has answered before, again.
  EXPECT_EQ(shaken_by([&](const ClientHello&) { return bytes_of(recorded); }, heard), HandshakeResult::OtherKey);
  EXPECT_EQ(heard, "");
  // The client's own hash instead of the server's.
  EXPECT_EQ(shaken_by(
                [&](const ClientHello& hello) {
                  recorded.proof = client_proof(credentials("ours"), hello, recorded.nonce);
                  return bytes_of(recorded);
                },
                heard),
            HandshakeResult::OtherKey);
  // Its own words, as on a port that is connected with itself.
  EXPECT_EQ(shaken_by([&](const ClientHello& hello) { return bytes_of(hello); }, heard), HandshakeResult::NoAnswer);
  EXPECT_EQ(shaken_by([&](const ClientHello&) { return "HTTP/1.1 400 Bad Request\r\n\r\n"; }, heard),
            HandshakeResult::NoAnswer);
  EXPECT_EQ(shaken_by([&](const ClientHello&) { return ""; }, heard), HandshakeResult::NoAnswer);
  EXPECT_EQ(shaken_by(
                [&](const ClientHello&) {
                  return bytes_of(MessageHead{ServerHello{}.head.magic, kProtocol + 1});
                },
                heard),
            HandshakeResult::OtherProtocol);
}

TEST(Handshake, ARecordedCallerIsNotLetIn) {
  std::vector<FileDescriptor> listeners = listen_tcp(0, "localhost");
  const int port = port_of(listeners.front());
  Acceptor acceptor(std::move(listeners), {.credentials = credentials("ours")});
  std::string error;
  ClientHello hello;
  hello.claim = kClaim;
  hello.nonce = random_digest();
  std::string recorded;
  const auto call = [&](const std::function<Proof(const ServerHello&)>& proof) {
    const FileDescriptor socket = connect_tcp("localhost", port, after(seconds(20)), error);
    send_bytes(socket, bytes_of(hello), after(seconds(20)));
    std::string said;
    const Deadline deadline = after(seconds(20));
    while (said.size() < sizeof(ServerHello) && Deadline::clock::now() < deadline) {
      acceptor.next(after(milliseconds(10)));
      read_some(socket, said, sizeof(ServerHello) - said.size());
    }
    ServerHello answer;
    std::memcpy(&answer, said.data(), std::min(said.size(), sizeof answer));
    send_bytes(socket, bytes_of(proof(answer)), deadline);
    bool let_in = false;
    while (!let_in && read_some(socket, said, 1)) let_in = acceptor.next(after(milliseconds(10))).has_value();
    if (let_in) said += receive_bytes(socket, sizeof(ServerHello) + kConfirmation.size() - said.size(), deadline);
    EXPECT_EQ(said.substr(sizeof(ServerHello)), let_in ? kConfirmation : "")
        << "a stranger hears no more than the answer";
    return let_in;
  };
  Proof right{};
  EXPECT_TRUE(
      call([&](const ServerHello& answer) { return right = client_proof(credentials("ours"), hello, answer.nonce); }));
  EXPECT_FALSE(call([&](const ServerHello&) { return right; })) << "the same bytes again";
  EXPECT_FALSE(call([&](const ServerHello& answer) { return answer.proof; })) << "the server's own hash";
  EXPECT_FALSE(call([&](const ServerHello& answer) {
    ClientHello other = hello;
    other.claim.from = 1;
    return client_proof(credentials("ours"), other, answer.nonce);
  })) << "of another rank";
}

}  // namespace
}  // namespace agoq::comm
