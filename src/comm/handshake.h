// How two processes show each other that both know the key of one job, over a connection that anybody can have opened:
//
//   caller -> door    Hello    who calls whom, and a nonce
//   door -> caller    Answer   a nonce, and a hash of all that was said, which only who knows the key can make
//   caller -> door    Proof    another hash of it
//   door -> caller    one byte, once the door has checked the proof: until then it may still drop the caller
//
// Messages have a fixed size, so nothing of a stranger's is parsed. The key does not travel. A recorded conversation is
// of no use, since each side's nonce is in both hashes; nor is one side's hash for the other, since each names its
// side.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/file_descriptor.h"
#include "comm/keyed_hash.h"
#include "comm/sockets.h"

namespace agoq::comm {

inline constexpr uint32_t kProtocol = 3;

// What both must know.
struct Credentials {
  Digest key{};
  std::string purpose;  // of the connection: a hash for one is none for another
};

// Who calls whom. A hash covers it, but its truth is the caller's.
struct Claim {
  uint32_t world = 0, from = 0, to = 0;
};

// The messages as they travel, little-endian as all machines that this is built for.
struct MessageHead {
  std::array<char, 4> magic{};
  uint32_t protocol = kProtocol;  // its place and that of the magic never change
};
struct Hello {
  MessageHead head{{'A', 'G', 'Q', 'h'}};
  Claim claim;
  Digest nonce{};
};
struct Answer {
  MessageHead head{{'A', 'G', 'Q', 'a'}};
  Digest nonce{}, proof{};
};
using Proof = Digest;
inline constexpr std::string_view kConfirmation = "c";
static_assert(sizeof(Hello) == 52 && sizeof(Answer) == 72);

// Ours, of any version.
bool is_hello(const Hello& hello);
// Each side's hash of what was said.
Digest proof_of_door(const Credentials& credentials, const Hello& hello, const Digest& nonce_of_door);
Digest proof_of_caller(const Credentials& credentials, const Hello& hello, const Digest& nonce_of_door);

enum class Greeting : uint8_t {
  Known,          // both have the key, and the door has confirmed it
  NoAnswer,       // it has closed, does not speak our language, or lets us wait
  OtherKey,       // it speaks our language, without the key
  OtherProtocol,  // another version of it
};
std::string_view text_of(Greeting greeting);  // the reason, for a message

// The caller's side.
Greeting greet(const FileDescriptor& door, const Credentials& credentials, const Claim& claim, Deadline deadline);

}  // namespace agoq::comm
