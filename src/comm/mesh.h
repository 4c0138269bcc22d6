// The process grid: named axes, and the groups of ranks along them (design 5).
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

namespace agoq::comm {

// The fastest-varying first, as Megatron-LM orders ranks: the ranks of a tensor group are neighbours.
enum class Axis : uint8_t { Tensor, Data, Pipeline, Count };
inline constexpr size_t kAxes = static_cast<size_t>(Axis::Count);
std::string_view name_of(Axis axis);

// A place in the grid, or its extent.
using Coordinates = std::array<int, kAxes>;

class Mesh {
 public:
  Mesh() : Mesh(Coordinates{1, 1, 1}) {}
  explicit Mesh(const Coordinates& extent);

  int size(Axis axis) const { return extent_[static_cast<size_t>(axis)]; }
  int ranks() const;  // the product
  Coordinates coordinates(int rank) const;
  int rank(const Coordinates& at) const;
  // The ranks that differ from `rank` along these axes only, in rising order: the group of `rank` over them.
  std::vector<int> group(int rank, std::initializer_list<Axis> axes) const;
  std::string text() const;  // "tensor 2 x data 1 x pipeline 4"
  bool operator==(const Mesh&) const = default;

 private:
  Coordinates extent_;
};

}  // namespace agoq::comm
