#include "base/text.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <cmath>
#include <optional>
#include <utility>

#include "base/error.h"
#include "base/utf8.h"

namespace agoq {
namespace {

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

bool is_space(char c) {
  return c == ' ' || (c >= '\t' && c <= '\r');
}

std::string lower(std::string_view text) {
  std::string result(text);
  for (char& c : result)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return result;
}

bool is_control(char c) {
  return static_cast<uint8_t>(c) < ' ' || c == '\x7f';
}

std::span<const uint8_t> bytes_of(std::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

struct ByteUnit {
  std::string_view name;
  uint64_t bytes;
};
constexpr std::array<ByteUnit, 10> kUnits = {{{"", 1},
                                              {"b", 1},
                                              {"kb", 1000},
                                              {"mb", 1000'000},
                                              {"gb", 1000'000'000},
                                              {"tb", 1000'000'000'000},
                                              {"kib", uint64_t{1} << 10},
                                              {"mib", uint64_t{1} << 20},
                                              {"gib", uint64_t{1} << 30},
                                              {"tib", uint64_t{1} << 40}}};

std::optional<uint64_t> unit_of(std::string_view name) {
  for (const ByteUnit& unit : kUnits)
    if (unit.name == lower(name)) return unit.bytes;
  return std::nullopt;
}

// Whole numbers exactly, others to the nearest byte.
std::optional<uint64_t> scaled(std::string_view number, uint64_t unit) {
  const char* end = number.data() + number.size();
  uint64_t whole = 0;
  if (auto [rest, error] = std::from_chars(number.data(), end, whole); error == std::errc{} && rest == end) {
    uint64_t bytes = 0;
    if (__builtin_mul_overflow(whole, unit, &bytes)) return std::nullopt;
    return bytes;
  }
  double value = 0;
  const auto [rest, error] = std::from_chars(number.data(), end, value, std::chars_format::fixed);
  if (error != std::errc{} || rest != end) return std::nullopt;
  const double bytes = std::round(value * static_cast<double>(unit));
  if (!(bytes < 0x1p63)) return std::nullopt;
  return static_cast<uint64_t>(bytes);
}

// Edits (insert, delete, replace, swap of neighbours) between two words.
size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> before_last(b.size() + 1);
  std::vector<size_t> last(b.size() + 1);
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) last[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      row[j] = std::min({last[j] + 1, row[j - 1] + 1, last[j - 1] + (a[i - 1] != b[j - 1])});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        row[j] = std::min(row[j], before_last[j - 2] + 1);
    }
    std::swap(before_last, last);
    std::swap(last, row);
  }
  return last[b.size()];
}

// Terminal columns of UTF-8 text without wide or combining characters: its code points.
size_t width_of(std::string_view text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; }));
}

std::string padded(std::string_view cell, size_t width, bool right) {
  const std::string fill(width - std::min(width, width_of(cell)), ' ');
  return right ? fill + std::string(cell) : std::string(cell) + fill;
}

bool is_number(std::string_view cell) {
  if (cell.starts_with('-') || cell.starts_with('+')) cell.remove_prefix(1);
  return !cell.empty() && (is_digit(cell[0]) || cell == "-" || cell == "nan" || cell == "inf");
}

void add_line(std::string& out, std::string line) {
  while (line.ends_with(' ')) line.pop_back();
  out += line + '\n';
}

std::string escaped(std::string_view cell) {
  std::string result;
  for (char c : cell) {
    if (c == '|') result += '\\';
    result += c;
  }
  return result;
}

}  // namespace

std::string human_bytes(uint64_t bytes) {
  constexpr std::array<const char*, 6> kNames = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  if (bytes < 1024) return fmt::format("{} B", bytes);
  double value = static_cast<double>(bytes) / 1024;
  size_t unit = 0;
  for (; value >= 1023.995 && unit + 1 < kNames.size(); ++unit) value /= 1024;  // never "1024.00 KiB"
  return fmt::format("{:.2f} {}", value, kNames[unit]);
}

std::string human_count(uint64_t count) {
  constexpr std::array<const char*, 5> kNames = {"K", "M", "B", "T", "Q"};
  if (count < 1000) return fmt::format("{}", count);
  double value = static_cast<double>(count) / 1000;
  size_t unit = 0;
  for (; value >= 999.5 && unit + 1 < kNames.size(); ++unit) value /= 1000;
  const int decimals = value < 9.995 ? 2 : value < 99.95 ? 1 : 0;  // three digits
  return fmt::format("{:.{}f}{}", value, decimals, kNames[unit]);
}

uint64_t parse_bytes(std::string_view text) {
  const std::string_view trimmed = trim(text);
  const auto letters = std::find_if(trimmed.begin(), trimmed.end(), [](char c) { return !is_digit(c) && c != '.'; });
  const auto digits = static_cast<size_t>(letters - trimmed.begin());
  const auto unit = unit_of(trim(trimmed.substr(digits)));
  const auto bytes = unit ? scaled(trimmed.substr(0, digits), *unit) : std::nullopt;
  require(bytes.has_value(), "'{}' is not a size; write for example 80GiB, 1.5 GiB, 24GB or a number of bytes", text);
  return *bytes;
}

