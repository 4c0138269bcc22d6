#include "base/rectangle.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <numeric>

namespace agoq {
namespace {

// Rows where the set of pieces that cross a row changes, in rising order.
std::vector<int64_t> row_borders(std::span<const Rectangle> pieces, const Rectangle& whole) {
  std::vector<int64_t> borders = {whole.row_begin};
  for (const Rectangle& piece : pieces) borders.insert(borders.end(), {piece.row_begin, piece.row_end});
  std::sort(borders.begin(), borders.end());
  borders.erase(std::unique(borders.begin(), borders.end()), borders.end());
  std::erase(borders, whole.row_end);
  return borders;
}

// The first flaw of one row, which these pieces cross in the order of their columns.
std::optional<CoverFlaw> flaw_in_row(std::span<const Rectangle> pieces, std::span<const size_t> crossing, int64_t row,
                                     const Rectangle& whole) {
  int64_t col = whole.col_begin;
  for (size_t i = 0; i < crossing.size(); ++i) {
    const Rectangle& piece = pieces[crossing[i]];
    if (piece.col_begin > col) return CoverFlaw{row, col, {}};
    if (piece.col_begin < col) return CoverFlaw{row, piece.col_begin, {crossing[i - 1], crossing[i]}};
    col = piece.col_end;
  }
  if (col < whole.col_end) return CoverFlaw{row, col, {}};
  return std::nullopt;
}

}  // namespace

bool Rectangle::contains(const Rectangle& other) const {
  return row_begin <= other.row_begin && other.row_end <= row_end && col_begin <= other.col_begin &&
         other.col_end <= col_end;
}

std::string Rectangle::text() const {
  return fmt::format("{}:{},{}:{}", row_begin, row_end, col_begin, col_end);
}

Rectangle whole_of(std::span<const int64_t> dims) {
  if (dims.empty()) return {0, 1, 0, 1};
  const std::span<const int64_t> leading = dims.first(dims.size() - 1);
  return {0, std::accumulate(leading.begin(), leading.end(), int64_t{1}, std::multiplies<>()), 0, dims.back()};
}

Rectangle intersection(const Rectangle& a, const Rectangle& b) {
  return {std::max(a.row_begin, b.row_begin), std::min(a.row_end, b.row_end), std::max(a.col_begin, b.col_begin),
          std::min(a.col_end, b.col_end)};
}

std::optional<CoverFlaw> find_cover_flaw(std::span<const Rectangle> pieces, const Rectangle& whole) {
  if (whole.empty()) return std::nullopt;
  std::vector<size_t> by_row(pieces.size());
  std::iota(by_row.begin(), by_row.end(), size_t{0});
  std::sort(by_row.begin(), by_row.end(),
            [&](size_t a, size_t b) { return pieces[a].row_begin < pieces[b].row_begin; });
  std::vector<size_t> crossing;
  size_t next = 0;
  for (const int64_t row : row_borders(pieces, whole)) {
    std::erase_if(crossing, [&](size_t i) { return pieces[i].row_end <= row; });
    while (next < by_row.size() && pieces[by_row[next]].row_begin <= row) crossing.push_back(by_row[next++]);
    std::sort(crossing.begin(), crossing.end(),
              [&](size_t a, size_t b) { return pieces[a].col_begin < pieces[b].col_begin; });
    if (auto flaw = flaw_in_row(pieces, crossing, row, whole)) return flaw;
  }
  return std::nullopt;
}

void copy_part(const RectangleBytes<const uint8_t>& from, const RectangleBytes<uint8_t>& to, const Rectangle& part,
               size_t size) {
  if (part.empty()) return;
  const auto offset = [&](const Rectangle& in, int64_t row) {
    return static_cast<size_t>((row - in.row_begin) * in.cols() + part.col_begin - in.col_begin) * size;
  };
  const bool whole_rows = part.cols() == from.at.cols() && part.cols() == to.at.cols();
  const int64_t step = whole_rows ? part.rows() : 1;
  for (int64_t row = part.row_begin; row < part.row_end; row += step)
    std::memcpy(to.data + offset(to.at, row), from.data + offset(from.at, row),
                static_cast<size_t>(step * part.cols()) * size);
}

}  // namespace agoq
