// The process grid: a list of named axes, and the groups of ranks along them (design 5).
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

namespace agoq::comm {

// An axis and its extent, or a place along it.
struct Axis {
  std::string name;
  int size = 1;
  bool operator==(const Axis&) const = default;
};

class Mesh {
 public:
  Mesh() = default;  // one rank
  // The slowest-varying axis first: ranks that differ along the last one are neighbours. Error if a name comes twice.
  explicit Mesh(std::vector<Axis> axes);

  const std::vector<Axis>& axes() const { return axes_; }
  int size(std::string_view axis) const;  // 1 if there is no such axis
  int ranks() const;                      // the product
  int at(int rank, std::string_view axis) const;
  // The rank at these places along the axes that are named, and at 0 along the others.
  int rank(const std::vector<Axis>& places) const;
  // The ranks that differ from `rank` along these axes only, in rising order: the group of `rank` over them.
  std::vector<int> group(int rank, std::initializer_list<std::string_view> axes) const;
  std::string text() const;  // "pipeline 4 x data 1 x tensor 2"
  bool operator==(const Mesh&) const = default;

 private:
  std::vector<Axis> axes_;
};

}  // namespace agoq::comm
