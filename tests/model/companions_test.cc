#include "model/companions.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <map>

#include "base/log.h"
#include "base/scratch_folder.h"

namespace agoq::model {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;

constexpr const char* kTokenizer = R"({"model": {"type": "BPE", "vocab": {}, "merges": []}})";

class CompanionsTest : public testing::Test {
 protected:
  CompanionsTest() { set_log_level(LogLevel::Error); }
  ~CompanionsTest() override { set_log_level(LogLevel::Info); }

  std::string make(const std::string& name, const std::string& content = "x") const {
    const fs::path path = folder_.file(name);
    fs::create_directories(path.parent_path());
    write_plainly(path, content);
    return path.string();
  }
  static std::vector<std::string> names(const Companions& files) {
    std::vector<std::string> names;
    for (const Companion& file : files) names.push_back(file.name);
    return names;
  }
  static Companions all(const fs::path& folder) {
    Companions files;
    for (const Companions& part : {tokenizer_files(folder), generation_files(folder), licence_files(folder)})
      files.insert(files.end(), part.begin(), part.end());
    return files;
  }

  ScratchFolder folder_;
};

TEST_F(CompanionsTest, AreWhatTheListNamesAndNothingElse) {
  const std::map<std::string, std::string> carried = {{"tokenizer.json", "{\"a\": \"\xc3\xa9\"}\r\n"},
                                                      {"tokenizer.model", std::string("\0\1\xff", 3)},
                                                      {"gpt2-merges.txt", "a b"},
                                                      {"chat_template.jinja", "{{ messages }}"},
                                                      {"generation_config.json", "{ }"},
                                                      {"LICENSE", ""},
                                                      {"additional_chat_templates/rag.jinja", "rag"}};
  for (const auto& [name, content] : carried) make("m/" + name, content);
  for (const char* name :
       {"model.safetensors", "pytorch_model.bin", "README.md", ".env", "id_rsa", "passwd", "shadow", "config.json",
        "modeling_own.py", "notes.txt", "additional_chat_templates/passwd", "other/tokenizer.json"})
    make(std::string("m/") + name);
  fs::create_directory(folder_.file("m/vocab.json"));
  std::map<std::string, std::string> found;
  for (const Companion& file : all(folder_.file("m"))) found[file.name] = file.content;
  EXPECT_EQ(found, carried);
  EXPECT_TRUE(all(folder_.file("none")).empty());
  EXPECT_TRUE(all("").empty());
}

TEST_F(CompanionsTest, LinksOutOfTheFolderAreNotFollowed) {
  make("secret/tokenizer.json", "secret");
  make("secret/rag.jinja", "secret");
  make("m/inside.json", "inside");
  fs::create_symlink(folder_.file("secret/tokenizer.json"), folder_.file("m/tokenizer.json"));
  fs::create_symlink("../secret/tokenizer.json", folder_.file("m/generation_config.json"));
  fs::create_symlink("nowhere", folder_.file("m/LICENSE"));
  fs::create_symlink("inside.json", folder_.file("m/tokenizer_config.json"));
  fs::create_directory_symlink("../secret", folder_.file("m/additional_chat_templates"));
  ASSERT_EQ(mkfifo(folder_.file("m/added_tokens.json").c_str(), 0600), 0);  // would be waited for
  const Companions files = all(folder_.file("m"));
  EXPECT_THAT(names(files), ElementsAre("tokenizer_config.json"));
  EXPECT_EQ(files.at(0).content, "inside");
  // A link to the folder itself is the folder.
  fs::create_directory_symlink("m", folder_.file("link"));
  EXPECT_THAT(names(all(folder_.file("link"))), ElementsAre("tokenizer_config.json"));
}

// models--X/snapshots/REVISION/NAME -> ../../blobs/HASH, as huggingface_hub keeps downloads.
TEST_F(CompanionsTest, TheDownloadCacheIsOneFolder) {
  make("models--a--b/blobs/123", kTokenizer);
  make("secret", "secret");
  const std::string revision = folder_.file("models--a--b/snapshots/abc");
  fs::create_directories(revision);
  fs::create_symlink("../../blobs/123", revision + "/tokenizer.json");
  fs::create_symlink("../../../secret", revision + "/LICENSE");
  fs::create_symlink("../../../secret", folder_.file("models--a--b/blobs/456"));
  fs::create_symlink("../../blobs/456", revision + "/NOTICE");
  EXPECT_THAT(names(all(revision)), ElementsAre("tokenizer.json"));
  fs::rename(folder_.file("models--a--b/snapshots"), folder_.file("models--a--b/other"));
  EXPECT_TRUE(all(folder_.file("models--a--b/other/abc")).empty()) << "only that layout";
}

TEST_F(CompanionsTest, ATokenizerMayBeNamedAsAFile) {
  const std::string file = make("m/mine.json", kTokenizer);
  make("m/tokenizer.json", "another");
  make("m/tokenizer_config.json", "config");
  const Companions files = tokenizer_files(file);
  EXPECT_THAT(names(files), ElementsAre("tokenizer.json", "tokenizer_config.json"));
  EXPECT_EQ(files[0].content, kTokenizer);
  EXPECT_TRUE(has_tokenizer(files));
  EXPECT_FALSE(has_tokenizer(generation_files(folder_.file("m"))));
  // A checkpoint that names some other file as its tokenizer gets nothing.
  EXPECT_TRUE(tokenizer_files(make("m/passwd", "root:x:0:0")).empty());
  EXPECT_TRUE(tokenizer_files(make("m/login.json", R"({"auths": {"host": "token"}})")).empty());
}

TEST_F(CompanionsTest, AreWrittenAsTheyWere) {
  const Companions files = {{"tokenizer.json", std::string("\0\n", 2)}, {"additional_chat_templates/rag.jinja", "rag"}};
  write_companions(files, folder_.path());
  for (const auto& [name, content] : files) EXPECT_EQ(read_plainly(folder_.file(name)), content);
  EXPECT_EQ(names_of(files), "tokenizer.json, additional_chat_templates/rag.jinja");
}

}  // namespace
}  // namespace agoq::model
