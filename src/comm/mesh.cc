#include "comm/mesh.h"

#include <algorithm>

#include "base/error.h"
#include "comm/limits.h"

namespace agoq::comm {

Mesh::Mesh(std::vector<Axis> axes) : axes_(std::move(axes)) {
  for (size_t a = 0; a < axes_.size(); ++a) {
    require(axes_[a].size >= 1, "the {} axis of a mesh has {} ranks; it needs at least 1", axes_[a].name,
            axes_[a].size);
    for (size_t b = 0; b < a; ++b)
      require(axes_[a].name != axes_[b].name, "a mesh has two axes named {}", axes_[a].name);
  }
  int64_t ranks = 1;
  for (const Axis& axis : axes_) {
    ranks *= axis.size;
    require(ranks <= kMostRanks, "a mesh of {} has more than {} ranks", text(), kMostRanks);
  }
}

int Mesh::size(std::string_view axis) const {
  const auto found = std::ranges::find(axes_, axis, &Axis::name);
  return found == axes_.end() ? 1 : found->size;
}

int Mesh::ranks() const {
  int ranks = 1;
  for (const Axis& axis : axes_) ranks *= axis.size;
  return ranks;
}

int Mesh::at(int rank, std::string_view axis) const {
  require(rank >= 0 && rank < ranks(), "rank {} is outside a mesh of {}", rank, ranks());
  for (size_t a = axes_.size(); a-- > 0; rank /= axes_[a].size)
    if (axes_[a].name == axis) return rank % axes_[a].size;
  return 0;
}

int Mesh::rank(const std::vector<Axis>& places) const {
  int rank = 0;
  for (const Axis& axis : axes_) {
    const auto place = std::ranges::find(places, axis.name, &Axis::name);
    rank = rank * axis.size + (place == places.end() ? 0 : place->size);
  }
  return rank;
}

std::vector<int> Mesh::group(int rank, std::initializer_list<std::string_view> axes) const {
  std::vector<int> members = {0};
  // From the slowest axis on: each member becomes one for every place along the axis, or for this rank's own.
  for (const Axis& axis : axes_) {
    const int own = at(rank, axis.name);
    const bool along = std::ranges::find(axes, std::string_view(axis.name)) != axes.end();
    std::vector<int> longer;
    for (const int member : members)
      for (int place = along ? 0 : own; place < (along ? axis.size : own + 1); ++place)
        longer.push_back(member * axis.size + place);
    members = std::move(longer);
  }
  return members;
}

std::string Mesh::text() const {
  std::string text;
  for (const Axis& axis : axes_) text += fmt::format("{}{} {}", text.empty() ? "" : " x ", axis.name, axis.size);
  return text;
}

}  // namespace agoq::comm
