// XXH3, 64 bits: finds damage in files at memory speed. Not a defence against forgery.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

struct XXH3_state_s;

namespace agoq {

uint64_t xxh3(std::span<const uint8_t> bytes);

// The same value, from bytes that arrive in pieces.
class Xxh3 {
 public:
  Xxh3();
  void add(std::span<const uint8_t> bytes);
  uint64_t value() const;
  void reset();

 private:
  struct Free {
    void operator()(XXH3_state_s* state) const;
  };
  std::unique_ptr<XXH3_state_s, Free> state_;
};

}  // namespace agoq
