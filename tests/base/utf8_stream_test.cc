#include "base/utf8_stream.h"

#include <gtest/gtest.h>

#include <vector>

namespace agoq {
namespace {

std::vector<std::string> pieces(const std::string& bytes) {
  Utf8Stream stream;
  std::vector<std::string> out;
  for (const char byte : bytes) out.push_back(stream.add(static_cast<uint8_t>(byte)));
  out.push_back(stream.rest());
  return out;
}

std::string whole(const std::string& bytes) {
  std::string text;
  for (const std::string& piece : pieces(bytes)) text += piece;
  return text;
}

TEST(Utf8Stream, OnlyWholeCharactersLeave) {
  EXPECT_EQ(pieces("a\xc3\xa9"), (std::vector<std::string>{"a", "", "\u00e9", ""}));
  EXPECT_EQ(pieces("\xf0\x9f\xa6\x89"), (std::vector<std::string>{"", "", "", "\U0001f989", ""}));
  EXPECT_EQ(pieces("\xe6\x9d"), (std::vector<std::string>{"", "", "\ufffd"}));
  const std::string text = "\u0080\u07ff\u0800\ud7ff\ue000\uffff\U00010000\U0010ffff";
  EXPECT_EQ(whole(text), text);
}

// From Python: bytes.decode("utf-8", errors="replace").
TEST(Utf8Stream, WhatIsNoCharacterIsReplacedAsPythonDoes) {
  EXPECT_EQ(whole("a\xff z"), "a\ufffd z");
  EXPECT_EQ(whole("\x80\xbf"), "\ufffd\ufffd");
  EXPECT_EQ(whole("\xc0\xaf"), "\ufffd\ufffd") << "an overlong form";
  EXPECT_EQ(whole("\xe0\x80\xaf"), "\ufffd\ufffd\ufffd");
  EXPECT_EQ(whole("\xed\xa0\x80"), "\ufffd\ufffd\ufffd") << "half of a surrogate pair";
  EXPECT_EQ(whole("\xe6\x9d!"), "\ufffd!");
  EXPECT_EQ(whole("\xe6\xe6\x9d\xb1"), "\ufffd\u6771");
  EXPECT_EQ(whole("\xf0\x9f\xa6\xc3\xa9"), "\ufffd\u00e9");
  EXPECT_EQ(whole("\xf4\x90\x80\x80"), "\ufffd\ufffd\ufffd\ufffd") << "above U+10FFFF";
}

}  // namespace
}  // namespace agoq
