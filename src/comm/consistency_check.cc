#include "comm/consistency_check.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "base/text.h"
#include "comm/all_gather_strings.h"
#include "comm/transport/mailbox.h"

namespace agoq::comm {
namespace {

std::string as_text(const ConsistencyCheck& items) {
  nlohmann::json list = nlohmann::json::array();
  for (const CheckedItem& item : items) list.push_back({item.name, item.value});
  return list.dump();
}

ConsistencyCheck from_text(const std::string& text) {
  ConsistencyCheck items;
  for (const auto& item : nlohmann::json::parse(text)) items.push_back({item.at(0), item.at(1)});
  return items;
}

// "'3'", or that there is none.
std::string said_of(const ConsistencyCheck& items, const std::string& name) {
  const auto at = std::find_if(items.begin(), items.end(), [&](const CheckedItem& item) { return item.name == name; });
  return at == items.end() ? "missing" : fmt::format("'{}'", at->value);
}

}  // namespace

std::string differences(std::span<const ConsistencyCheck> by_rank) {
  std::vector<std::string> found;
  for (const CheckedItem& item : by_rank[0]) {
    std::map<std::string, std::vector<int>> others;  // who says otherwise, by what they say
    for (size_t rank = 1; rank < by_rank.size(); ++rank)
      if (const std::string said = said_of(by_rank[rank], item.name); said != fmt::format("'{}'", item.value))
        others[said].push_back(static_cast<int>(rank));
    for (const auto& [said, ranks] : others)
      found.push_back(fmt::format("{} is '{}' on rank 0 and {} on {}", item.name, item.value, said, ranks_text(ranks)));
  }
  return join(found, "; ");
}

// Rank 0 alone judges, so that there is one text; the others wait for its word.
void agree(Transport& transport, uint32_t channel, const ConsistencyCheck& items) {
  if (transport.size() == 1) return;
  std::vector<ConsistencyCheck> by_rank;
  for (const std::string& text : all_gather_strings(transport, channel, as_text(items)))
    by_rank.push_back(from_text(text));
  if (const std::string text = differences(by_rank); transport.rank() == 0 && !text.empty())
    transport.abandon("the ranks differ where they must agree: " + text);
  char word = 'y';
  std::vector<Send> sends;
  std::vector<Receive> receives;
  if (transport.rank() != 0)
    receives.push_back({0, &word, 1});
  else
    for (int rank = 1; rank < transport.size(); ++rank) sends.push_back({rank, &word, 1});
  transport.start(channel, sends, receives)->wait();
}

}  // namespace agoq::comm
