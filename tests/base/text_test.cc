#include "base/text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "base/error_of.h"

namespace agoq {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

TEST(Text, HumanBytes) {
  EXPECT_EQ(human_bytes(0), "0 B");
  EXPECT_EQ(human_bytes(1023), "1023 B");
  EXPECT_EQ(human_bytes(1024), "1.00 KiB");
  EXPECT_EQ(human_bytes(3ull << 29), "1.50 GiB");
  EXPECT_EQ(human_bytes((1ull << 20) - 1), "1.00 MiB");
  EXPECT_EQ(human_bytes(~0ull), "16.00 EiB");
}

TEST(Text, HumanCount) {
  EXPECT_EQ(human_count(950), "950");
  EXPECT_EQ(human_count(1000), "1.00K");
  EXPECT_EQ(human_count(12'345), "12.3K");
  EXPECT_EQ(human_count(123'999'000), "124M");
  EXPECT_EQ(human_count(8'030'261'248), "8.03B");
  EXPECT_EQ(human_count(9'999), "10.0K");
  EXPECT_EQ(human_count(999'999), "1.00M");
}

TEST(Text, ParseBytes) {
  EXPECT_EQ(parse_bytes("4096"), 4096u);
  EXPECT_EQ(parse_bytes("80GiB"), 80ull << 30);
  EXPECT_EQ(parse_bytes("24GB"), 24'000'000'000u);
  EXPECT_EQ(parse_bytes(" 1.5 GiB "), 3ull << 29);
  EXPECT_EQ(parse_bytes("512 kib"), 512u << 10);
  EXPECT_EQ(parse_bytes("7b"), 7u);
  EXPECT_EQ(parse_bytes("0"), 0u);
  EXPECT_EQ(parse_bytes("18446744073709551615"), ~0ull);
}

TEST(Text, ParseBytesRefusesTheRest) {
  for (const char* text : {"", " ", "GiB", "-1", "1.5.2GiB", "1GiBs", "1 2", "nan", "inf", "1e9", "80G", ".",
                           "18446744073709551616", "99999999TiB", "1,5GiB", "0x10"})
    EXPECT_THROW(parse_bytes(text), Error) << text;
  EXPECT_THAT(error_of([] { parse_bytes("80 gigs"); }), HasSubstr("'80 gigs'"));
}

TEST(Text, Nearest) {
  const std::vector<std::string> names = {"seq-length", "micro-batch-size", "global-batch-size", "lr"};
  EXPECT_THAT(nearest("seq-lenght", names), ElementsAre("seq-length"));
  EXPECT_THAT(nearest("micro-batchsize", names, 2), ElementsAre("micro-batch-size"));
  EXPECT_THAT(nearest("Seq-Length", names), ElementsAre("seq-length"));
  EXPECT_THAT(nearest("temperature", names), IsEmpty());
  EXPECT_THAT(nearest("", names), IsEmpty());
  EXPECT_EQ(did_you_mean("seq-legnth", names), "; did you mean 'seq-length'?");
  EXPECT_EQ(did_you_mean("temperature", names), "");
}

TEST(Text, SplitJoinTrim) {
  EXPECT_THAT(split("a,,b", ','), ElementsAre("a", "", "b"));
  EXPECT_THAT(split("a,", ','), ElementsAre("a", ""));
  EXPECT_THAT(split("", ','), IsEmpty());
  EXPECT_EQ(join(split("a,,b", ','), ", "), "a, , b");
  EXPECT_EQ(join({}, ", "), "");
  EXPECT_EQ(trim(" \t a b\n"), "a b");
  EXPECT_EQ(trim("  "), "");
}

TEST(Text, Utf8IsToldFromOtherBytes) {
  for (const char* text :
       {"", "plain", "\xc3\xa9", "\xe6\x97\xa5", "\xf0\x9f\x99\x82", "\xed\x9f\xbf", "\xf4\x8f\xbf\xbf"})
    EXPECT_TRUE(is_utf8(text)) << text;
  // A stray byte, a character cut short, one in too many bytes, a surrogate, and one beyond U+10FFFF.
  for (const char* bytes : {"\xff", "a\xe9", "\xe6\x97", "\xc0\xaf", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\x80"})
    EXPECT_FALSE(is_utf8(bytes));
}

TEST(Text, PrintableHasNothingThatSteersATerminal) {
  EXPECT_EQ(printable("caf\xc3\xa9\tis\nfine"), "caf\xc3\xa9\tis\nfine");
  EXPECT_EQ(printable("\x1b]0;title\x07\r\x7f"), "\\x1b]0;title\\x07\\x0d\\x7f");
  EXPECT_EQ(printable("\xc2\x9b"
                      "2J"),
            "\\xc2\\x9b"
            "2J")
      << "U+009B is ESC [";
  EXPECT_EQ(printable("\xff\xe6\x97"), "\\xff\\xe6\\x97");
  EXPECT_EQ(printable(std::string_view("\0", 1)), "\\x00");
  EXPECT_EQ(printable_line("a\nb\tc"), "a\\x0ab\\x09c");
  EXPECT_EQ(control_byte("plain \xc3\xa9"), std::nullopt);
  EXPECT_EQ(control_byte("a\nb"), '\n');
}

TEST(Table, AlignsForATerminal) {
  Table table({"owner", "bytes", "note"});
  table.add_row({"weights", "1.50 GiB", "λ|x"});
  table.add_row({"gradients", "12 B"});
  table.add_rule();
  table.add_row({"all", "1.51 GiB", ""});
  EXPECT_EQ(table.text(),
            "owner         bytes  note\n"
            "-------------------------\n"
            "weights    1.50 GiB  λ|x\n"
            "gradients      12 B\n"
            "-------------------------\n"
            "all        1.51 GiB\n");
}

TEST(Table, RendersMarkdown) {
  Table table({"a", "n"});
  table.add_row({"λ|x", "-1.5"});
  table.add_rule();
  table.add_row({"y", "10"});
  EXPECT_EQ(table.markdown(),
            "| a    |    n |\n"
            "| ---- | ---: |\n"
            "| λ\\|x | -1.5 |\n"
            "| y    |   10 |\n");
}

TEST(Table, RefusesRowsThatDoNotFit) {
  Table table({"a"});
  EXPECT_THROW(table.add_row({"1", "2"}), Error);
  EXPECT_THROW(Table({}), Error);
}

}  // namespace
}  // namespace agoq
