#include "plan/comparison.h"

#include <algorithm>

namespace agoq::plan {

std::vector<OwnerPair> paired(const Layout& layout, const Layout& reference) {
  std::vector<OwnerPair> rows;
  for (const OwnerBytes& o : layout.owners) rows.push_back({o.owner, o.bytes, reference.of(o.owner)});
  std::string before;
  for (const OwnerBytes& o : reference.owners) {
    const auto at = [&](const std::string& owner) {
      return std::find_if(rows.begin(), rows.end(), [&](const OwnerPair& row) { return row.owner == owner; });
    };
    if (at(o.owner) == rows.end()) rows.insert(before.empty() ? rows.begin() : at(before) + 1, {o.owner, 0, o.bytes});
    before = o.owner;
  }
  return rows;
}

}  // namespace agoq::plan
