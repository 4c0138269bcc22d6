// Exchanges that both kinds of transport must get right. Each throws if it does not, so that a child process can run
// it.
#pragma once

#include <cstdint>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "comm/transport/transport.h"

namespace agoq::comm {

using Bytes = std::vector<uint8_t>;

// The bytes of one message, known to both sides.
inline Bytes content(int from, int to, uint32_t channel, int number, size_t size) {
  std::seed_seq seed{from, to, static_cast<int>(channel), number};
  std::mt19937 random(seed);
  Bytes bytes(size);
  for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<uint8_t>(i < 4096 ? random() : i * 7 + i / 251);
  return bytes;
}

// Random, often zero, known to both sides.
inline size_t size_of(int from, int to, uint32_t channel, int number, size_t largest) {
  std::seed_seq seed{from, to, static_cast<int>(channel), number, 1};
  std::mt19937 random(seed);
  const size_t kind = random() % 4;
  return kind == 0 ? 0 : kind == 1 ? random() % 64 : random() % (largest + 1);
}

inline void expect(const Bytes& got, const Bytes& want, const char* what) {
  require(got == want, "{}: {} bytes came that differ from the {} expected", what, got.size(), want.size());
}

// All ranks send to all others, `rounds` times; returns the bytes that this rank has sent.
inline uint64_t all_to_all(Transport& transport, uint32_t channel, int rounds, size_t largest) {
  const int own = transport.rank();
  uint64_t sent = 0;
  for (int round = 0; round < rounds; ++round) {
    std::vector<Bytes> out, in, want;
    for (int peer = 0; peer < transport.size(); ++peer) {
      out.push_back(content(own, peer, channel, round, size_of(own, peer, channel, round, largest)));
      want.push_back(content(peer, own, channel, round, size_of(peer, own, channel, round, largest)));
      in.emplace_back(want.back().size());
    }
    std::vector<Send> sends;
    std::vector<Receive> receives;
    for (int peer = 0; peer < transport.size(); ++peer) {
      if (peer == own) continue;
      const auto p = static_cast<size_t>(peer);
      sends.push_back({peer, out[p].data(), out[p].size()});
      receives.push_back({peer, in[p].data(), in[p].size()});
      sent += out[p].size();
    }
    transport.start(channel, sends, receives)->wait();
    for (size_t p = 0; p < in.size(); ++p)
      if (p != static_cast<size_t>(own)) expect(in[p], want[p], "all-to-all");
  }
  return sent;
}

// Two threads on a channel each, of different sizes, at once.
inline void on_two_threads(Transport& transport, int rounds, size_t largest) {
  uint64_t other_sent = 0;
  std::exception_ptr trouble;
  std::thread other([&] {
    try {
      other_sent = all_to_all(transport, 9, rounds, largest);
    } catch (...) {
      trouble = std::current_exception();
    }
  });
  const uint64_t sent = all_to_all(transport, 8, rounds, largest / 8);
  other.join();
  if (trouble) std::rethrow_exception(trouble);
  require(transport.bytes_sent(8) == sent && transport.bytes_sent(9) == other_sent,
          "bytes sent: {} and {}, not {} and {}", transport.bytes_sent(8), transport.bytes_sent(9), sent, other_sent);
  require(transport.bytes_sent(10) == 0, "bytes were counted on a channel that was not used");
}

// Rank 0 sends many messages before rank 1 asks, on two channels; rank 1 asks for the later channel first.
inline void early_in_order(Transport& transport, int count) {
  std::vector<Bytes> messages;
  for (const uint32_t channel : {1u, 2u})
    for (int i = 0; i < count; ++i)
      messages.push_back(content(0, 1, channel, i, static_cast<size_t>(i % 100) * (i % 500 == 0 ? 10000 : 1)));
  const auto message = [&](uint32_t channel, int i) -> Bytes& {
    return messages[(channel - 1) * static_cast<size_t>(count) + static_cast<size_t>(i)];
  };
  if (transport.rank() == 0) {
    std::vector<std::unique_ptr<Pending>> all;
    for (int i = 0; i < count; ++i)
      for (const uint32_t channel : {1u, 2u}) {
        const Send send{1, message(channel, i).data(), message(channel, i).size()};
        all.push_back(transport.start(channel, {&send, 1}, {}));
      }
    for (const auto& pending : all) pending->wait();
  } else if (transport.rank() == 1) {
    for (const uint32_t channel : {2u, 1u})
      for (int i = 0; i < count; ++i) {
        Bytes got(message(channel, i).size());
        const Receive receive{0, got.data(), got.size()};
        transport.start(channel, {}, {&receive, 1})->wait();
        expect(got, message(channel, i), "early messages");
      }
  }
  all_to_all(transport, 3, 1, 100);
}

// One long message each way around the ring, and short ones on another channel that do not wait for it.
inline void long_ring(Transport& transport, size_t bytes) {
  const int next = (transport.rank() + 1) % transport.size();
  const int before = (transport.rank() + transport.size() - 1) % transport.size();
  const Bytes out = content(transport.rank(), next, 4, 0, bytes);
  Bytes in(bytes);
  const Send send{next, out.data(), out.size()};
  const Receive receive{before, in.data(), in.size()};
  const auto pending = transport.start(4, {&send, 1}, {&receive, 1});
  all_to_all(transport, 5, 20, 1000);
  pending->wait();
  expect(in, content(before, transport.rank(), 4, 0, bytes), "long messages");
}

inline void send_to(Transport& transport, int to, uint32_t channel, size_t bytes) {
  const Bytes data(bytes);
  const Send send{to, data.data(), data.size()};
  transport.start(channel, {&send, 1}, {})->wait();
}

inline void receive_from(Transport& transport, int from, uint32_t channel, size_t bytes) {
  Bytes data(bytes);
  const Receive receive{from, data.data(), data.size()};
  transport.start(channel, {}, {&receive, 1})->wait();
}

}  // namespace agoq::comm
