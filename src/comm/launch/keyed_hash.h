// What cryptography ranks need to know each other: HMAC-SHA-256 and random bytes, both of OpenSSL's libcrypto.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace agoq::comm {

using Digest = std::array<uint8_t, 32>;

Digest keyed_hash(std::string_view key, std::string_view message);
Digest keyed_hash(const Digest& key, std::string_view message);
// Takes as long whether they differ in the first byte or in the last.
bool same(const Digest& a, const Digest& b);
// 32 bytes that nobody can guess, and that do not come twice.
Digest random_digest();
std::string hex(const Digest& digest);

}  // namespace agoq::comm
