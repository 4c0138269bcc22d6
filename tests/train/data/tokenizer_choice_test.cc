#include "train/data/tokenizer_choice.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/scratch_folder.h"
#include "comm/thread_transport.h"
#include "train/coordinator.h"
#include "train/data/token_file.h"
#include "train/data/vocabulary.h"
#include "train/data_files.h"
#include "train/run_companions.h"

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
  static std::string of(const std::string& tokenizer, int vocab, const std::string& eod, const std::string& more = "") {
    return R"({"tokenizer": ")" + tokenizer + R"(", "vocab_size": )" + std::to_string(vocab) + R"(, "eod_id": )" + eod +
           more + R"(, "documents": 1})";
  }
  // A tokenizer of these words, in order; its path.
  std::string words(const std::string& name, const std::vector<std::string>& words) {
    nlohmann::json vocab;
    for (size_t id = 0; id < words.size(); ++id) vocab[words[id]] = id;
    write_plainly(scratch_.file(name), nlohmann::json{{"model", {{"vocab", vocab}}}}.dump());
    return scratch_.file(name);
  }
  // A dataset that `agoq data` made with it.
  std::string made_with(const std::string& tokenizer, const std::string& name) {
    return tokens(name, of(tokenizer, 300, "5", R"(, "vocabulary": ")" + vocabulary_hash(tokenizer).value() + "\""));
  }
  SettledTokenizer settle(const std::vector<std::string>& data, const ModelTokens& of_model,
                          const std::string& asked = "") {
    TrainConfig config;
    config.data_path = data;
    config.tokenizer = asked;
    return settle_tokenizer(config, model_, of_model);
  }
  // The tokenizer and end of document of a run on this data.
  std::pair<std::string, int64_t> settled(const std::vector<std::string>& data, const std::string& of_model = "",
                                          const std::string& asked = "") {
    TrainConfig config;
    config.data_path = data;
    config.tokenizer = asked;
    settle_tokenizer(config, model_, {of_model, "", of_model.empty() ? "" : "a model"});
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
  settle_tokenizer(config, model_, {});
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

TEST_F(TokenizerTest, DataOfAnotherVocabularyIsRefusedAndBothAreNamed) {
  const std::string mine = words("mine.json", {"a", "b"}), other = words("other.json", {"b", "a"});
  const std::string copy = words("copy.json", {"a", "b"});
  const std::string data = made_with(mine, "data"), others = made_with(other, "others");
  const auto both = [&](const std::string& error) {
    return testing::Value(error, AllOf(HasSubstr(mine), HasSubstr(other), HasSubstr(vocabulary_hash(mine).value()),
                                       HasSubstr(vocabulary_hash(other).value())));
  };
  EXPECT_EQ(settle({data}, {copy, "", "a model"}).vocabulary, vocabulary_hash(mine)) << "wherever its files lie";
  EXPECT_EQ(settle({"1", data, "1", made_with(copy, "more")}, {}).vocabulary, vocabulary_hash(mine));
  EXPECT_TRUE(both(error_of([&] { settle({data}, {other, "", "a model"}); })));
  EXPECT_TRUE(both(error_of([&] { settle({data}, {}, other); })));
  EXPECT_TRUE(both(error_of([&] { settle({"1", data, "1", others}, {}); })));
  const std::string first_silent = tokens("old", of(mine, 300, "5"));
  EXPECT_TRUE(both(error_of([&] { settle({"1", first_silent, "1", data, "1", others}, {}); })));
  EXPECT_EQ(settle({data}, {other, "", "a model"}, mine).vocabulary, vocabulary_hash(mine)) << "--tokenizer decides";
  // A run has recorded the hash, so its tokenizer's files may be gone.
  EXPECT_TRUE(both(error_of([&] { settle({data}, {other, vocabulary_hash(other).value(), "a run"}); })));
  std::filesystem::remove(copy);
  EXPECT_EQ(error_of([&] { settle({data}, {copy, vocabulary_hash(mine).value(), "a run"}); }), "");
}

TEST_F(TokenizerTest, DataThatDoesNotTellIsTakenWithOneWarning) {
  const std::string mine = words("mine.json", {"a", "b"});
  const std::string plain = tokens("plain"), old = tokens("old", of("/gone", 300, "5")), data = made_with(mine, "data");
  const SettledTokenizer settled = settle({"1", plain, "1", old, "1", data}, {mine, "", "a model"});
  EXPECT_THAT(settled.warning, AllOf(HasSubstr(plain), HasSubstr(old), HasSubstr("tokens of " + mine)));
  EXPECT_THAT(settled.warning, testing::Not(HasSubstr(data + ",")));
  EXPECT_EQ(settled.vocabulary, vocabulary_hash(mine));
  EXPECT_EQ(settle({data}, {mine, "", "a model"}).warning, "");
  EXPECT_EQ(settle({text("a.txt")}, {}).warning, "");
}

TEST_F(TokenizerTest, AModelThatDoesNotTellIsTakenForTheDatasWithOneWarning) {
  const std::string mine = words("mine.json", {"a", "b"}), data = made_with(mine, "data");
  EXPECT_THAT(settle({data}, {"", "", "/models/bare"}).warning,
              AllOf(HasSubstr("/models/bare"), HasSubstr("tokens of " + mine), HasSubstr(*vocabulary_hash(mine))));
  EXPECT_THAT(settle({data}, {"/gone", "", "/runs/old"}).warning, AllOf(HasSubstr("/runs/old"), HasSubstr(mine)));
  EXPECT_EQ(settle({data}, {}).warning, "") << "random weights learn any tokens";
  EXPECT_EQ(settle({data}, {"", "", "/models/bare"}, mine).warning, "") << "--tokenizer tells";
  EXPECT_EQ(settle({data}, {"/gone", vocabulary_hash(mine).value(), "/runs/new"}).warning, "");
}

TEST_F(TokenizerTest, AnotherVocabularyDoesNotEndAtTheModelsEos) {
  const std::string mine = words("mine.json", {"a", "b"}), other = words("other.json", {"b", "a"});
  model_.original_json = R"({"eos_token_id": [7, 8]})";
  const auto settled_for = [&](const ModelTokens& of_model, const std::string& asked) {
    TrainConfig config;
    config.data_path = {tokens("plain")};
    config.tokenizer = asked;
    const bool own = settle_tokenizer(config, model_, of_model).own_tokens;
    return std::pair(own, config.eod_token);
  };
  EXPECT_EQ(settled_for({mine, "", "m"}, mine), std::pair(true, int64_t{7}));
  EXPECT_EQ(settled_for({mine, "", "m"}, other), std::pair(false, int64_t{-1})) << "7 is an ordinary token here";
  EXPECT_EQ(settled_for({"", "", "m"}, other), std::pair(true, int64_t{7})) << "for all that is known";
  const model::ModelConfig whole = model::find_config("demo");
  EXPECT_EQ(stop_tokens({}, ending_with(whole, -1), ""), std::vector<int32_t>{});
  EXPECT_EQ(stop_tokens({}, ending_with(whole, 5), ""), std::vector<int32_t>{5});

  write_plainly(scratch_.file("generation_config.json"), R"({"eos_token_id": 7})");
  words("tokenizer.json", {"a", "b"});
  const auto keeps_generation_config = [&](const std::string& tokenizer) {
    return model::names_of(companions_of(tokenizer, scratch_.path())).find("generation_config") != std::string::npos;
  };
  EXPECT_TRUE(keeps_generation_config(mine));
  EXPECT_FALSE(keeps_generation_config(other));
}

// As on machines whose copies of the model's folder differ.
TEST_F(TokenizerTest, AllRanksEndTextsAsRankZero) {
  write_plainly(scratch_.file("generation_config.json"), R"({"eos_token_id": [3, 4]})");
  std::vector<std::vector<int32_t>> ends(2);
  test::ThreadWorld(2).run([&](comm::Transport& transport) {
    const Coordinator coordinator(&transport);
    ends[static_cast<size_t>(coordinator.rank())] =
        common_stop_tokens(coordinator, {}, model_, coordinator.is_rank0() ? scratch_.path() : "/no/where");
  });
  EXPECT_THAT(ends, testing::Each(std::vector<int32_t>{3, 4}));
}

TEST_F(TokenizerTest, TextIsNotTakenForBytesWhereTheModelHasLearnedOtherTokens) {
  const std::string book = text("a.txt");
  EXPECT_THAT(error_of([&] {
                settle({book}, {"", "", "/models/bare"});
              }),
              AllOf(HasSubstr(book), HasSubstr("/models/bare brings no tokenizer"), HasSubstr("--tokenizer byte")));
  EXPECT_EQ(settle({book}, {"", "", "/models/bare"}, "byte").vocabulary, vocabulary_hash("byte"));
  EXPECT_EQ(settle({book}, {"byte", "", "/runs/bytes"}).vocabulary, vocabulary_hash("byte"));
  EXPECT_EQ(error_of([&] { settle({book}, {}); }), "") << "random weights learn bytes";
}

TEST_F(TokenizerTest, AFinishedModelIsAskedInItsOwnTokens) {
  const std::string mine = words("mine.json", {"a", "b"}), other = words("other.json", {"b", "a"});
  TrainConfig config;
  config.tokenizer = other;
  EXPECT_THAT(error_of([&] {
                require_own_tokens(config, {mine, "", "/runs/a"});
              }),
              AllOf(HasSubstr("/runs/a knows tokens of " + mine), HasSubstr("--tokenizer gives tokens of " + other)));
  EXPECT_EQ(error_of([&] { require_own_tokens(config, {"/moved", vocabulary_hash(other).value(), "/runs/a"}); }), "");
  EXPECT_EQ(error_of([&] { require_own_tokens(config, {"", "", "/runs/a"}); }), "") << "nothing else is known";
  config.tokenizer = "byte";
  EXPECT_THAT(error_of([&] { require_own_tokens(config, {mine, "", "/runs/a"}); }), HasSubstr("gives bytes"));
}

TEST_F(TokenizerTest, PromptsBeginAsTheDocumentsOfTheData) {
  const auto begins = [&](const std::vector<std::string>& data, const std::string& asked = "auto") {
    TrainConfig config;
    config.data_path = data;
    config.prompt_bos = asked;
    settle_tokenizer(config, model_, {});
    return config.prompt_bos;
  };
  const std::string with = tokens("with", of("/w", 300, "5", R"(, "prepend_bos": true)"));
  const std::string without = tokens("without", of("/w", 300, "5", R"(, "prepend_bos": false)"));
  const std::string silent = tokens("silent", of("/w", 300, "5"));
  EXPECT_EQ(begins({with}), "always");
  EXPECT_EQ(begins({without}), "never");
  EXPECT_EQ(begins({silent}), "auto");
  EXPECT_EQ(begins({"1", with, "1", without}), "auto");
  EXPECT_EQ(begins({with}, "never"), "never");
}

TEST_F(TokenizerTest, TextsEndAtEveryEos) {
  TrainConfig config;
  config.eod_token = 5;
  model_.original_json = R"({"eos_token_id": [7, 8]})";
  EXPECT_EQ(stop_tokens(config, model_, ""), (std::vector<int32_t>{5, 7, 8}));
  write_plainly(scratch_.file("generation_config.json"), R"({"eos_token_id": [8, 128009]})");
  EXPECT_EQ(stop_tokens(config, model_, scratch_.path()), (std::vector<int32_t>{5, 7, 8, 128009}));
  write_plainly(scratch_.file("generation_config.json"), R"({"eos_token_id": 3})");
  model_.original_json = R"({"eos_token_id": null})";
  config.eod_token = -1;
  EXPECT_EQ(stop_tokens(config, model_, scratch_.path()), (std::vector<int32_t>{3}));
  write_plainly(scratch_.file("generation_config.json"), R"({"eos_token_id": [-1, "2", 4294967296]})");
  EXPECT_EQ(stop_tokens(config, model_, scratch_.path()), std::vector<int32_t>{});
  config.tokenizer = "byte";
  config.eod_token = 256;
  model_.original_json = R"({"eos_token_id": 2})";
  EXPECT_EQ(stop_tokens(config, model_, scratch_.path()), (std::vector<int32_t>{256})) << "2 is a byte here";
}

// Which hash is right, tests/python/test_tokenizer.py tells; here, what is no tokenizer.
TEST_F(TokenizerTest, WhatIsNoVocabularyIsNamed) {
  EXPECT_EQ(vocabulary_hash(scratch_.path()), std::nullopt);
  EXPECT_EQ(vocabulary_hash("/no/where"), std::nullopt);
  for (const char* wrong : {"", "[]", "{", R"({"model": 1})", R"({"model": {"vocab": {}}})", "{}",
                            R"({"model": {"vocab": {"a": "b"}}})", R"({"model": {"vocab": [["a", 1], 2]}})"}) {
    write_plainly(scratch_.file("tokenizer.json"), wrong);
    EXPECT_THAT(error_of([&] { vocabulary_hash(scratch_.path()); }), HasSubstr("tokenizer.json: no")) << wrong;
  }
  words("tokenizer.json", {"a"});
  write_plainly(scratch_.file("tokenizer_config.json"), R"({"added_tokens_decoder": {"x": 5}})");
  EXPECT_THAT(error_of([&] { vocabulary_hash(scratch_.path()); }), HasSubstr("added_tokens_decoder"));
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
