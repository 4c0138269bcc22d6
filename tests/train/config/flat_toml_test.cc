#include "train/config/flat_toml.h"

#include <gmock/gmock.h>
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
  EXPECT_EQ(words_of("+1_000_000"), Words{"1000000"});
  EXPECT_EQ(words_of("-2.5e-3"), Words{"-0.0025"});
  EXPECT_EQ(words_of("0.1"), Words{"0.1"});
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
  const std::pair<const char*, const char*> errors[] = {
      {"a = 1\n[train]\n", "f.toml:2: sections, inline tables and dotted keys are not used"},
      {"a = 1\n[train]\nb = 2", "f.toml:2: sections, inline tables and dotted keys are not used"},
      {"a = {}", "f.toml:1: sections, inline tables and dotted keys are not used"},
      {"\na.b = 1", "f.toml:2: sections, inline tables and dotted keys are not used"},
      {"a = [1, [2]]", "f.toml:1: arrays within arrays are not used"},
      {"a = 2026-11-30", "f.toml:1: dates and times are not used"},
      {"a = 1\n\na = 2", "f.toml:3: "},
      {"a 1", "f.toml:1: "},
      {"\n= 1", "f.toml:2: "},
      {"b = 1\na = bf16", "f.toml:2: "},
      {"a = 1 2", "f.toml:1: "},
      {"a = \"x\nb = 1", "f.toml:1: "},
      {"a = [1 2]", "f.toml:1: "},
      {"a = \"\\ud800\"", "f.toml:1: "},
      {"a = \"\\", "f.toml:1: "},
      {"a =", "f.toml:1: "},
      {"a = '\xff'", "f.toml:1: "},
  };
  for (const auto& [text, says] : errors) EXPECT_THAT(error_in(text), testing::StartsWith(says)) << text;
}

TEST(FlatToml, WrittenTextReadsBack) {
  std::string all = "\xc3\xa9 \xf0\x9f\x98\x80";
  for (int c = 1; c < 128; ++c) all += static_cast<char>(c);
  EXPECT_EQ(words_of(toml_string(all)), Words{all});
  EXPECT_EQ(words_of(toml_array({"a", "\"", ""})), (Words{"a", "\"", ""}));
}

}  // namespace
}  // namespace agoq::train
