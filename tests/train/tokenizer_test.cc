#include "train/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "base/scratch_folder.h"
#include "train/data_files.h"
#include "train/token_file.h"

namespace agoq::train {
namespace {

using testing::AllOf;
using testing::HasSubstr;

class TokenizerTest : public testing::Test {
 protected:
  TokenizerTest() { model_.vocab_size = 300; }

  std::string text(const std::string& name) {
    write_plainly(scratch_.file(name), "some text");
    return scratch_.file(name);
  }
  // A dataset of Megatron-LM's, with this beside it.
  std::string tokens(const std::string& name, const std::string& description = "") {
    write_megatron(scratch_.file(name), {{1, 2, 3}});
    if (!description.empty()) write_plainly(scratch_.file(name) + ".json", description);
    return scratch_.file(name);
  }
  static std::string of(const std::string& tokenizer, int vocab, const std::string& eod) {
    return R"({"tokenizer": ")" + tokenizer + R"(", "vocab_size": )" + std::to_string(vocab) + R"(, "eod_id": )" + eod +
           R"(, "documents": 1})";
  }
  // The tokenizer and end of document of a run on this data.
  std::pair<std::string, int64_t> settled(const std::vector<std::string>& data, const std::string& of_model = "",
                                          const std::string& asked = "") {
    TrainConfig config;
    config.data_path = data;
    config.tokenizer = asked;
    settle_tokenizer(config, model_, of_model);
    return {config.tokenizer, config.eod_token};
  }

  ScratchFolder scratch_;
  model::ModelConfig model_;
};

using Settled = std::pair<std::string, int64_t>;

TEST_F(TokenizerTest, TextIsBytesWhateverTheVocabulary) {
  for (const int64_t vocab : {257, 258, 128256}) {
    model_.vocab_size = vocab;
    EXPECT_EQ(settled({text("a.txt")}), Settled("byte", 256));
  }
  model_.vocab_size = 257;
  EXPECT_EQ(settled({tokens("plain")}), Settled("", -1)) << "257 tokens need not be bytes";
  model_.original_json = R"({"eos_token_id": [7, 8]})";
  EXPECT_EQ(settled({tokens("plain")}), Settled("", 7));
  EXPECT_EQ(settled({text("a.txt")}), Settled("byte", 256));
  model_.vocab_size = 200;
  EXPECT_THAT(error_of([&] { settled({text("a.txt")}); }), AllOf(HasSubstr("257"), HasSubstr("200")));
}

TEST_F(TokenizerTest, TheDescriptionBesideTheDataIsRead) {
  EXPECT_EQ(settled({tokens("a", of("/some/where", 300, "5"))}), Settled("/some/where", 5));
  EXPECT_EQ(settled({scratch_.file("a.bin")}), Settled("/some/where", 5));
  EXPECT_EQ(settled({tokens("b", of("byte", 257, "256"))}), Settled("byte", 256));
  EXPECT_EQ(settled({tokens("c", of("/some/where", 300, "null"))}), Settled("/some/where", -1));
  EXPECT_EQ(settled({scratch_.file("a")}, "/models/own"), Settled("/models/own", 5)) << "it travels with the model";
  EXPECT_EQ(settled({scratch_.file("a")}, "", "/asked/for"), Settled("/asked/for", 5));
  TrainConfig config;
  config.data_path = {scratch_.file("a")};
  config.eod_token = 9;
  settle_tokenizer(config, model_, "");
  EXPECT_EQ(config.eod_token, 9);
}

TEST_F(TokenizerTest, WhatIsNoDescriptionIsLeftAlone) {
  for (const char* other :
       {"", "[1]", "{", "{\"text\": \"a corpus\"}\n{\"text\": \"of lines\"}\n", R"({"tokenizer": "x"})",
        R"({"tokenizer": 1, "vocab_size": 5})", R"({"tokenizer": "x", "vocab_size": -5})"}) {
    EXPECT_EQ(describe_data(tokens("a", other)), std::nullopt) << other;
    std::filesystem::remove(scratch_.file("a.json"));
  }
}

TEST_F(TokenizerTest, ATokenizerLargerThanTheModelIsRefused) {
  EXPECT_THAT(error_of([&] { settled({tokens("a", of("/big/one", 301, "5"))}); }),
              AllOf(HasSubstr(scratch_.file("a")), HasSubstr("tokens of /big/one, a vocabulary of 301"),
                    HasSubstr("the model has one of 300")));
}

TEST_F(TokenizerTest, ContradictionsAreRefused) {
  const std::string words = tokens("words", of("/w", 300, "5")), others = tokens("others", of("/w", 300, "6"));
  const std::string bytes = text("a.txt");
  EXPECT_THAT(error_of([&] { settled({"1", words, "1", bytes}); }), HasSubstr("one run cannot read both"));
  EXPECT_THAT(error_of([&] {
                settled({"1", words, "1", others});
              }),
              AllOf(HasSubstr("token 5 in"), HasSubstr("6 in"), HasSubstr("--eod-token")));
  EXPECT_THAT(
      error_of([&] { settled({bytes}, "/models/own"); }),
      AllOf(HasSubstr("holds bytes"), HasSubstr("agoq data --tokenizer /models/own"), HasSubstr("--tokenizer byte")));
  EXPECT_EQ(settled({bytes}, "/models/own", "byte"), Settled("byte", 256));
  EXPECT_THAT(error_of([&] { settled({bytes}, "", "/asked/for"); }), HasSubstr("holds bytes, and the tokenizer is"));
  EXPECT_THAT(error_of([&] { settled({words}, "byte"); }), HasSubstr("the model knows bytes"));
}

TEST_F(TokenizerTest, AFolderBringsItsTokenizer) {
  EXPECT_EQ(tokenizer_in(scratch_.path(), model_), "");
  write_plainly(scratch_.file("tokenizer.json"), "{}");
  EXPECT_EQ(tokenizer_in(scratch_.path(), model_), scratch_.path());
  EXPECT_EQ(tokenizer_in("", model_), "");
  model_ = marked_as_bytes(model::preset("demo"));
  EXPECT_EQ(tokenizer_in("", model::config_from_json(model::config_to_json(model_), "c")), "byte");
}

}  // namespace
}  // namespace agoq::train
