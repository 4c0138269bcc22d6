#include "train/data/file_scan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <random>

#include "train/data_files.h"

namespace agoq::train {
namespace {

namespace fs = std::filesystem;

constexpr ScanMemory kAlways{.from_bytes = 0, .settled = std::chrono::seconds(0)};

class FileScanTest : public testing::Test {
 protected:
  FileScanTest() {
    setenv("XDG_CACHE_HOME", scratch_.file("cache").c_str(), 1);
    std::mt19937_64 random(5);
    for (int i = 0; i < 700'000; ++i) tokens_.push_back(1000 + static_cast<int64_t>(random() % 30'000));
    write();
  }
  ~FileScanTest() override { unsetenv("XDG_CACHE_HOME"); }
  void write() { write_plainly(path_, raw_tokens<uint16_t>(tokens_)); }
  FileScan scan() const { return scan_file(PositionedFile(path_), DType::U16); }
  FileScan remembered(const ScanMemory& memory = kAlways) const {
    return remembered_scan(PositionedFile(path_), DType::U16, memory);
  }
  // Makes a record say something else, so that one sees whether it is read.
  static void mark(const std::string& record) {
    nlohmann::ordered_json json = nlohmann::ordered_json::parse(read_plainly(record));
    json["hash"] = 1;
    write_plainly(record, json.dump());
  }
  std::string one_record_in(const std::string& folder) const {
    std::vector<std::string> found;
    for (const auto& entry : fs::directory_iterator(folder)) found.push_back(entry.path().string());
    EXPECT_EQ(found.size(), 1u);
    return found.empty() ? "" : found[0];
  }

  ScratchFolder scratch_;
  std::string path_ = scratch_.file("a.bin");
  std::string record_ = path_ + ".agoq-scan";
  std::vector<int64_t> tokens_;
};

TEST_F(FileScanTest, FindsTheRangeOfEveryType) {
  const auto range = [&](const std::string& bytes, DType dtype) {
    write_plainly(path_, bytes);
    const FileScan found = scan_file(PositionedFile(path_), dtype);
    return std::pair(found.smallest, found.largest);
  };
  const auto [low, high] = std::minmax_element(tokens_.begin(), tokens_.end());
  EXPECT_EQ(range(raw_tokens<uint16_t>(tokens_), DType::U16), std::pair(*low, *high));
  tokens_[600'000] = -3;
  tokens_[5] = 70'000;
  EXPECT_EQ(range(raw_tokens<int32_t>(tokens_), DType::I32), std::pair(int64_t{-3}, int64_t{70'000}));
  tokens_[699'999] = int64_t{1} << 50;
  EXPECT_EQ(range(raw_tokens<int64_t>(tokens_), DType::I64), std::pair(int64_t{-3}, int64_t{1} << 50));
  EXPECT_EQ(range("\x02\xff\x03", DType::U8), std::pair(int64_t{2}, int64_t{255}));
  EXPECT_EQ(range("", DType::U16), std::pair(int64_t{0}, int64_t{0}));
  EXPECT_EQ(range("x", DType::U16), std::pair(int64_t{0}, int64_t{0})) << "no whole number";
}

TEST_F(FileScanTest, EveryByteCounts) {
  const FileScan before = scan();
  EXPECT_EQ(scan(), before);
  for (const size_t place : {0u, 524'287u, 524'288u, 699'999u}) {
    tokens_[place] ^= 1;
    write();
    EXPECT_NE(scan().hash, before.hash) << place;
    tokens_[place] ^= 1;
  }
  std::swap_ranges(tokens_.begin(), tokens_.begin() + 1000, tokens_.begin() + 100'000);
  write();
  EXPECT_NE(scan().hash, before.hash);
}

TEST_F(FileScanTest, IsRememberedAsLongAsTheFileStays) {
  const FileScan found = scan();
  EXPECT_EQ(remembered(), found);
  mark(record_);
  EXPECT_EQ(remembered().hash, 1u);
  EXPECT_EQ(remembered().largest, found.largest);
  const auto time = fs::last_write_time(path_);
  write();  // the same bytes, at the same time as before
  fs::last_write_time(path_, time);
  EXPECT_EQ(remembered(), found);
  mark(record_);
  fs::copy_file(path_, scratch_.file("copy"));
  fs::last_write_time(scratch_.file("copy"), time);
  fs::rename(scratch_.file("copy"), path_);
  EXPECT_EQ(remembered(), found) << "another file of this name";
}

TEST_F(FileScanTest, OnlyWhatIsWorthItAndSettledIsRemembered) {
  remembered({.from_bytes = 1'400'001, .settled = std::chrono::seconds(0)});
  EXPECT_FALSE(fs::exists(record_)) << "too small";
  remembered({.from_bytes = 1'400'000, .settled = std::chrono::hours(1)});
  EXPECT_FALSE(fs::exists(record_)) << "just written";
  remembered({.from_bytes = 1'400'000, .settled = std::chrono::seconds(0)});
  EXPECT_TRUE(fs::exists(record_));
  EXPECT_FALSE(fs::exists(scratch_.file("cache")));
}

// Nothing can be written where a folder stands in the way.
TEST_F(FileScanTest, IsRememberedInTheCacheWhereTheFolderCannotBeWritten) {
  fs::create_directories(record_ + "/full");
  const FileScan found = remembered();
  mark(one_record_in(scratch_.file("cache") + "/agoq"));
  EXPECT_EQ(remembered().hash, 1u);
  fs::remove_all(scratch_.file("cache"));
  write_plainly(scratch_.file("cache"), "");
  EXPECT_EQ(remembered(), found) << "nowhere, then";
}

TEST_F(FileScanTest, ADamagedRecordIsNone) {
  const FileScan found = remembered();
  const std::string whole = read_plainly(record_);
  for (const std::string& damaged : {std::string(), whole.substr(0, whole.size() / 2), std::string("[]"),
                                     std::string("null"), std::string(1 << 20, '[')}) {
    write_plainly(record_, damaged);
    EXPECT_EQ(remembered(), found);
  }
  EXPECT_EQ(read_plainly(record_), whole) << "and it is written again";
}

}  // namespace
}  // namespace agoq::train
