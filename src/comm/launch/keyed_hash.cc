#include "comm/launch/keyed_hash.h"

#include <fmt/format.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>

#include "base/error.h"

namespace agoq::comm {

Digest keyed_hash(std::string_view key, std::string_view message) {
  Digest digest{};
  unsigned size = 0;
  const bool made = HMAC(EVP_sha256(), key.data(), static_cast<int>(key.size()),
                         reinterpret_cast<const uint8_t*>(message.data()), message.size(), digest.data(), &size);
  require(made && size == digest.size(), "libcrypto does not compute HMAC-SHA-256");
  return digest;
}

Digest keyed_hash(const Digest& key, std::string_view message) {
  return keyed_hash(std::string_view(reinterpret_cast<const char*>(key.data()), key.size()), message);
}

bool same(const Digest& a, const Digest& b) {
  return CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

Digest random_digest() {
  Digest digest{};
  require(RAND_bytes(digest.data(), static_cast<int>(digest.size())) == 1, "libcrypto has no random numbers");
  return digest;
}

std::string hex(const Digest& digest) {
  std::string digits;
  for (const uint8_t byte : digest) digits += fmt::format("{:02x}", byte);
  return digits;
}

}  // namespace agoq::comm
