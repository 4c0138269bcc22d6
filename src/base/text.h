// Small helpers for text that people write and read: sizes, suggestions, tables.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace agoq {

std::string human_bytes(uint64_t bytes);  // "512 B", "1.50 GiB"
std::string human_count(uint64_t count);  // "950", "1.24M", "8.03B"

// "80GiB", "1.5 GiB" (powers of 1024), "24GB" (powers of 1000), "4096"; letters in any case. Throws on anything else.
uint64_t parse_bytes(std::string_view text);

// Up to `limit` candidates that `name` may be a misspelling of, best first.
std::vector<std::string> nearest(std::string_view name, std::span<const std::string> candidates, size_t limit = 1);

// The end of an error message about an unknown name: "; did you mean 'x'?", or nothing when none is close.
std::string did_you_mean(std::string_view name, std::span<const std::string> candidates);

// The length of the well-formed UTF-8 character at the front of `text`, which is not empty; 0 if there is none.
size_t utf8_character(std::span<const uint8_t> text);
bool is_utf8(std::string_view text);
// The first control byte (below space, or DEL) of a text.
std::optional<char> control_byte(std::string_view text);
// Fit for a terminal or a log: control characters other than line ends and tabs, and bytes that are not UTF-8, as \xNN.
std::string printable(std::string_view text);
std::string printable_line(std::string_view text);  // line ends and tabs likewise

std::string_view trim(std::string_view text);                           // without white space at both ends
std::vector<std::string> split(std::string_view text, char separator);  // "a,,b" has three parts, "" has none
std::string join(std::span<const std::string> parts, std::string_view separator);

// Columns whose cells are all numbers (with a unit, perhaps) are aligned right. Short rows are filled with empty cells.
class Table {
 public:
  explicit Table(std::vector<std::string> headers);
  void add_row(std::vector<std::string> cells);
  void add_rule();  // a line before the next row, for totals; Markdown has none

  std::string text() const;      // for a terminal
  std::string markdown() const;  // also aligned, so that the source can be read

 private:
  struct Column {
    size_t width;
    bool right;
  };
  std::vector<Column> columns() const;

  std::vector<std::string> headers_;
  std::vector<std::vector<std::string>> rows_;  // a row without cells is a rule
};

}  // namespace agoq
