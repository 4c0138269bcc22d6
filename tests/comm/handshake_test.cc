#include "comm/handshake.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <atomic>
#include <cstring>
#include <functional>
#include <thread>

#include "comm/reception.h"

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

// The door of rank 0 in this thread, and who calls it in another; what each has found out.
struct Conversation {
  Greeting caller = Greeting::NoAnswer;
  bool let_in = false;
  std::string turned_away;
};
Conversation talk(const Credentials& door, const Credentials& caller, const Claim& claim = kClaim) {
  std::vector<FileDescriptor> listeners = listen_tcp(0, "localhost");
  const int port = port_of(listeners.front());
  Reception reception(std::move(listeners), {.credentials = door});
  Conversation found;
  std::atomic<bool> done = false;
  std::thread thread([&] {
    std::string error;
    const FileDescriptor socket = connect_tcp("localhost", port, after(seconds(20)), error);
    found.caller = greet(socket, caller, claim, after(seconds(20)));
    done = true;
  });
  while (!done && !found.let_in) found.let_in = reception.next(after(milliseconds(20))).has_value();
  if (!found.let_in) found.let_in = reception.next(after(milliseconds(300))).has_value();
  thread.join();
  found.turned_away = reception.turned_away();
  return found;
}

TEST(Handshake, WhoKnowsTheKeyIsLetIn) {
  const Conversation found = talk(credentials("ours"), credentials("ours"));
  EXPECT_EQ(found.caller, Greeting::Known);
  EXPECT_TRUE(found.let_in);
  EXPECT_EQ(found.turned_away, "");
}

TEST(Handshake, AnotherSecretOrPurposeIsSeenByBoth) {
  for (const Credentials& other : {credentials("theirs"), credentials("ours", "pair of ranks")}) {
    const Conversation found = talk(credentials("ours"), other);
    EXPECT_EQ(found.caller, Greeting::OtherKey);
    EXPECT_FALSE(found.let_in);
    EXPECT_EQ(found.turned_away,
              "a connection that did not show this job's secret was closed, the last from 127.0.0.1");
  }
}

TEST(Handshake, WhoCallsAnotherRankIsAtTheWrongDoor) {
  const Conversation found = talk(credentials("ours"), credentials("ours"), {3, 2, 1});
  EXPECT_EQ(found.caller, Greeting::NoAnswer);
  EXPECT_FALSE(found.let_in);
}

// A door that says what `answer` makes of the hello that it gets. What came after that is `heard`.
Greeting greeted_by(const std::function<std::string(const Hello&)>& answer, std::string& heard) {
  std::array<int, 2> ends{};
  EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, ends.data()), 0);
  const FileDescriptor door(ends[0]);
  FileDescriptor caller(ends[1]);
  std::thread thread([&] {
    const std::string said = receive_bytes(door, sizeof(Hello), after(seconds(20)));
    Hello hello;
    std::memcpy(&hello, said.data(), sizeof hello);
    send_bytes(door, answer(hello), after(seconds(20)));
    ::shutdown(door.get(), SHUT_WR);
    heard = receive_bytes(door, 1000, after(seconds(20)));
  });
  const Greeting greeting = greet(caller, credentials("ours"), kClaim, after(seconds(20)));
  caller.close();
  thread.join();
  return greeting;
}

// What a door that has the key answers.
Answer right_answer(const Hello& hello) {
  Answer answer;
  answer.nonce = random_digest();
  answer.proof = proof_of_door(credentials("ours"), hello, answer.nonce);
  return answer;
}

TEST(Handshake, ADoorThatClosesOnTheProofHasNotLetTheCallerIn) {
  std::string heard;
  EXPECT_EQ(greeted_by([](const Hello& hello) { return bytes_of(right_answer(hello)); }, heard), Greeting::NoAnswer);
  EXPECT_EQ(heard.size(), sizeof(Proof));
}

TEST(Handshake, ADoorWithoutTheKeyGetsNoProof) {
  std::string heard;
  Answer recorded;
  EXPECT_EQ(greeted_by(
                [&](const Hello& hello) {
                  recorded = right_answer(hello);
                  return bytes_of(recorded).append(kConfirmation);
                },
                heard),
            Greeting::Known);
  EXPECT_EQ(heard.size(), sizeof(Proof));
  // What a real door has answered before, again.
  EXPECT_EQ(greeted_by([&](const Hello&) { return bytes_of(recorded); }, heard), Greeting::OtherKey);
  EXPECT_EQ(heard, "");
  // The caller's own hash instead of the door's.
  EXPECT_EQ(greeted_by(
                [&](const Hello& hello) {
                  recorded.proof = proof_of_caller(credentials("ours"), hello, recorded.nonce);
                  return bytes_of(recorded);
                },
                heard),
            Greeting::OtherKey);
  // Its own words, as on a port that is connected with itself.
  EXPECT_EQ(greeted_by([&](const Hello& hello) { return bytes_of(hello); }, heard), Greeting::NoAnswer);
  EXPECT_EQ(greeted_by([&](const Hello&) { return "HTTP/1.1 400 Bad Request\r\n\r\n"; }, heard), Greeting::NoAnswer);
  EXPECT_EQ(greeted_by([&](const Hello&) { return ""; }, heard), Greeting::NoAnswer);
  EXPECT_EQ(greeted_by(
                [&](const Hello&) {
                  return bytes_of(MessageHead{Answer{}.head.magic, kProtocol + 1});
                },
                heard),
            Greeting::OtherProtocol);
}

TEST(Handshake, ARecordedCallerIsNotLetIn) {
  std::vector<FileDescriptor> listeners = listen_tcp(0, "localhost");
  const int port = port_of(listeners.front());
  Reception reception(std::move(listeners), {.credentials = credentials("ours")});
  std::string error;
  Hello hello;
  hello.claim = kClaim;
  hello.nonce = random_digest();
  std::string recorded;
  const auto call = [&](const std::function<Proof(const Answer&)>& proof) {
    const FileDescriptor socket = connect_tcp("localhost", port, after(seconds(20)), error);
    send_bytes(socket, bytes_of(hello), after(seconds(20)));
    std::string said;
    const Deadline deadline = after(seconds(20));
    while (said.size() < sizeof(Answer) && Deadline::clock::now() < deadline) {
      reception.next(after(milliseconds(10)));
      read_some(socket, said, sizeof(Answer) - said.size());
    }
    Answer answer;
    std::memcpy(&answer, said.data(), std::min(said.size(), sizeof answer));
    send_bytes(socket, bytes_of(proof(answer)), deadline);
    bool let_in = false;
    while (!let_in && read_some(socket, said, 1)) let_in = reception.next(after(milliseconds(10))).has_value();
    if (let_in) said += receive_bytes(socket, sizeof(Answer) + kConfirmation.size() - said.size(), deadline);
    EXPECT_EQ(said.substr(sizeof(Answer)), let_in ? kConfirmation : "") << "a stranger hears no more than the answer";
    return let_in;
  };
  Proof right{};
  EXPECT_TRUE(
      call([&](const Answer& answer) { return right = proof_of_caller(credentials("ours"), hello, answer.nonce); }));
  EXPECT_FALSE(call([&](const Answer&) { return right; })) << "the same bytes again";
  EXPECT_FALSE(call([&](const Answer& answer) { return answer.proof; })) << "the door's own hash";
  EXPECT_FALSE(call([&](const Answer& answer) {
    Hello other = hello;
    other.claim.from = 1;
    return proof_of_caller(credentials("ours"), other, answer.nonce);
  })) << "of another rank";
}

}  // namespace
}  // namespace agoq::comm