std::vector<std::string> nearest(std::string_view name, std::span<const std::string> candidates, size_t limit) {
  std::vector<std::pair<size_t, const std::string*>> close;
  const std::string wanted = lower(name);
  for (const std::string& candidate : candidates) {
    const size_t allowed = std::max<size_t>(2, std::max(name.size(), candidate.size()) / 3);
    const size_t distance = edit_distance(wanted, lower(candidate));
    if (distance <= allowed && distance < std::max(name.size(), candidate.size()))
      close.emplace_back(distance, &candidate);
  }
  std::stable_sort(close.begin(), close.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<std::string> result;
  for (size_t i = 0; i < std::min(limit, close.size()); ++i) result.push_back(*close[i].second);
  return result;
}

std::string did_you_mean(std::string_view name, std::span<const std::string> candidates) {
  const std::vector<std::string> close = nearest(name, candidates);
  return close.empty() ? "" : fmt::format("; did you mean '{}'?", close[0]);
}

size_t utf8_character(std::span<const uint8_t> text) {
  const Utf8Beginning* beginning = utf8_beginning(text[0]);
  if (!beginning || text.size() <= beginning->more) return 0;
  for (size_t i = 1; i <= beginning->more; ++i) {
    const uint8_t low = i == 1 ? beginning->lowest : 0x80, high = i == 1 ? beginning->highest : 0xbf;
    if (text[i] < low || text[i] > high) return 0;
  }
  return size_t{1} + beginning->more;
}

bool is_utf8(std::string_view text) {
  for (std::span<const uint8_t> left = bytes_of(text); !left.empty();) {
    const size_t length = utf8_character(left);
    if (length == 0) return false;
    left = left.subspan(length);
  }
  return true;
}

std::optional<char> control_byte(std::string_view text) {
  const auto found = std::find_if(text.begin(), text.end(), is_control);
  return found == text.end() ? std::nullopt : std::optional(*found);
}

namespace {

std::string without_controls(std::string_view text, std::string_view kept) {
  std::string result;
  while (!text.empty()) {
    const size_t length = utf8_character(bytes_of(text));
    const std::string_view character = text.substr(0, std::max<size_t>(length, 1));
    // U+0080 to U+009F steer a terminal, too.
    const bool steers = is_control(character[0]) || (character[0] == '\xc2' && length == 2 && character[1] < '\xa0');
    if (length == 0 || (steers && kept.find(character) == std::string_view::npos))
      for (const char byte : character) result += fmt::format("\\x{:02x}", static_cast<uint8_t>(byte));
    else
      result += character;
    text.remove_prefix(character.size());
  }
  return result;
}

}  // namespace

std::string printable(std::string_view text) {
  return without_controls(text, "\n\t");
}

std::string printable_line(std::string_view text) {
  return without_controls(text, "");
}

std::string_view trim(std::string_view text) {
  while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
  return text;
}

std::vector<std::string> split(std::string_view text, char separator) {
  std::vector<std::string> parts;
  if (text.empty()) return parts;
  for (;;) {
    const size_t end = text.find(separator);
    parts.emplace_back(text.substr(0, end));
    if (end == std::string_view::npos) return parts;
    text.remove_prefix(end + 1);
  }
}

std::string join(std::span<const std::string> parts, std::string_view separator) {
  std::string result;
  for (size_t i = 0; i < parts.size(); ++i) {
    if (i > 0) result += separator;
    result += parts[i];
  }
  return result;
}

Table::Table(std::vector<std::string> headers) : headers_(std::move(headers)) {
  require(!headers_.empty(), "a table needs at least one column");
}

void Table::add_row(std::vector<std::string> cells) {
  require(cells.size() <= headers_.size(), "a row of {} cells does not fit a table of {} columns", cells.size(),
          headers_.size());
  cells.resize(headers_.size());
  rows_.push_back(std::move(cells));
}

void Table::add_rule() {
  rows_.emplace_back();
}

std::vector<Table::Column> Table::columns() const {
  std::vector<Column> columns;
  for (size_t i = 0; i < headers_.size(); ++i) {
    Column column{width_of(headers_[i]), false};
    bool words = false;
    for (const auto& row : rows_) {
      if (row.empty() || row[i].empty()) continue;
      column.width = std::max(column.width, width_of(row[i]));
      column.right |= is_number(row[i]);
      words |= !is_number(row[i]);
    }
    column.right &= !words;
    columns.push_back(column);
  }
  return columns;
}

std::string Table::text() const {
  const auto columns = this->columns();
  size_t total = 2 * (columns.size() - 1);
  for (const Column& column : columns) total += column.width;
  const std::string rule(total, '-');
  std::string out;
  const auto add = [&](const std::vector<std::string>& cells) {
    std::string line;
    for (size_t i = 0; i < cells.size(); ++i)
      line += (i > 0 ? "  " : "") + padded(cells[i], columns[i].width, columns[i].right);
    add_line(out, std::move(line));
  };
  add(headers_);
  add_line(out, rule);
  for (const auto& row : rows_) {
    if (row.empty())
      add_line(out, rule);
    else
      add(row);
  }
  return out;
}

std::string Table::markdown() const {
  Table table(headers_);  // escaping changes widths, so it comes first
  for (std::string& header : table.headers_) header = escaped(header);
  for (const auto& row : rows_) {
    if (row.empty()) continue;
    table.add_row(row);
    for (std::string& cell : table.rows_.back()) cell = escaped(cell);
  }
  auto columns = table.columns();
  for (Column& column : columns) column.width = std::max<size_t>(column.width, 3);
  std::string out;
  const auto add = [&](const std::vector<std::string>& cells) {
    for (size_t i = 0; i < cells.size(); ++i) out += "| " + padded(cells[i], columns[i].width, columns[i].right) + " ";
    out += "|\n";
  };
  add(table.headers_);
  for (const Column& column : columns) out += "| " + std::string(column.width - 1, '-') + (column.right ? ": " : "- ");
  out += "|\n";
  for (const auto& row : table.rows_) add(row);
  return out;
}

}  // namespace agoq
