#include "base/read_json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cmath>
#include <limits>

#include "base/error.h"
#include "base/error_of.h"
#include "base/finite.h"
#include "base/mapped_file.h"
#include "base/scratch_folder.h"

namespace agoq {
namespace {

using testing::AllOf;
using testing::HasSubstr;

std::string parse_error(const std::string& text, const JsonLimits& limits = {}) {
  return error_of([&] { parse_json(text, "some/file.json", limits); });
}

TEST(ReadJson, KeepsTheOrderOfKeys) {
  EXPECT_EQ(parse_json(R"( {"b": 1, "a": [2.5, null]} )", "x").dump(), R"({"b":1,"a":[2.5,null]})");
  EXPECT_EQ(parse_json<nlohmann::json>(R"({"b": 1, "a": 2})", "x").dump(), R"({"a":2,"b":1})");
}

TEST(ReadJson, RefusesWhatReadersUnderstandDifferently) {
  EXPECT_THAT(parse_error(""), AllOf(HasSubstr("some/file.json"), HasSubstr("not JSON")));
  EXPECT_THAT(parse_error("{} {}"), HasSubstr("not JSON"));
  EXPECT_THAT(parse_error("{} x"), HasSubstr("not JSON"));
  EXPECT_THAT(parse_error(std::string("{}\0", 3)), HasSubstr("zero byte"));
  EXPECT_THAT(parse_error(std::string("{}\0 {\"a\": 1}", 12)), HasSubstr("zero byte"));
  EXPECT_THAT(parse_error(R"({"a": {"b": 1, "c": 2, "b": 3}})"), HasSubstr("'b' appears twice"));
  EXPECT_EQ(parse_error(R"({"a": {"b": 1}, "c": {"b": 3}})"), "");
}

TEST(ReadJson, IsBounded) {
  const JsonLimits limits = {.bytes = 100, .depth = 3, .keys = 2};
  EXPECT_EQ(parse_error("[[[1]]]", limits), "");
  EXPECT_THAT(parse_error("[[[[1]]]]", limits), HasSubstr("nested more than 3 levels"));
  EXPECT_THAT(parse_error("[" + std::string(100, ' ') + "]", limits), HasSubstr("at most 100"));
  EXPECT_EQ(parse_error(R"({"a":1,"b":{"c":1,"d":1}})", limits), "");
  EXPECT_THAT(parse_error(R"({"a":1,"b":2,"c":3})", limits), HasSubstr("more than 2 keys"));
  EXPECT_LT(parse_error("{\"" + std::string(1'000'000, 'x')).size(), 400u);
}

TEST(ReadJson, OfRegularFilesOnly) {
  const ScratchFolder folder;
  write_plainly(folder.file("a.json"), "[1, 2]");
  EXPECT_EQ(read_json(folder.file("a.json")).dump(), "[1,2]");
  EXPECT_THAT(error_of([&] { read_text(folder.file("a.json"), 5); }), HasSubstr("at most 5"));
  // Nobody writes to it: who waits, waits for ever.
  ASSERT_EQ(mkfifo(folder.file("fifo").c_str(), 0600), 0);
  EXPECT_THAT(error_of([&] { read_json(folder.file("fifo")); }), HasSubstr("not a regular file"));
  EXPECT_THAT(error_of([] { MappedFile file("/dev/zero"); }), HasSubstr("not a regular file"));
  EXPECT_THAT(error_of([&] { read_json(folder.path()); }), HasSubstr("a directory"));
}

TEST(Finite, FindsTheFirstNumberThatIsNone) {
  std::vector<float> values(1000, -std::numeric_limits<float>::max());
  values[3] = 1e-45f;
  EXPECT_EQ(first_not_finite(values), values.size());
  EXPECT_EQ(first_not_finite({}), 0u);
  values[900] = std::numeric_limits<float>::infinity();
  EXPECT_EQ(first_not_finite(values), 900u);
  values[17] = std::nanf("");
  EXPECT_EQ(first_not_finite(values), 17u);
  values[0] = -std::numeric_limits<float>::infinity();
  EXPECT_EQ(first_not_finite(values), 0u);
}

}  // namespace
}  // namespace agoq
