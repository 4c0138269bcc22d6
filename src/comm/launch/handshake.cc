#include "comm/launch/handshake.h"

#include <cstring>

namespace agoq::comm {
namespace {

template <class Message>
std::string_view bytes_of(const Message& message) {
  static_assert(std::has_unique_object_representations_v<Message>);
  return {reinterpret_cast<const char*>(&message), sizeof message};
}

// The purpose has no line break, and the rest has a fixed size: no two conversations read the same.
Digest proof(std::string_view side, const Credentials& credentials, const ClientHello& hello,
             const Digest& server_nonce) {
  std::string said(side);
  said.append("\n").append(credentials.purpose).append("\n");
  said.append(bytes_of(hello)).append(bytes_of(server_nonce));
  return keyed_hash(credentials.key, said);
}

}  // namespace

bool is_client_hello(const ClientHello& hello) {
  return hello.head.magic == ClientHello{}.head.magic;
}

Digest server_proof(const Credentials& credentials, const ClientHello& hello, const Digest& server_nonce) {
  return proof("server", credentials, hello, server_nonce);
}

Digest client_proof(const Credentials& credentials, const ClientHello& hello, const Digest& server_nonce) {
  return proof("client", credentials, hello, server_nonce);
}

std::string_view text_of(HandshakeResult result) {
  switch (result) {
    case HandshakeResult::Known:
      return "";
    case HandshakeResult::NoAnswer:
      return "it accepts connections, but does not answer as a rank does";
    case HandshakeResult::OtherKey:
      return "it does not have this job's secret";
    case HandshakeResult::OtherProtocol:
      return "it speaks another version of the protocol, so it is another build";
  }
  return "";
}

HandshakeResult shake_hands(const FileDescriptor& server, const Credentials& credentials, const Claim& claim,
                            Deadline deadline) {
  ClientHello hello;
  hello.claim = claim;
  hello.nonce = random_digest();
  if (!send_bytes(server, bytes_of(hello), deadline)) return HandshakeResult::NoAnswer;
  ServerHello answer;
  const std::string head = receive_bytes(server, sizeof(MessageHead), deadline);
  if (head.size() < sizeof(MessageHead)) return HandshakeResult::NoAnswer;
  std::memcpy(&answer.head, head.data(), head.size());
  if (answer.head.magic != ServerHello{}.head.magic) return HandshakeResult::NoAnswer;
  if (answer.head.protocol != kProtocol) return HandshakeResult::OtherProtocol;
  const std::string rest = receive_bytes(server, sizeof answer - head.size(), deadline);
  if (rest.size() < sizeof answer - head.size()) return HandshakeResult::NoAnswer;
  std::memcpy(&answer.nonce, rest.data(), sizeof answer.nonce);
  std::memcpy(&answer.proof, rest.data() + sizeof answer.nonce, sizeof answer.proof);
  if (!same(answer.proof, server_proof(credentials, hello, answer.nonce))) return HandshakeResult::OtherKey;
  const Proof ours = client_proof(credentials, hello, answer.nonce);
  const bool confirmed = send_bytes(server, bytes_of(ours), deadline) &&
                         receive_bytes(server, kConfirmation.size(), deadline) == kConfirmation;
  return confirmed ? HandshakeResult::Known : HandshakeResult::NoAnswer;
}

}  // namespace agoq::comm
