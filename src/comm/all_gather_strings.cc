#include "comm/all_gather_strings.h"

namespace agoq::comm {
namespace {

// The same to every other rank, and from each of them into its place.
void exchange(Transport& transport, uint32_t channel, const Send& mine, std::vector<Receive> places) {
  std::vector<Send> sends;
  std::vector<Receive> receives;
  for (int rank = 0; rank < transport.size(); ++rank) {
    if (rank == transport.rank()) continue;
    sends.push_back({rank, mine.data, mine.bytes});
    receives.push_back(places[static_cast<size_t>(rank)]);
  }
  transport.start(channel, sends, receives)->wait();
}

}  // namespace

std::vector<std::string> all_gather_strings(Transport& transport, uint32_t channel, const std::string& mine) {
  const auto ranks = static_cast<size_t>(transport.size());
  std::vector<uint64_t> lengths(ranks);
  std::vector<std::string> texts(ranks);
  std::vector<Receive> places(ranks);
  const uint64_t length = mine.size();
  for (size_t i = 0; i < ranks; ++i) places[i] = {static_cast<int>(i), &lengths[i], sizeof(uint64_t)};
  exchange(transport, channel, {0, &length, sizeof length}, places);
  for (size_t i = 0; i < ranks; ++i) {
    texts[i].resize(lengths[i]);
    places[i].data = texts[i].data();
    places[i].bytes = texts[i].size();
  }
  exchange(transport, channel, {0, mine.data(), mine.size()}, places);
  texts[static_cast<size_t>(transport.rank())] = mine;
  return texts;
}

}  // namespace agoq::comm
