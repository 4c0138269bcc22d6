#include "train/config/flat_toml.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <optional>

#include "base/error.h"
#include "base/text.h"

namespace agoq::train {
namespace {

bool is_bare(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '_';
}

bool is_control(char c) {
  return (static_cast<unsigned char>(c) < 0x20 && c != '\t') || c == 0x7f;
}

void append_utf8(std::string& out, uint32_t code) {
  const auto byte = [&](uint32_t bits) { out += static_cast<char>(static_cast<uint8_t>(bits)); };
  if (code < 0x80) {
    byte(code);
  } else if (code < 0x800) {
    byte(0xc0 | (code >> 6));
    byte(0x80 | (code & 0x3f));
  } else if (code < 0x10000) {
    byte(0xe0 | (code >> 12));
    byte(0x80 | ((code >> 6) & 0x3f));
    byte(0x80 | (code & 0x3f));
  } else {
    byte(0xf0 | (code >> 18));
    byte(0x80 | ((code >> 12) & 0x3f));
    byte(0x80 | ((code >> 6) & 0x3f));
    byte(0x80 | (code & 0x3f));
  }
}

class Parser {
 public:
  Parser(std::string_view text, std::string_view file) : text_(text), file_(file) {
    if (text_.starts_with("\xef\xbb\xbf")) text_.remove_prefix(3);
  }

  std::vector<TomlEntry> run() {
    std::vector<TomlEntry> entries;
    for (;;) {
      skip_lines();
      if (done()) return entries;
      TomlEntry entry = parse_entry();
      for (const TomlEntry& earlier : entries)
        if (earlier.key == entry.key) fail_at(entry.line, "'{}' was already set in line {}", entry.key, earlier.line);
      entries.push_back(std::move(entry));
    }
  }

 private:
  template <class... Args>
  [[noreturn]] void fail_at(int line, fmt::format_string<Args...> what, Args&&... args) const {
    throw Error(fmt::format("{}:{}: {}", file_, line, fmt::format(what, std::forward<Args>(args)...)));
  }
  template <class... Args>
  [[noreturn]] void fail_here(fmt::format_string<Args...> what, Args&&... args) const {
    fail_at(line_, what, std::forward<Args>(args)...);
  }

  bool done() const { return at_ >= text_.size(); }
  char peek() const { return done() ? '\0' : text_[at_]; }
  bool accept(char c) {
    if (done() || peek() != c) return false;
    ++at_;
    return true;
  }

  void skip_blanks() {
    while (!done() && (peek() == ' ' || peek() == '\t')) ++at_;
  }
  bool accept_newline() {
    if (text_.substr(at_).starts_with("\r\n")) ++at_;
    if (!accept('\n')) return false;
    ++line_;
    return true;
  }
  void skip_comment() {
    if (!accept('#')) return;
    while (!done() && peek() != '\n') ++at_;
  }
  // White space, line ends and comments.
  void skip_lines() {
    do {
      skip_blanks();
      skip_comment();
    } while (accept_newline());
  }

  TomlEntry parse_entry() {
    if (peek() == '[') fail_here("sections are not used; every setting is a plain `key = value`");
    TomlEntry entry;
    entry.line = line_;
    entry.key = parse_key();
    skip_blanks();
    if (peek() == '.') fail_here("dotted keys are not used; every setting is a plain `key = value`");
    if (!accept('=')) fail_here("expected '=' behind the key '{}'", entry.key);
    skip_blanks();
    if (accept('[')) {
      entry.array = true;
      parse_array(entry.words);
    } else {
      entry.words.push_back(parse_scalar());
    }
    skip_blanks();
    skip_comment();
    if (!done() && !accept_newline()) fail_here("unexpected '{}' behind the value of '{}'", rest_of_line(), entry.key);
    return entry;
  }

  std::string parse_key() {
    if (peek() == '"' || peek() == '\'') return parse_string();
    const size_t begin = at_;
    while (!done() && is_bare(peek())) ++at_;
    if (at_ == begin) fail_here("expected a key, found '{}'", rest_of_line());
    return std::string(text_.substr(begin, at_ - begin));
  }

