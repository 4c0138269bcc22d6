#include "comm/handshake.h"

#include <cstring>

namespace agoq::comm {
namespace {

template <class Message>
std::string_view bytes_of(const Message& message) {
  static_assert(std::has_unique_object_representations_v<Message>);
  return {reinterpret_cast<const char*>(&message), sizeof message};
}

// The purpose has no line break, and the rest has a fixed size: no two conversations read the same.
Digest proof(std::string_view side, const Credentials& credentials, const Hello& hello, const Digest& nonce_of_door) {
  std::string said(side);
  said.append("\n").append(credentials.purpose).append("\n");
  said.append(bytes_of(hello)).append(bytes_of(nonce_of_door));
  return keyed_hash(credentials.key, said);
}

}  // namespace

bool is_hello(const Hello& hello) {
  return hello.head.magic == Hello{}.head.magic;
}

Digest proof_of_door(const Credentials& credentials, const Hello& hello, const Digest& nonce_of_door) {
  return proof("door", credentials, hello, nonce_of_door);
}

Digest proof_of_caller(const Credentials& credentials, const Hello& hello, const Digest& nonce_of_door) {
  return proof("caller", credentials, hello, nonce_of_door);
}

std::string_view text_of(Greeting greeting) {
  switch (greeting) {
    case Greeting::Known:
      return "";
    case Greeting::NoAnswer:
      return "it accepts connections, but does not answer as a rank does";
    case Greeting::OtherKey:
      return "it does not have this job's secret";
    case Greeting::OtherProtocol:
      return "it speaks another version of the protocol, so it is another build";
  }
  return "";
}

Greeting greet(const FileDescriptor& door, const Credentials& credentials, const Claim& claim, Deadline deadline) {
  Hello hello;
  hello.claim = claim;
  hello.nonce = random_digest();
  if (!send_bytes(door, bytes_of(hello), deadline)) return Greeting::NoAnswer;
  Answer answer;
  const std::string head = receive_bytes(door, sizeof(MessageHead), deadline);
  if (head.size() < sizeof(MessageHead)) return Greeting::NoAnswer;
  std::memcpy(&answer.head, head.data(), head.size());
  if (answer.head.magic != Answer{}.head.magic) return Greeting::NoAnswer;
  if (answer.head.protocol != kProtocol) return Greeting::OtherProtocol;
  const std::string rest = receive_bytes(door, sizeof answer - head.size(), deadline);
  if (rest.size() < sizeof answer - head.size()) return Greeting::NoAnswer;
  std::memcpy(&answer.nonce, rest.data(), sizeof answer.nonce);
  std::memcpy(&answer.proof, rest.data() + sizeof answer.nonce, sizeof answer.proof);
  if (!same(answer.proof, proof_of_door(credentials, hello, answer.nonce))) return Greeting::OtherKey;
  const Proof ours = proof_of_caller(credentials, hello, answer.nonce);
  const bool confirmed = send_bytes(door, bytes_of(ours), deadline) &&
                         receive_bytes(door, kConfirmation.size(), deadline) == kConfirmation;
  return confirmed ? Greeting::Known : Greeting::NoAnswer;
}

}  // namespace agoq::comm
