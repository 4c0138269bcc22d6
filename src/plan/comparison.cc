#include "plan/comparison.h"

#include <algorithm>
#include <optional>

namespace agoq::plan {

std::vector<OwnerPair> paired(const Layout& layout, const Layout& reference) {
  std::vector<OwnerPair> rows;
  for (const OwnerBytes& o : layout.owners) rows.push_back({o.owner, o.bytes, reference.of(o.owner)});
  std::optional<Owner> before;
  for (const OwnerBytes& o : reference.owners) {
    const auto at = [&](Owner owner) {
      return std::find_if(rows.begin(), rows.end(), [&](const OwnerPair& row) { return row.owner == owner; });
    };
    if (at(o.owner) == rows.end()) rows.insert(before ? at(*before) + 1 : rows.begin(), {o.owner, 0, o.bytes});
    before = o.owner;
  }
  return rows;
}

}  // namespace agoq::plan
