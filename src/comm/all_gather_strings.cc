#include "comm/all_gather_strings.h"

#include <numeric>

#include "comm/bruck_all_gather.h"

namespace agoq::comm {
namespace {

using Parts = std::vector<std::span<uint8_t>>;

// Each rank's to all others at once.
void all_gather_directly(const HostLink& link, int rank, const Parts& parts) {
  std::vector<Message> sends, receives;
  const auto part = [&](size_t i) { return host_tensor(parts[i].data(), {static_cast<int64_t>(parts[i].size())}); };
  for (size_t i = 0; i < parts.size(); ++i) {
    const int other = static_cast<int>(i);
    if (other == rank) continue;
    sends.push_back({other, part(static_cast<size_t>(rank))});
    receives.push_back({other, part(i)});
  }
  link.start(sends, receives)->wait();
}

}  // namespace

// The lengths first, so that all ranks know what comes.
std::vector<std::string> all_gather_strings(Transport& transport, uint32_t channel, const std::string& mine) {
  const auto ranks = static_cast<size_t>(transport.size()), own = static_cast<size_t>(transport.rank());
  HostLink link{&transport, std::vector<int>(ranks), channel};
  std::iota(link.ranks.begin(), link.ranks.end(), 0);
  std::vector<uint64_t> lengths(ranks);
  std::vector<std::string> texts(ranks);
  Parts parts(ranks);

  lengths[own] = mine.size();
  for (size_t i = 0; i < ranks; ++i) parts[i] = {reinterpret_cast<uint8_t*>(&lengths[i]), sizeof(uint64_t)};
  bruck_all_gather(link, transport.rank(), parts);

  texts[own] = mine;
  for (size_t i = 0; i < ranks; ++i) {
    texts[i].resize(lengths[i]);
    parts[i] = {reinterpret_cast<uint8_t*>(texts[i].data()), texts[i].size()};
  }
  const uint64_t bytes = std::accumulate(lengths.begin(), lengths.end(), uint64_t{0});
  if (bytes == 0) return texts;
  if (bytes <= kMostBytesOfSmall)
    bruck_all_gather(link, transport.rank(), parts);
  else
    all_gather_directly(link, transport.rank(), parts);
  return texts;
}

}  // namespace agoq::comm
