// Rectangles of a matrix: how a logical tensor is cut into the pieces that ranks hold.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace agoq {

// Rows [row_begin, row_end) by columns [col_begin, col_end).
struct Rectangle {
  int64_t row_begin = 0, row_end = 0;
  int64_t col_begin = 0, col_end = 0;

  int64_t rows() const { return row_end - row_begin; }
  int64_t cols() const { return col_end - col_begin; }
  int64_t count() const { return rows() * cols(); }
  bool empty() const { return rows() <= 0 || cols() <= 0; }
  bool contains(const Rectangle& other) const;
  bool operator==(const Rectangle&) const = default;
  std::string text() const;  // "0:64,128:256"
};

// All of a tensor of these dimensions, whose product fits 63 bits: the last one counts columns, all before it rows; a
// vector is one row.
Rectangle whole_of(std::span<const int64_t> dims);

// Empty where they do not meet.
Rectangle intersection(const Rectangle& a, const Rectangle& b);

// A place that is not in exactly one of some rectangles.
struct CoverFlaw {
  int64_t row = 0, col = 0;
  std::vector<size_t> pieces;  // the two that overlap there; none at a gap
};

// Whether the pieces (none of them empty, all inside `whole`) cover every place once; if not, where first.
std::optional<CoverFlaw> find_cover_flaw(std::span<const Rectangle> pieces, const Rectangle& whole);

// Bytes of numbers that lie row by row without holes, and the rectangle that they fill.
template <class Byte>
struct RectangleBytes {
  Byte* data = nullptr;
  Rectangle at;
};
// Copies the numbers of `part`, which lies in both, each of `size` bytes.
void copy_part(const RectangleBytes<const uint8_t>& from, const RectangleBytes<uint8_t>& to, const Rectangle& part,
               size_t size);

}  // namespace agoq
