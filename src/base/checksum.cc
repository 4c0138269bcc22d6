#include "base/checksum.h"

#include <xxhash.h>

#include <new>

namespace agoq {

uint64_t xxh3(std::span<const uint8_t> bytes) {
  return XXH3_64bits(bytes.data(), bytes.size());
}

void Xxh3::Free::operator()(XXH3_state_s* state) const {
  XXH3_freeState(state);
}

Xxh3::Xxh3() : state_(XXH3_createState()) {
  if (!state_) throw std::bad_alloc();
  reset();
}

void Xxh3::add(std::span<const uint8_t> bytes) {
  XXH3_64bits_update(state_.get(), bytes.data(), bytes.size());
}

uint64_t Xxh3::value() const {
  return XXH3_64bits_digest(state_.get());
}

void Xxh3::reset() {
  XXH3_64bits_reset(state_.get());
}

}  // namespace agoq
