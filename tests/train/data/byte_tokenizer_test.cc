// tests/python/test_export.py loads these files with transformers.
#include "train/data/byte_tokenizer.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>

namespace agoq::train {
namespace {

TEST(ByteTokenizer, HasATokenForEachByteAndOneForTheEnd) {
  const model::Companions files = byte_tokenizer_files();
  ASSERT_EQ(files.size(), 2u);
  EXPECT_EQ(files[0].name, "tokenizer.json");
  const auto json = nlohmann::json::parse(files[0].content);
  const auto& vocabulary = json.at("model").at("vocab");
  ASSERT_EQ(vocabulary.size(), 256u);
  std::set<int> ids;
  for (const auto& [text, id] : vocabulary.items()) ids.insert(id.get<int>());
  EXPECT_EQ(ids.size(), 256u);
  EXPECT_EQ(*ids.rbegin(), 255);
  // As GPT-2's vocabulary writes a letter, a space, a line end, a zero byte and the last byte.
  EXPECT_EQ(vocabulary.at("a"), 'a');
  EXPECT_EQ(vocabulary.at("\xc4\xa0"), ' ');
  EXPECT_EQ(vocabulary.at("\xc4\x8a"), '\n');
  EXPECT_EQ(vocabulary.at("\xc4\x80"), 0);
  EXPECT_EQ(vocabulary.at("\xc3\xbf"), 255);
  EXPECT_EQ(json.at("added_tokens").at(0).at("id"), 256);
}

}  // namespace
}  // namespace agoq::train
