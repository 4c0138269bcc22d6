#include "base/positioned_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <filesystem>
#include <vector>

#include "base/error.h"
#include "base/error_of.h"
#include "base/scratch_folder.h"

namespace agoq {
namespace {

using ::testing::HasSubstr;

std::string error_at(const std::string& path) {
  return error_of([&] { const PositionedFile file(path); });
}

TEST(PositionedFile, ReadsAnyPlace) {
  const ScratchFolder scratch;
  write_plainly(scratch.file("a"), "0123456789");
  const PositionedFile file(scratch.file("a"));
  EXPECT_EQ(file.size(), 10u);
  std::vector<uint8_t> out(3);
  file.read(7, out);
  EXPECT_EQ(std::string(out.begin(), out.end()), "789");
  file.read(0, out);
  EXPECT_EQ(std::string(out.begin(), out.end()), "012");
  EXPECT_THROW(file.read(8, out), Error);
}

TEST(PositionedFile, RefusesWhatIsNoFileWithoutWaiting) {
  const ScratchFolder scratch;
  ASSERT_EQ(mkfifo(scratch.file("fifo").c_str(), 0600), 0);
  EXPECT_THAT(error_at(scratch.file("fifo")), HasSubstr("fifo: it is not a regular file"));
  EXPECT_THAT(error_at(scratch.file("")), HasSubstr("directory"));
  EXPECT_THAT(error_at(scratch.file("none")), HasSubstr("cannot open"));
}

TEST(PositionedFile, TheStampChangesWithTheFileEvenWhereItsTimeIsSetBack) {
  const ScratchFolder scratch;
  const std::string path = scratch.file("a");
  write_plainly(path, "1234");
  const FileStamp before = PositionedFile(path).stamp();
  EXPECT_EQ(PositionedFile(path).stamp(), before);
  const auto time = std::filesystem::last_write_time(path);
  do {
    write_plainly(path, "4321");
    std::filesystem::last_write_time(path, time);
  } while (PositionedFile(path).stamp().ctime_ns == before.ctime_ns);  // within one tick of the file system's clock
  EXPECT_EQ(PositionedFile(path).stamp().mtime_ns, before.mtime_ns);
  EXPECT_NE(PositionedFile(path).stamp(), before);
}

TEST(PositionedFile, OpensMoreFilesThanAShellAllows) {
  const ScratchFolder scratch;
  write_plainly(scratch.file("a"), "1");
  rlimit limit{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
  const rlimit low{64, limit.rlim_max};
  if (limit.rlim_max < 256) GTEST_SKIP() << "this system allows too few open files";
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &low), 0);
  std::vector<PositionedFile> files;
  for (int i = 0; i < 128; ++i) files.emplace_back(scratch.file("a"));
  EXPECT_EQ(files.size(), 128u);
  files.clear();
  setrlimit(RLIMIT_NOFILE, &limit);
}

}  // namespace
}  // namespace agoq
