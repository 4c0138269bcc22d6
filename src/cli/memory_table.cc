#include "cli/memory_table.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/text.h"
#include "plan/comparison.h"

namespace agoq::cli {
namespace {

std::string bytes_or_dash(size_t bytes) {
  return bytes == 0 ? "-" : human_bytes(bytes);
}

}  // namespace

std::string memory_table(const plan::Layout& layout, const plan::Layout& reference) {
  Table table({"memory", "AGoQ", "share", "bf16/fp32", "AGoQ needs"});
  const auto add = [&](const std::string& owner, size_t bytes, size_t other) {
    const double share = 100.0 * static_cast<double>(bytes) / static_cast<double>(std::max<size_t>(layout.total, 1));
    const double ratio = 100.0 * static_cast<double>(bytes) / static_cast<double>(std::max<size_t>(other, 1));
    table.add_row({owner, bytes_or_dash(bytes), fmt::format("{:.1f}%", share), bytes_or_dash(other),
                   other == 0 ? "" : fmt::format("{:.0f}%", ratio)});
  };
  for (const plan::OwnerPair& row : plan::paired(layout, reference))
    if (row.bytes > 0 || row.reference > 0) add(row.owner.text(), row.bytes, row.reference);
  table.add_rule();
  add("total", layout.total, reference.total);
  return table.text();
}

}  // namespace agoq::cli
