#include "train/config/flat_toml.h"

#include <gtest/gtest.h>

#include "base/error_of.h"

namespace agoq::train {
namespace {

using Words = std::vector<std::string>;

std::string error_in(std::string_view text) {
  return error_of([&] { parse_flat_toml(text, "f.toml"); });
}

Words words_of(std::string_view value) {
  const auto entries = parse_flat_toml("key = " + std::string(value), "f.toml");
  return entries.size() == 1 ? entries[0].words : Words{"not one entry"};
}

TEST(FlatToml, ReadsEveryKindOfValue) {
  EXPECT_EQ(words_of("12"), Words{"12"});
  EXPECT_EQ(words_of("+1_000_000"), Words{"+1000000"});
  EXPECT_EQ(words_of("-2.5e-3"), Words{"-2.5e-3"});
  EXPECT_EQ(words_of("true"), Words{"true"});
  EXPECT_EQ(words_of(R"("a \"b\" \\ \t \u00e9 \U0001F600")"), Words{"a \"b\" \\ \t \xc3\xa9 \xf0\x9f\x98\x80"});
  EXPECT_EQ(words_of(R"('C:\raw "text"')"), Words{"C:\\raw \"text\""});
  EXPECT_EQ(words_of(R"("")"), Words{""});
  EXPECT_EQ(words_of(R"([0.7, "a b", 0.3, 'c'])"), (Words{"0.7", "a b", "0.3", "c"}));
  EXPECT_EQ(words_of("[ # comment\n  \"a\", # another\n\n  \"b\",\n]"), (Words{"a", "b"}));
  EXPECT_EQ(words_of("[]"), Words{});
}

TEST(FlatToml, KnowsLinesCommentsAndQuotedKeys) {
  const auto entries =
      parse_flat_toml("\xef\xbb\xbf# first\r\n\r\na=1 # one\r\n  \"b-c\" = [\n2,\n3]\nd = '#'", "f.toml");
  ASSERT_EQ(entries.size(), 3u);
  EXPECT_EQ(entries[0].line, 3);
  EXPECT_EQ(entries[1].key, "b-c");
  EXPECT_EQ(entries[1].line, 4);
  EXPECT_TRUE(entries[1].array);
  EXPECT_EQ(entries[2].line, 7);
  EXPECT_EQ(entries[2].words, Words{"#"});
}

TEST(FlatToml, EmptyTextHasNoEntries) {
  EXPECT_TRUE(parse_flat_toml("", "f.toml").empty());
  EXPECT_TRUE(parse_flat_toml(" \n# only a comment", "f.toml").empty());
}

TEST(FlatToml, ErrorsNameFileAndLine) {
  EXPECT_EQ(error_in("a = 1\n[train]\n"), "f.toml:2: sections are not used; every setting is a plain `key = value`");
  EXPECT_EQ(error_in("a = 1\n\na = 2"), "f.toml:3: 'a' was already set in line 1");
  EXPECT_EQ(error_in("a 1"), "f.toml:1: expected '=' behind the key 'a'");
  EXPECT_EQ(error_in("\n= 1"), "f.toml:2: expected a key, found '= 1'");
  EXPECT_EQ(error_in("a = bf16"), "f.toml:1: 'bf16' is no number, true or false; text stands in quotes: \"bf16\"");
  EXPECT_EQ(error_in("a = 1 2"), "f.toml:1: unexpected '2' behind the value of 'a'");
  EXPECT_EQ(error_in("a = \"x\nb = 1"), "f.toml:1: text without its closing \"");
  EXPECT_EQ(error_in("b = 1\na = [\n1,\n"), "f.toml:2: the array that begins here has no ']'");
  EXPECT_EQ(error_in("a = [1 2]"), "f.toml:1: expected ',' or ']' in the array");
  EXPECT_EQ(error_in("a = \"\\ud800\""), "f.toml:1: '\\ud800' is no Unicode character");
  EXPECT_EQ(error_in("a = \"\\"), "f.toml:1: unknown escape in text; a backslash itself is written \\\\");
  EXPECT_EQ(error_in("a = {}"), "f.toml:1: inline tables are not used");
  EXPECT_EQ(error_in("a ="), "f.toml:1: expected a value, found ''");
  EXPECT_EQ(error_in("a.b = 1"), "f.toml:1: dotted keys are not used; every setting is a plain `key = value`");
}

TEST(FlatToml, WrittenTextReadsBack) {
  std::string all;
  for (int c = 1; c < 256; ++c) all += static_cast<char>(c);
  EXPECT_EQ(words_of(toml_string(all)), Words{all});
  EXPECT_EQ(words_of(toml_array({"a", "\"", ""})), (Words{"a", "\"", ""}));
}

}  // namespace
}  // namespace agoq::train
