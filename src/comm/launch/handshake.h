// How two processes show each other that both know the key of one job, over a connection that anybody can have opened:
//
//   client -> server    ClientHello   who connects to whom, and a nonce
//   server -> client    ServerHello   a nonce, and a keyed hash of both messages
//   client -> server    Proof         another keyed hash of them
//   server -> client    one byte, once the server has checked the proof: until then it may still drop the client
//
// Messages have a fixed size, so nothing of a stranger's is parsed. The key does not travel. A recorded conversation is
// of no use, since each side's nonce is in both hashes; nor is one side's hash for the other, since each names its
// side.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/file_descriptor.h"
#include "comm/launch/keyed_hash.h"
#include "comm/transport/sockets.h"

namespace agoq::comm {

inline constexpr uint32_t kProtocol = 4;

// What both must know.
struct Credentials {
  Digest key{};
  std::string purpose;  // of the connection: a hash for one is none for another
};

// Who connects to whom. The hashes cover it; whether it is true depends on the client.
struct Claim {
  uint32_t world = 0, from = 0, to = 0;
};

// The messages as they travel, little-endian as all machines that this is built for.
struct MessageHead {
  std::array<char, 4> magic{};
  uint32_t protocol = kProtocol;  // its offset and that of the magic never change
};
struct ClientHello {
  MessageHead head{{'A', 'G', 'Q', 'h'}};
  Claim claim;
  Digest nonce{};
};
struct ServerHello {
  MessageHead head{{'A', 'G', 'Q', 'a'}};
  Digest nonce{}, proof{};
};
using Proof = Digest;
inline constexpr std::string_view kConfirmation = "c";
static_assert(sizeof(ClientHello) == 52 && sizeof(ServerHello) == 72);

// Ours, of any version.
bool is_client_hello(const ClientHello& hello);
// Each side's hash of what was said.
Digest server_proof(const Credentials& credentials, const ClientHello& hello, const Digest& server_nonce);
Digest client_proof(const Credentials& credentials, const ClientHello& hello, const Digest& server_nonce);

enum class HandshakeResult : uint8_t {
  Known,          // both have the key, and the server has confirmed it
  NoAnswer,       // it closed the connection, speaks another protocol, or sends nothing
  OtherKey,       // it speaks our protocol, without the key
  OtherProtocol,  // another version of our protocol
};
std::string_view text_of(HandshakeResult result);  // the reason, for a message

// The client's side.
HandshakeResult shake_hands(const FileDescriptor& server, const Credentials& credentials, const Claim& claim,
                            Deadline deadline);

}  // namespace agoq::comm
