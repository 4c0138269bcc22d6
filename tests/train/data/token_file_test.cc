#include "train/data/token_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sys/stat.h>

#include <fstream>
#include <numeric>

#include "train/data_files.h"

namespace agoq::train {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<int32_t> read(const TokenFile& file, uint64_t first, size_t count) {
  std::vector<int32_t> tokens(count, -1);
  file.read(first, tokens);
  return tokens;
}
std::vector<int32_t> all(const TokenFile& file) {
  return read(file, 0, file.token_count());
}
std::vector<float> mask(const TokenFile& file, uint64_t first, size_t count) {
  std::vector<float> values(count, -1);
  file.read_mask(first, values);
  return values;
}

TEST(TokenFile, ReadsMegatronFilesOfEveryTokenType) {
  const ScratchFolder scratch;
  const std::vector<int64_t> tokens = {7, 1, 200, 0, 9};
  const struct {
    uint8_t code;
    int64_t size;
    std::string bytes;
  } types[] = {{1, 1, raw_tokens<uint8_t>(tokens)},
               {4, 4, raw_tokens<int32_t>(tokens)},
               {5, 8, raw_tokens<int64_t>(tokens)},
               {8, 2, raw_tokens<uint16_t>(tokens)}};
  for (const auto& type : types) {
    const std::string prefix = scratch.file("data" + std::to_string(type.code));
    write_plainly(prefix + ".bin", type.bytes);
    write_plainly(prefix + ".idx", megatron_index(type.code, type.size, {2, 0, 3}));
    for (const char* extension : {"", ".bin", ".idx"}) {
      const TokenFile file(prefix + extension, {.vocab_size = 201});
      EXPECT_EQ(file.format(), TokenFormat::Megatron);
      EXPECT_EQ(file.document_count(), 3u);
      EXPECT_THAT(all(file), ElementsAre(7, 1, 200, 0, 9)) << "type " << int{type.code};
      EXPECT_THAT(read(file, 1, 3), ElementsAre(1, 200, 0));
      EXPECT_FALSE(file.has_mask());
      EXPECT_THAT(mask(file, 1, 2), ElementsAre(1, 1));
    }
  }
}

TEST(TokenFile, FollowsTheIndexWhenSequencesLieInAnotherOrder) {
  const ScratchFolder scratch;
  const std::string prefix = scratch.file("shuffled");
  write_plainly(prefix + ".bin", raw_tokens<uint16_t>({10, 11, 20, 21, 22, 30}));
  write_plainly(prefix + ".mask", std::string("\1\0\1\1\0\1", 6));
  std::string index = megatron_index(8, 2, {1, 3, 2});
  const int64_t pointers[] = {10, 4, 0};  // third, second, first
  std::memcpy(&index[34 + 3 * 4], pointers, sizeof(pointers));
  write_plainly(prefix + ".idx", index);
  const TokenFile file(prefix, {});
  EXPECT_THAT(all(file), ElementsAre(30, 20, 21, 22, 10, 11));
  EXPECT_THAT(mask(file, 0, 6), ElementsAre(1, 1, 1, 0, 1, 0));
  for (uint64_t first = 0; first <= 6; ++first)
    for (size_t count = 0; count + first <= 6; ++count) {
      const std::vector<int32_t> whole = all(file);
      EXPECT_EQ(read(file, first, count), std::vector<int32_t>(whole.begin() + static_cast<int64_t>(first),
                                                               whole.begin() + static_cast<int64_t>(first + count)));
    }
}

TEST(TokenFile, ReadsFlatFiles) {
  const ScratchFolder scratch;
  write_plainly(scratch.file("a.bin"), raw_tokens<uint16_t>({1, 65535, 3}));
  write_plainly(scratch.file("b.bin"), raw_tokens<int32_t>({1, 65536, 3}));
  const TokenFile a(scratch.file("a.bin"), {});
  EXPECT_EQ(a.format(), TokenFormat::Flat);
  EXPECT_THAT(all(a), ElementsAre(1, 65535, 3));
  EXPECT_THAT(all(TokenFile(scratch.file("b.bin"), {.data_dtype = DType::I32})), ElementsAre(1, 65536, 3));
}

TEST(TokenFile, ReadsTextByteByByte) {
  const ScratchFolder scratch;
  write_plainly(scratch.file("a.txt"), "h\xC3\xA9\n");
  const TokenFile one(scratch.file("a.txt"), {.vocab_size = 257});
  EXPECT_EQ(one.format(), TokenFormat::Text);
  EXPECT_EQ(one.document_count(), 1u);
  EXPECT_THAT(all(one), ElementsAre('h', 0xC3, 0xA9, '\n', 256));
}

TEST(TokenFile, SplitsTextAtSeparatorLines) {
  const ScratchFolder scratch;
  const TokenFileOptions options = {.document_separator = "<|endoftext|>"};
  write_plainly(scratch.file("a"), "<|endoftext|>\nab\n<|endoftext|>\r\n<|endoftext|>\nc<|endoftext|>\n<|endoftext|>");
  const TokenFile file(scratch.file("a"), options);
  EXPECT_EQ(file.document_count(), 2u);  // empty documents are none
  std::vector<int32_t> expected = {'a', 'b', '\n', 256, 'c'};
  for (const char c : std::string("<|endoftext|>\n")) expected.push_back(c);  // inside a line it is text
  expected.push_back(256);
  EXPECT_EQ(all(file), expected);
  EXPECT_THAT(read(file, 3, 1), ElementsAre(256));
  EXPECT_THAT(read(file, 2, 3), ElementsAre('\n', 256, 'c'));
}

TEST(TokenFile, RefusesWhatIsNotUtf8AndSaysWhere) {
  const ScratchFolder scratch;
  const std::string good =
      "plain, \xC2\xA2, \xE2\x82\xAC, \xF0\x90\x8D\x88, \xED\x9F\xBF, \xEF\xBF\xBF, \xF4\x8F\xBF\xBF.";
  write_plainly(scratch.file("good"), good);
  EXPECT_EQ(TokenFile(scratch.file("good"), {}).token_count(), good.size() + 1);
  const std::vector<std::string> bad = {"\x80",         "\xC0\x80",         "\xC1\xBF",         "\xE0\x9F\xBF",
                                        "\xED\xA0\x80", "\xF0\x8F\xBF\xBF", "\xF4\x90\x80\x80", "\xF5\x80\x80\x80",
                                        "\xC3",         "\xE2\x82",         "\xE2(\xA1",        "\xFF"};
  for (size_t i = 0; i < bad.size(); ++i) {
    write_plainly(scratch.file("bad"), std::string(17, 'x') + bad[i]);
    EXPECT_THAT(error_of([&] { TokenFile(scratch.file("bad"), {}); }),
                AllOf(HasSubstr("bad is not UTF-8"), HasSubstr("byte 17 ")))
        << i;
  }
}

TEST(TokenFile, NamesTheTokenOutsideTheVocabulary) {
  const ScratchFolder scratch;
  write_megatron(scratch.file("m"), {{1, 2}, {3, 500, 4}});
  const auto open = [&](int64_t vocab) {
    return error_of([&] { TokenFile(scratch.file("m"), {.vocab_size = vocab}); });
  };
  EXPECT_EQ(open(501), "");
  EXPECT_THAT(open(500), AllOf(HasSubstr("m.bin"), HasSubstr("token 3 (byte 6)"), HasSubstr("id 500"),
                               HasSubstr("vocabulary of 500")));
  write_plainly(scratch.file("negative.bin"), raw_tokens<int32_t>({1, -2}));
  EXPECT_THAT(error_of([&] { TokenFile(scratch.file("negative.bin"), {.data_dtype = DType::I32}); }),
              AllOf(HasSubstr("token 1 (byte 4)"), HasSubstr("id -2")));
  write_plainly(scratch.file("wide.bin"), raw_tokens<int64_t>({1, int64_t{1} << 40}));
  write_plainly(scratch.file("wide.idx"), megatron_index(5, 8, {2}));
  EXPECT_THAT(error_of([&] { TokenFile(scratch.file("wide"), {}); }), HasSubstr("id 1099511627776"));
  write_plainly(scratch.file("text"), "some text");
  EXPECT_THAT(error_of([&] { TokenFile(scratch.file("text"), {.vocab_size = 256}); }), HasSubstr("at least 257"));
}

TEST(TokenFile, RefusesWrongSizes) {
  const ScratchFolder scratch;
  write_plainly(scratch.file("odd.bin"), "12345");
  EXPECT_THAT(error_of([&] { TokenFile(scratch.file("odd.bin"), {}); }),
              AllOf(HasSubstr("odd.bin has 5 bytes"), HasSubstr("inside token 2")));
  write_megatron(scratch.file("m"), {{1, 2}, {3}});
  write_plainly(scratch.file("m.mask"), "\1\1");
  EXPECT_THAT(error_of([&] { TokenFile(scratch.file("m"), {}); }),
              AllOf(HasSubstr("m.mask has 2 bytes"), HasSubstr("3 tokens")));
  write_plainly(scratch.file("m.mask"), std::string("\1\7\0", 3));
  EXPECT_THAT(error_of([&] { TokenFile(scratch.file("m"), {}); }), HasSubstr("m.mask: byte 1 is 7"));
  std::filesystem::remove(scratch.file("m.mask"));
  const TokenFile file(scratch.file("m"), {});
  EXPECT_THAT(error_of([&] { read(file, 2, 2); }), HasSubstr("it has 3"));
  std::ofstream(scratch.file("m.bin"), std::ios::app) << 'x';
  EXPECT_THAT(error_of([&] { TokenFile(scratch.file("m"), {}); }), HasSubstr("ends inside token 3"));
}

// What the index leaves out may be anything.
TEST(TokenFile, ChecksEveryTokenOfTheStreamAndNoOther) {
  const ScratchFolder scratch;
  std::vector<int64_t> tokens(300'000, 1);
  tokens[299'999] = 9;
  write_plainly(scratch.file("a.bin"), raw_tokens<uint16_t>(tokens));
  const auto error = [&] { return error_of([&] { TokenFile(scratch.file("a.bin"), {.vocab_size = 9}); }); };
  EXPECT_THAT(error(), HasSubstr("token 299999 (byte 599998) has the id 9"));
  std::string mask(300'000, '\1');
  mask[123'456] = '\2';
  write_plainly(scratch.file("a.mask"), mask);
  tokens[299'999] = 8;
  write_plainly(scratch.file("a.bin"), raw_tokens<uint16_t>(tokens));
  EXPECT_THAT(error(), HasSubstr("a.mask: byte 123456 is 2"));
  write_plainly(scratch.file("a.idx"), megatron_index(8, 2, {123'456}));
  EXPECT_EQ(error(), "");
}

TEST(TokenFile, ReadsAMaskBesideAFlatFile) {
  const ScratchFolder scratch;
  write_plainly(scratch.file("a.bin"), raw_tokens<uint16_t>({1, 2, 3, 4}));
  write_plainly(scratch.file("a.mask"), std::string("\0\1\0\1", 4));
  const TokenFile file(scratch.file("a.bin"), {});
  EXPECT_TRUE(file.has_mask());
  EXPECT_THAT(mask(file, 0, 4), ElementsAre(0, 1, 0, 1));
  EXPECT_EQ(file.next_target(0, 4), 1u);
  EXPECT_EQ(file.next_target(2, 4), 3u);
  EXPECT_EQ(file.next_target(2, 3), std::nullopt);
  write_plainly(scratch.file("a.mask"), "\1");
  EXPECT_THAT(error_of([&] { TokenFile(scratch.file("a.bin"), {}); }), HasSubstr("a.mask has 1 bytes"));
  std::filesystem::remove(scratch.file("a.mask"));
  std::filesystem::create_directory(scratch.file("a.mask"));
  EXPECT_THAT(error_of([&] { TokenFile(scratch.file("a.bin"), {}); }), HasSubstr("a.mask: it is a directory"));
}

TEST(TokenFile, KnowsWhereDocumentsBegin) {
  const ScratchFolder scratch;
  write_plainly(scratch.file("m.bin"), raw_tokens<uint16_t>({1, 2, 3, 4, 5, 6}));
  std::string index("MMIDIDX\0\0", 9);
  put<uint64_t>(index, 1);
  put<uint8_t>(index, 8);
  put<uint64_t>(index, 5);  // sequences, and five documents: the second is empty, the third has two sequences
  put<uint64_t>(index, 6);
  for (const int32_t length : {2, 0, 1, 2, 1}) put<int32_t>(index, length);
  for (const int64_t pointer : {0, 0, 4, 6, 10}) put<int64_t>(index, pointer);
  for (const int64_t first : {0, 1, 1, 2, 4, 5}) put<int64_t>(index, first);
  write_plainly(scratch.file("m.idx"), index);
  TokenFile file(scratch.file("m"), {});
  EXPECT_EQ(file.document_count(), 5u);
  const auto starts = [&](uint64_t first, uint64_t end) {
    const auto found = file.document_starts(first, end);
    return std::vector<uint64_t>(found.begin(), found.end());
  };
  EXPECT_THAT(starts(0, 6), ElementsAre(0, 2, 5));
  EXPECT_THAT(starts(1, 5), ElementsAre(2));
  EXPECT_THAT(starts(3, 5), ElementsAre());
  EXPECT_TRUE(file.stores_borders());
}

TEST(TokenFile, RefusesWhatIsNoFileAtOnce) {
  const ScratchFolder scratch;
  std::filesystem::create_directory(scratch.file("folder"));
  ASSERT_EQ(mkfifo(scratch.file("fifo").c_str(), 0600), 0);
  ASSERT_EQ(mkfifo(scratch.file("fifo.bin").c_str(), 0600), 0);
  for (const char* name : {"folder", "fifo", "fifo.bin"})
    EXPECT_THAT(error_of([&] { TokenFile(scratch.file(name), {}); }),
                AllOf(HasSubstr(scratch.file(name) + " is a "), HasSubstr("give a regular file")))
        << name;
}

TEST(TokenFile, AFileThatShrinksIsAnError) {
  const ScratchFolder scratch;
  write_plainly(scratch.file("a.bin"), raw_tokens<uint16_t>(std::vector<int64_t>(100'000, 1)));
  const TokenFile file(scratch.file("a.bin"), {});
  std::filesystem::resize_file(scratch.file("a.bin"), 1000);
  EXPECT_THAT(error_of([&] { read(file, 90'000, 10); }), AllOf(HasSubstr("a.bin"), HasSubstr("shortened")));
}

TEST(TokenFile, SaysWhichFileIsMissing) {
  const ScratchFolder scratch;
  EXPECT_THAT(error_of([&] { TokenFile(scratch.file("none"), {}); }), HasSubstr("none.bin with"));
  EXPECT_THAT(error_of([&] { TokenFile(scratch.file("none.bin"), {}); }), HasSubstr("cannot find the data"));
  write_megatron(scratch.file("m"), {{1, 2}});
  std::filesystem::remove(scratch.file("m.idx"));
  EXPECT_THAT(error_of([&] { TokenFile(scratch.file("m"), {}); }), HasSubstr("no index"));
  std::filesystem::rename(scratch.file("m.bin"), scratch.file("n.bin"));
  write_megatron(scratch.file("m"), {{1, 2}});
  std::filesystem::remove(scratch.file("m.bin"));
  EXPECT_THAT(error_of([&] { TokenFile(scratch.file("m.idx"), {}); }), HasSubstr("has no"));
}

TEST(MegatronIndex, EveryTruncationIsAnErrorThatNamesTheFile) {
  const std::string index = megatron_index(8, 2, {2, 3});
  const auto parse = [](std::string_view bytes) {
    return parse_megatron_index({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}, "some.idx", 10);
  };
  EXPECT_EQ(parse(index).tokens, 5u);
  for (size_t length = 0; length < index.size(); ++length)
    EXPECT_THAT(error_of([&] { parse(std::string_view(index).substr(0, length)); }), HasSubstr("some.idx")) << length;
  EXPECT_THAT(error_of([&] { parse(index + "x"); }), HasSubstr("some.idx"));
}

TEST(MegatronIndex, SaysWhatIsDamagedAndWhere) {
  const auto damaged = [](size_t at, std::string_view bytes, uint64_t bin_bytes = 10) {
    std::string index = megatron_index(8, 2, {2, 3});
    index.replace(at, bytes.size(), bytes);
    return error_of([&] {
      parse_megatron_index({reinterpret_cast<const uint8_t*>(index.data()), index.size()}, "i", bin_bytes);
    });
  };
  constexpr size_t kLengths = 34, kPointers = 42, kDocuments = 58;
  EXPECT_THAT(damaged(0, "X"), HasSubstr("byte 0"));
  EXPECT_THAT(damaged(9, "\2"), HasSubstr("version 2"));
  EXPECT_THAT(damaged(17, "\7"), HasSubstr("type code 7"));
  EXPECT_THAT(damaged(18, "\3"), HasSubstr("3 sequences"));
  EXPECT_THAT(damaged(25, "\x7f"), HasSubstr("sequences"));  // a number that overflows any product
  EXPECT_THAT(damaged(kLengths + 4 + 3, "\xff"), HasSubstr("byte 38: sequence 1"));
  EXPECT_THAT(damaged(kLengths + 4, "\4"),
              HasSubstr("byte 50: sequence 1 (stream token 2) of 4 tokens begins at byte 4"));
  EXPECT_THAT(damaged(kPointers + 8, "\5"), HasSubstr("sequence 1"));
  EXPECT_THAT(damaged(kPointers + 8, "\3"), HasSubstr("no multiple"));
  EXPECT_THAT(damaged(kPointers + 15, "\xff"), HasSubstr("sequence 1"));
  EXPECT_THAT(damaged(kDocuments + 8, "\3"), HasSubstr("document 1"));
  EXPECT_THAT(damaged(kDocuments + 16, "\1"), HasSubstr("ends at sequence 1 of 2"));
  EXPECT_THAT(damaged(0, "M", 9), HasSubstr("which has only 9 bytes"));
  EXPECT_EQ(damaged(0, "M", 11), "");
}

// Megatron-LM's multimodal datasets have a byte for each sequence behind the documents.
TEST(MegatronIndex, AMultimodalOneIsNamedAsWhatItIs) {
  const std::string index = megatron_index(8, 2, {3, 4}) + std::string("\0\1", 2);
  const std::string error = error_of([&] {
    parse_megatron_index({reinterpret_cast<const uint8_t*>(index.data()), index.size()}, "some.idx", 14);
  });
  EXPECT_THAT(error, AllOf(HasSubstr("some.idx"), HasSubstr("multimodal"), HasSubstr("2 sequences")));
  EXPECT_THAT(error, Not(HasSubstr("damaged")));
}

TEST(TokenFile, FingerprintChangesWithTheContent) {
  const ScratchFolder scratch;
  std::vector<int64_t> tokens(3'000'000);
  std::iota(tokens.begin(), tokens.end(), 0);
  const auto fingerprint = [&] {
    write_plainly(scratch.file("a.bin"), raw_tokens<uint16_t>(tokens));
    return TokenFile(scratch.file("a.bin"), {}).fingerprint();
  };
  const uint64_t before = fingerprint();
  EXPECT_EQ(fingerprint(), before);
  tokens.back() ^= 1;
  const uint64_t other_end = fingerprint();
  EXPECT_NE(other_end, before);
  tokens.push_back(3);
  EXPECT_NE(fingerprint(), other_end);
  tokens.pop_back();
  for (const size_t place : {0u, 524'287u, 524'288u, 1'234'567u, 2'999'999u}) {
    tokens[place] ^= 1;
    EXPECT_NE(fingerprint(), other_end) << "token " << place;
    tokens[place] ^= 1;
  }
  EXPECT_EQ(fingerprint(), other_end);
}

}  // namespace
}  // namespace agoq::train