  void parse_array(std::vector<std::string>& words) {
    const int begin = line_;
    for (;;) {
      skip_lines();
      if (accept(']')) return;
      if (done()) fail_at(begin, "the array that begins here has no ']'");
      if (peek() == '[') fail_here("arrays within arrays are not used");
      words.push_back(parse_scalar());
      skip_lines();
      if (!accept(',') && peek() != ']') fail_here("expected ',' or ']' in the array");
    }
  }

  std::string parse_scalar() {
    if (peek() == '"' || peek() == '\'') return parse_string();
    if (peek() == '{') fail_here("inline tables are not used");
    const size_t begin = at_;
    while (!done() && (is_bare(peek()) || peek() == '+' || peek() == '.')) ++at_;
    std::string word(text_.substr(begin, at_ - begin));
    if (word.empty()) fail_here("expected a value, found '{}'", rest_of_line());
    if (word == "true" || word == "false") return word;
    if (!is_number(word)) fail_here("'{}' is no number, true or false; text stands in quotes: \"{}\"", word, word);
    std::erase(word, '_');
    return word;
  }

  static bool is_number(const std::string& word) {
    std::string digits = word;
    std::erase(digits, '_');
    if (digits.starts_with('+')) digits.erase(0, 1);
    double value = 0;
    const auto [rest, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    return rest == digits.data() + digits.size() && error != std::errc::invalid_argument;
  }

  std::string parse_string() {
    const char quote = peek();
    if (text_.substr(at_).starts_with(quote == '"' ? "\"\"\"" : "'''")) fail_here("multi-line strings are not used");
    ++at_;
    std::string out;
    while (!accept(quote)) {
      if (done() || peek() == '\n') fail_here("text without its closing {}", quote);
      if (is_control(peek())) fail_here("control character {:#04x} in text", static_cast<unsigned char>(peek()));
      if (quote == '"' && accept('\\'))
        parse_escape(out);
      else
        out += text_[at_++];
    }
    return out;
  }

  void parse_escape(std::string& out) {
    static constexpr std::string_view kNames = "btnfr\"\\", kMeanings = "\b\t\n\f\r\"\\";
    const char name = peek();
    if (!done()) ++at_;
    if (name == 'u' || name == 'U') {
      append_utf8(out, parse_code_point(name == 'u' ? 4 : 8));
      return;
    }
    const size_t which = done() ? std::string_view::npos : kNames.find(name);
    if (which == std::string_view::npos) fail_here("unknown escape in text; a backslash itself is written \\\\");
    out += kMeanings[which];
  }

  uint32_t parse_code_point(size_t digits) {
    const std::string_view hex = text_.substr(at_, digits);
    uint32_t code = 0;
    const auto [rest, error] = std::from_chars(hex.data(), hex.data() + hex.size(), code, 16);
    const bool valid =
        error == std::errc{} && rest == hex.data() + digits && code <= 0x10ffff && (code < 0xd800 || code > 0xdfff);
    if (!valid) fail_here("'\\{}{}' is no Unicode character", digits == 4 ? 'u' : 'U', hex);
    at_ += digits;
    return code;
  }

  std::string_view rest_of_line() const {
    const std::string_view rest = text_.substr(at_, std::min(text_.find('\n', at_), text_.size()) - at_);
    return trim(rest.substr(0, 40));
  }

  std::string_view text_;
  std::string_view file_;
  size_t at_ = 0;
  int line_ = 1;
};

}  // namespace

std::vector<TomlEntry> parse_flat_toml(std::string_view text, std::string_view file) {
  return Parser(text, file).run();
}

std::string toml_string(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\')
      out += {'\\', c};
    else if (c == '\n')
      out += "\\n";
    else if (is_control(c))
      out += fmt::format("\\u{:04X}", static_cast<unsigned char>(c));
    else
      out += c;
  }
  return out + '"';
}

std::string toml_array(const std::vector<std::string>& texts) {
  std::vector<std::string> quoted;
  for (const std::string& text : texts) quoted.push_back(toml_string(text));
  return "[" + join(quoted, ", ") + "]";
}

}  // namespace agoq::train
