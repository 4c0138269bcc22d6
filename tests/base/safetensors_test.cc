#include "base/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <ctime>
#include <limits>
#include <map>

#include "base/error.h"
#include "base/error_of.h"
#include "base/scratch_folder.h"

namespace agoq {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

// A file built by hand, without the writer.
std::string file_of(std::string header, size_t data_bytes) {
  std::string file(8, '\0');
  for (size_t i = 0; i < 8; ++i) file[i] = static_cast<char>(header.size() >> (8 * i));
  file += header;
  for (size_t i = 0; i < data_bytes; ++i) file += static_cast<char>(i);
  return file;
}

std::span<const uint8_t> bytes_of(std::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

std::string parse_error(std::string_view file) {
  return error_of([&] { parse_safetensors_header(bytes_of(file), "some/model.safetensors"); });
}

template <class T>
std::span<const uint8_t> bytes_of(const std::vector<T>& values) {
  return {reinterpret_cast<const uint8_t*>(values.data()), values.size() * sizeof(T)};
}

TEST(SafetensorsHeader, ReadsAHandMadeFile) {
  const std::string file = file_of(
      R"({"b":{"dtype":"U8","shape":[3],"data_offsets":[8,11]},"__metadata__":{"format":"pt"},)"
      R"("a":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},"s":{"dtype":"F8_E4M3","shape":[],"data_offsets":[11,12]},)"
      R"("e":{"dtype":"I64","shape":[0,7],"data_offsets":[8,8]}}   )",
      12);
  const SafetensorsHeader header = parse_safetensors_header(bytes_of(file), "x");
  ASSERT_EQ(header.entries.size(), 4u);
  EXPECT_EQ(header.entries[0].name, "a");
  EXPECT_THAT(header.entries[0].shape, ElementsAre(1, 2));
  EXPECT_EQ(header.entries[0].dtype, DType::F32);
  EXPECT_EQ(header.entries[1].name, "e");
  EXPECT_EQ(header.entries[1].count, 0);
  EXPECT_EQ(header.entries[2].name, "b");
  EXPECT_EQ(header.entries[2].offset, 8u);
  EXPECT_EQ(header.entries[3].format_dtype, "F8_E4M3");
  EXPECT_EQ(header.entries[3].dtype, std::nullopt);
  EXPECT_EQ(header.entries[3].count, 1);
  EXPECT_EQ(header.metadata.at("format"), "pt");
  EXPECT_EQ(header.data_begin, file.size() - 12);
}

TEST(SafetensorsHeader, AcceptsAFileWithoutTensors) {
  EXPECT_TRUE(parse_safetensors_header(bytes_of(file_of("{}", 0)), "x").entries.empty());
}

struct Malformation {
  const char* name;
  std::string file;
  const char* says;
};

std::string with_entry(const std::string& entry, size_t data_bytes = 8) {
  return file_of(R"({"w":)" + entry + "}", data_bytes);
}

std::string many_ones(size_t count) {
  std::string text;
  for (size_t i = 0; i < count; ++i) text += i == 0 ? "1" : ",1";
  return text;
}

std::vector<Malformation> malformations() {
  const std::string good = R"({"dtype":"F32","shape":[2],"data_offsets":[0,8]})";
  std::string huge_length = file_of("{}", 0);
  huge_length[7] = '\x7f';
  std::string limit = file_of("{}", 0);
  limit[4] = 1;
  return {
      {"empty", "", "fewer than the 8"},
      {"short_length", std::string(7, '\0'), "fewer than the 8"},
      {"zero_length", std::string(8, '\0'), "does not begin with"},
      {"huge_length", huge_length, "exceeds the limit"},
      {"over_the_limit", limit, "exceeds the limit"},
      {"header_cut", with_entry(good).substr(0, 30), "truncated"},
      {"data_cut", with_entry(good, 7), "truncated or damaged"},
      {"extra_data", with_entry(good, 9), "the tensors end at byte 8"},
      {"data_of_nobody", file_of("{}", 1), "the tensors end at byte 0"},
      {"not_an_object", file_of("[]", 0), "does not begin with"},
      {"leading_space", file_of(" {}", 0), "does not begin with"},
      {"broken_json", file_of(R"({"w":)", 0), "not JSON"},
      {"bad_utf8", file_of("{\"\xff\":1}", 0), "not JSON"},
      {"text_after", file_of("{} x", 0), "not JSON"},
      {"repeated_tensor", file_of(R"({"w":)" + good + R"(,"w":)" + good + "}", 8), "'w' appears twice"},
      {"repeated_field", with_entry(R"({"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]})"),
       "appears twice"},
      {"deep", with_entry(std::string(100'000, '[')), "nested"},
      {"deep_objects",
       file_of(
           [] {
             std::string text;
             for (int i = 0; i < 1000; ++i) text += R"({"a":)";
             return text;
           }(),
           0),
       "nested"},
      {"entry_no_object", with_entry("7"), "not an object"},
      {"unknown_field", with_entry(R"({"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1})"), "unknown field 'x'"},
      {"no_dtype", with_entry(R"({"shape":[2],"data_offsets":[0,8]})"), "no dtype"},
      {"dtype_no_text", with_entry(R"({"dtype":1,"shape":[2],"data_offsets":[0,8]})"), "no dtype"},
      {"unknown_dtype", with_entry(R"({"dtype":"F33","shape":[2],"data_offsets":[0,8]})"), "unknown dtype 'F33'"},
      {"no_shape", with_entry(R"({"dtype":"F32","data_offsets":[0,8]})"), "no shape"},
      {"negative_dim", with_entry(R"({"dtype":"F32","shape":[-2],"data_offsets":[0,8]})"), "dimension -2"},
      {"fractional_dim", with_entry(R"({"dtype":"F32","shape":[2.0],"data_offsets":[0,8]})"), "dimension 2.0"},
      {"dim_over_int64", with_entry(R"({"dtype":"U8","shape":[9223372036854775808],"data_offsets":[0,8]})"),
       "dimension"},
      {"dim_over_uint64", with_entry(R"({"dtype":"U8","shape":[18446744073709551624],"data_offsets":[0,8]})"),
       "dimension"},
      {"count_overflow", with_entry(R"({"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,8]})"), "2^63"},
      {"byte_overflow", with_entry(R"({"dtype":"F64","shape":[2305843009213693953],"data_offsets":[0,8]})"), "2^61"},
      {"half_a_byte", with_entry(R"({"dtype":"F4","shape":[3],"data_offsets":[0,8]})"), "whole number of bytes"},
      {"no_offsets", with_entry(R"({"dtype":"F32","shape":[2]})"), "no data_offsets"},
      {"one_offset", with_entry(R"({"dtype":"F32","shape":[2],"data_offsets":[0]})"), "two whole numbers"},
      {"negative_offset", with_entry(R"({"dtype":"F32","shape":[2],"data_offsets":[-1,7]})"), "two whole numbers"},
      {"reversed_offsets", with_entry(R"({"dtype":"F32","shape":[2],"data_offsets":[8,0]})"), "before it begins"},
      {"outside", with_entry(R"({"dtype":"F32","shape":[2],"data_offsets":[8,16]})"), "truncated or damaged"},
      {"size_mismatch", with_entry(R"({"dtype":"F32","shape":[3],"data_offsets":[0,8]})"), "needs 12 bytes"},
      {"many_dimensions", with_entry(R"({"dtype":"U8","shape":[)" + many_ones(65) + R"(],"data_offsets":[0,8]})"),
       "has 65 dimensions, more than 64"},
      {"hole_before", with_entry(R"({"dtype":"F32","shape":[1],"data_offsets":[4,8]})"), "bytes 0 to 4"},
      {"overlap", file_of(R"({"v":)" + good + R"(,"w":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})", 12),
       "inside the tensor before"},
      {"metadata_no_object", file_of(R"({"__metadata__":[]})", 0), "__metadata__ is not an object"},
      {"metadata_no_text", file_of(R"({"__metadata__":{"a":1}})", 0), "entry 'a' is not a string"},
  };
}

TEST(SafetensorsHeader, MalformedFilesAreErrorsThatNameThePath) {
  for (const Malformation& m : malformations())
    EXPECT_THAT(parse_error(m.file), AllOf(HasSubstr("some/model.safetensors"), HasSubstr(m.says))) << m.name;
}

// CPU seconds of reading a header, the least of three.
double seconds_to_read(const std::string& file) {
  double least = std::numeric_limits<double>::infinity();
  for (int i = 0; i < 3; ++i) {
    const clock_t begin = clock();
    parse_error(file);
    least = std::min(least, static_cast<double>(clock() - begin) / CLOCKS_PER_SEC);
  }
  return least;
}
std::string with_dimensions(int count) {
  return with_entry(R"({"dtype":"U8","shape":[)" + many_ones(count) + R"(],"data_offsets":[0,8]})");
}
std::string with_empty_tensors(int count) {
  std::string tensors;
  for (int i = 0; i < count; ++i)
    tensors += fmt::format(R"({}"t{}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})", i == 0 ? "" : ",", i);
  return file_of("{" + tensors + "}", 0);
}

// Once 40,000 dimensions took 21 s: the text of the whole shape was made for each of them. And the JSON library's
// callback looked through all tensors again at the end of each. Eight times as much takes 64 times as long that way.
TEST(SafetensorsHeader, IsReadInTimeThatGrowsWithItsSize) {
  EXPECT_THAT(parse_error(with_dimensions(1'000'000)), HasSubstr("1000000 dimensions"));
  EXPECT_EQ(parse_error(with_empty_tensors(64'000)), "");
  EXPECT_LT(seconds_to_read(with_dimensions(800'000)), 24 * seconds_to_read(with_dimensions(100'000)));
  EXPECT_LT(seconds_to_read(with_empty_tensors(64'000)), 24 * seconds_to_read(with_empty_tensors(8'000)));
}

TEST(SafetensorsHeader, KnowsEveryTypeOfTheFormat) {
  const std::map<std::string, int> bits = {
      {"BOOL", 8},    {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"U8", 8},          {"I8", 8},
      {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"I16", 16},    {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8},
      {"U16", 16},    {"F16", 16},    {"BF16", 16},   {"I32", 32},    {"U32", 32},        {"F32", 32},
      {"C64", 64},    {"F64", 64},    {"I64", 64},    {"U64", 64}};
  for (const auto& [type, size] : bits) {
    const std::string entry = fmt::format(R"({{"dtype":"{}","shape":[8],"data_offsets":[0,{}]}})", type, size);
    EXPECT_EQ(parse_error(with_entry(entry, static_cast<size_t>(size))), "") << type;
  }
}

TEST(SafetensorsHeader, EveryTruncationIsAnError) {
  const std::string file = with_entry(R"({"dtype":"F32","shape":[2],"data_offsets":[0,8]})");
  EXPECT_EQ(parse_error(file), "");
  for (size_t size = 0; size < file.size(); ++size) EXPECT_NE(parse_error(file.substr(0, size)), "") << size;
}

TEST(SafetensorsHeader, MessagesAboutHostileTextStayShort) {
  EXPECT_LT(parse_error(with_entry(R"({"dtype":")" + std::string(1'000'000, 'x') + "\"}")).size(), 1000u);
  EXPECT_LT(parse_error(file_of("{\"" + std::string(1'000'000, 'x'), 0)).size(), 1000u);
}

class SafetensorsFileTest : public testing::Test {
 protected:
  ScratchFolder folder_;
  std::string path_ = folder_.file("m.safetensors");
};

TEST_F(SafetensorsFileTest, RoundTrip) {
  const std::vector<int64_t> i64 = {-1, int64_t{1} << 40};
  const std::vector<float> f32 = {1.5f, -2.25f, 3e-40f, 4, 5, 6};
  const std::vector<uint16_t> bf16 = {0x3f80, 0xc000, 0x7f80};
  const std::vector<uint16_t> f16 = {0x3c00, 0x0001};
  const std::vector<int16_t> i16 = {-7};
  const std::vector<uint8_t> u8 = {9, 8, 7};
  SafetensorsWriter writer(path_,
                           {{"i64", DType::I64, {2}},
                            {"f32", DType::F32, {2, 3}},
                            {"bf16", DType::BF16, {1, 1, 3}},
                            {"f16", DType::F16, {2, 1, 1, 1}},
                            {"i16", DType::I16, {}},
                            {"five", DType::U16, {0, 1, 2, 3, 4}},
                            {"u8", DType::U8, {3}}},
                           {{"format", "pt"}, {"note", "\"λ\"\n"}});
  writer.write("i64", bytes_of(i64));
  writer.begin("f32");
  writer.append(bytes_of(f32).first(5));
  EXPECT_THROW(writer.checksum("f32"), Error);
  writer.append(bytes_of(f32).subspan(5));
  writer.write("bf16", bytes_of(bf16));
  writer.write("f16", bytes_of(f16));
  writer.write("i16", bytes_of(i16));
  writer.write("five", {});
  writer.write("u8", u8);
  EXPECT_FALSE(std::filesystem::exists(path_));
  writer.commit();
  EXPECT_EQ(writer.checksum("f32"), xxh3(bytes_of(f32)));
  EXPECT_EQ(writer.checksum("five"), xxh3({}));
  EXPECT_EQ(writer.checksum("u8"), xxh3(u8));
  EXPECT_EQ(writer.bytes_written(), std::filesystem::file_size(path_));

  const SafetensorsFile file(path_);
  EXPECT_EQ(file.entries().size(), 7u);
  EXPECT_EQ(file.metadata().at("note"), "\"λ\"\n");
  EXPECT_EQ(read_plainly(path_)[8], '{');
  EXPECT_EQ(file.tensor(file.at("i64")).as<int64_t>()[1], i64[1]);
  const Tensor t = file.tensor(file.at("f32"));
  EXPECT_EQ(t.shape, (Shape{2, 3}));
  EXPECT_EQ(std::memcmp(t.data, f32.data(), t.bytes()), 0);
  EXPECT_EQ(file.tensor(file.at("bf16")).as<Bf16>()[1].bits, 0xc000);
  EXPECT_EQ(file.tensor(file.at("f16")).dtype, DType::F16);
  EXPECT_EQ(file.tensor(file.at("i16")).shape, (Shape{1}));
  EXPECT_EQ(file.tensor(file.at("i16")).as<int16_t>()[0], -7);
  EXPECT_THAT(file.at("five").shape, ElementsAre(0, 1, 2, 3, 4));
  EXPECT_THROW(file.tensor(file.at("five")), Error);
  EXPECT_EQ(xxh3(file.bytes(file.at("u8"))), writer.checksum("u8"));

  std::array<float, 3> floats{};
  file.read_floats(file.at("f32"), 2, std::span(floats));
  EXPECT_THAT(floats, ElementsAre(3e-40f, 4, 5));
  file.read_floats(file.at("bf16"), 0, std::span(floats).first(2));
  EXPECT_THAT(floats, ElementsAre(1, -2, 5));
  file.read_floats(file.at("f16"), 0, std::span(floats).first(2));
  EXPECT_EQ(floats[1], 0x1p-24f);
  EXPECT_THROW(file.read_floats(file.at("f32"), 4, std::span(floats)), Error);
  EXPECT_THROW(file.read_floats(file.at("i64"), 0, std::span(floats).first(1)), Error);
}

TEST_F(SafetensorsFileTest, HeaderIsPaddedSoThatDataIsAligned) {
  for (const char* name : {"a", "ab", "abc", "abcd", "abcde", "abcdef", "abcdefg", "abcdefgh"}) {
    SafetensorsWriter writer(path_, {{name, DType::F32, {1}}});
    writer.write(name, std::array<uint8_t, 4>{});
    writer.commit();
    EXPECT_EQ((std::filesystem::file_size(path_) - 4) % 8, 0u) << name;
    EXPECT_NO_THROW(SafetensorsFile(path_).tensor(SafetensorsFile(path_).at(name)));
  }
}

TEST_F(SafetensorsFileTest, UnknownNamesSuggestOthers) {
  write_plainly(path_, file_of(R"({"model.norm.weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 4));
  const SafetensorsFile file(path_);
  EXPECT_EQ(file.find("model.norm"), nullptr);
  EXPECT_THAT(error_of([&] { file.at("model.nrom.weight"); }), AllOf(HasSubstr(path_), HasSubstr("model.norm.weight")));
}

TEST_F(SafetensorsFileTest, MovesKeepNamesAndBytes) {
  write_plainly(path_, file_of(R"({"w":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})", 2));
  SafetensorsFile first(path_);
  const SafetensorsFile second = std::move(first);
  EXPECT_THAT(second.bytes(second.at("w")), ElementsAre(0, 1));
}

TEST_F(SafetensorsFileTest, UnsupportedDtypesAreErrorsOnlyWhenUsed) {
  write_plainly(path_, file_of(R"({"w":{"dtype":"I8","shape":[2],"data_offsets":[0,2]}})", 2));
  const SafetensorsFile file(path_);
  EXPECT_EQ(file.bytes(file.at("w")).size(), 2u);
  EXPECT_THAT(error_of([&] { file.tensor(file.at("w")); }), AllOf(HasSubstr(path_), HasSubstr("I8")));
}

TEST_F(SafetensorsFileTest, UnalignedTensorsAreReadAsFloats) {
  const std::string header =
      R"({"w":{"dtype":"F32","shape":[1],"data_offsets":[1,5]},"u":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})";
  std::string content = file_of(header + std::string((8 - header.size() % 8) % 8, ' '), 5);
  const float value = 2.5f;
  std::memcpy(content.data() + content.size() - 4, &value, 4);
  write_plainly(path_, content);
  const SafetensorsFile file(path_);
  EXPECT_THAT(error_of([&] { file.tensor(file.at("w")); }), HasSubstr("not aligned"));
  float read = 0;
  file.read_floats(file.at("w"), 0, std::span(&read, 1));
  EXPECT_EQ(read, 2.5f);
}

TEST_F(SafetensorsFileTest, WriterRefusesDisorder) {
  const std::vector<TensorHeader> tensors = {{"a", DType::U8, {2}}, {"b", DType::U8, {2}}};
  const std::array<uint8_t, 3> bytes{};
  const auto with_writer = [&](auto action) {
    return error_of([&] {
      SafetensorsWriter writer(path_, tensors);
      action(writer);
    });
  };
  const auto two = std::span(bytes).first(2);
  EXPECT_THAT(with_writer([&](auto& w) { w.write("b", two); }), HasSubstr("'b' comes where 'a'"));
  EXPECT_THAT(with_writer([&](auto& w) { w.write("a", bytes); }), HasSubstr("3 bytes come for tensor 'a'"));
  EXPECT_THAT(with_writer([&](auto& w) { w.write("a", two.first(1)); }), HasSubstr("lacks 1 of 2"));
  EXPECT_THAT(with_writer([&](auto& w) { w.append(two); }), HasSubstr("before the first tensor"));
  EXPECT_THAT(with_writer([&](auto& w) { w.write("a", two), w.commit(); }), HasSubstr("'b' was declared"));
  EXPECT_THAT(with_writer([&](auto& w) { w.write("a", two), w.write("b", two), w.begin("c"); }),
              HasSubstr("after the last"));
  EXPECT_THAT(error_of([&] {
                SafetensorsWriter(path_, {{"a", DType::U8, {}}, {"a", DType::U8, {}}});
              }),
              HasSubstr("taken"));
  EXPECT_THAT(error_of([&] { SafetensorsWriter(path_, {{"__metadata__", DType::U8, {}}}); }), HasSubstr("taken"));
  EXPECT_THAT(error_of([&] { SafetensorsWriter(path_, {{"a", DType::U8, {-1}}}); }), HasSubstr("dimension -1"));
  EXPECT_THAT(error_of([&] { SafetensorsWriter(path_, {{"\xff", DType::U8, {}}}); }), HasSubstr("cannot be written"));
  EXPECT_EQ(folder_.count(), 0u);
}

}  // namespace
}  // namespace agoq
