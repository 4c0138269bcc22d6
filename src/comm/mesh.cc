#include "comm/mesh.h"

#include <algorithm>
#include <functional>
#include <numeric>

#include "base/error.h"

namespace agoq::comm {

std::string_view name_of(Axis axis) {
  constexpr std::array<std::string_view, kAxes> kNames = {"tensor", "data", "pipeline"};
  return kNames.at(static_cast<size_t>(axis));
}

Mesh::Mesh(const Coordinates& extent) : extent_(extent) {
  for (size_t a = 0; a < kAxes; ++a)
    require(extent[a] >= 1, "the {} axis of a mesh has {} ranks; it needs at least 1", name_of(static_cast<Axis>(a)),
            extent[a]);
}

int Mesh::ranks() const {
  return std::accumulate(extent_.begin(), extent_.end(), 1, std::multiplies<>{});
}

Coordinates Mesh::coordinates(int rank) const {
  require(rank >= 0 && rank < ranks(), "rank {} is outside a mesh of {}", rank, ranks());
  Coordinates at{};
  for (size_t a = 0; a < kAxes; ++a) {
    at[a] = rank % extent_[a];
    rank /= extent_[a];
  }
  return at;
}

int Mesh::rank(const Coordinates& at) const {
  int rank = 0;
  for (size_t a = kAxes; a-- > 0;) rank = rank * extent_[a] + at[a];
  return rank;
}

std::vector<int> Mesh::group(int rank, std::initializer_list<Axis> axes) const {
  const Coordinates own = coordinates(rank);
  std::vector<int> members;
  for (int other = 0; other < ranks(); ++other) {
    const Coordinates at = coordinates(other);
    const auto belongs = [&](size_t a) {
      return at[a] == own[a] || std::find(axes.begin(), axes.end(), static_cast<Axis>(a)) != axes.end();
    };
    if (belongs(0) && belongs(1) && belongs(2)) members.push_back(other);
  }
  return members;
}

std::string Mesh::text() const {
  std::string text;
  for (size_t a = 0; a < kAxes; ++a)
    text += fmt::format("{}{} {}", a == 0 ? "" : " x ", name_of(static_cast<Axis>(a)), extent_[a]);
  return text;
}

}  // namespace agoq::comm
