#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <csignal>
#include <vector>

#include "base/atomic_file.h"
#include "base/checksum.h"
#include "base/error.h"
#include "base/error_of.h"
#include "base/mapped_file.h"
#include "base/scratch_folder.h"

namespace agoq {
namespace {

using testing::AllOf;
using testing::HasSubstr;

std::string text_of(const MappedFile& file) {
  return {file.bytes().begin(), file.bytes().end()};
}

TEST(MappedFile, ShowsTheContent) {
  const ScratchFolder folder;
  write_plainly(folder.file("a"), "hello");
  MappedFile file(folder.file("a"));
  EXPECT_EQ(text_of(file), "hello");
  EXPECT_EQ(file.path(), folder.file("a"));
  MappedFile moved = std::move(file);
  EXPECT_EQ(text_of(moved), "hello");
  write_plainly(folder.file("b"), "other");
  moved = MappedFile(folder.file("b"));
  EXPECT_EQ(text_of(moved), "other");
}

TEST(MappedFile, EmptyFile) {
  const ScratchFolder folder;
  write_plainly(folder.file("empty"), "");
  EXPECT_EQ(MappedFile(folder.file("empty")).size(), 0u);
}

TEST(MappedFile, ErrorsNameThePath) {
  const ScratchFolder folder;
  EXPECT_THAT(error_of([&] { MappedFile(folder.file("none")); }),
              AllOf(HasSubstr(folder.file("none")), HasSubstr("No such file")));
  EXPECT_THAT(error_of([&] { MappedFile(folder.path()); }), AllOf(HasSubstr(folder.path()), HasSubstr("directory")));
  EXPECT_THAT(error_of([] { MappedFile("/dev/null"); }), HasSubstr("not a regular file"));
}

TEST(AtomicFile, AppearsOnlyOnCommit) {
  const ScratchFolder folder;
  const std::string path = folder.file("a");
  AtomicFile file(path);
  file.write("one ");
  file.write("two");
  EXPECT_FALSE(std::filesystem::exists(path));
  EXPECT_EQ(file.written(), 7u);
  file.commit();
  EXPECT_EQ(read_plainly(path), "one two");
  EXPECT_EQ(folder.count(), 1u);
  EXPECT_THROW(file.write("x"), Error);
  EXPECT_THROW(file.commit(), Error);
}

TEST(AtomicFile, WithoutCommitTheOldContentStays) {
  const ScratchFolder folder;
  const std::string path = folder.file("a");
  write_file_atomically(path, "old");
  {
    AtomicFile file(path);
    file.write("new");
    EXPECT_EQ(folder.count(), 2u);
    const AtomicFile moved = std::move(file);
    EXPECT_EQ(folder.count(), 2u);
  }
  EXPECT_EQ(read_plainly(path), "old");
  EXPECT_EQ(folder.count(), 1u);
  write_file_atomically(path, "new");
  EXPECT_EQ(read_plainly(path), "new");
}

TEST(AtomicFile, ALeftoverOfAKilledProcessIsOverwritten) {
  const ScratchFolder folder;
  const std::string path = folder.file("a");
  write_plainly(path + ".tmp-" + std::to_string(getpid()), "a long leftover");
  write_file_atomically(path, "new");
  EXPECT_EQ(read_plainly(path), "new");
  EXPECT_EQ(folder.count(), 1u);
}

TEST(AtomicFile, ErrorsNameThePathAndLeaveNothing) {
  const ScratchFolder folder;
  EXPECT_THAT(error_of([&] { AtomicFile(folder.file("no/such")); }),
              AllOf(HasSubstr(folder.file("no/such")), HasSubstr("does not exist")));
  std::filesystem::create_directory(folder.file("taken"));
  EXPECT_THAT(error_of([&] { write_file_atomically(folder.file("taken"), "x"); }), HasSubstr(folder.file("taken")));
  EXPECT_EQ(folder.count(), 1u);
}

// The limit on a file's size stands in for a full disk: write() fails half way in the same manner.
TEST(AtomicFile, AFailedWriteNamesTheBytesWritten) {
  const ScratchFolder folder;
  const std::string path = folder.file("a");
  write_file_atomically(path, "old");
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit small{4096, before.rlim_max};
  setrlimit(RLIMIT_FSIZE, &small);
  const std::string error = error_of([&] { write_file_atomically(path, std::string(10'000, 'x')); });
  setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, old_handler);
  EXPECT_THAT(error, AllOf(HasSubstr(path), HasSubstr("after 4096 bytes")));
  EXPECT_EQ(read_plainly(path), "old");
  EXPECT_EQ(folder.count(), 1u);
}

TEST(AtomicFile, AFolderWithoutPermission) {
  if (geteuid() == 0) GTEST_SKIP() << "root may write anywhere";
  const ScratchFolder folder;
  chmod(folder.path().c_str(), 0500);
  const std::string error = error_of([&] { AtomicFile(folder.file("a")); });
  chmod(folder.path().c_str(), 0700);
  EXPECT_THAT(error, AllOf(HasSubstr(folder.file("a")), HasSubstr("may write")));
}

TEST(RenameDirectory, MovesWholeFolders) {
  const ScratchFolder folder;
  std::filesystem::create_directory(folder.file("aside"));
  write_plainly(folder.file("aside/a"), "content");
  rename_directory_durably(folder.file("aside"), folder.file("final/"));
  EXPECT_EQ(read_plainly(folder.file("final/a")), "content");
  EXPECT_EQ(folder.count(), 1u);
  EXPECT_THAT(error_of([&] { rename_directory_durably(folder.file("none"), folder.file("x")); }),
              HasSubstr(folder.file("none")));
  std::filesystem::create_directory(folder.file("other"));
  EXPECT_THAT(error_of([&] { rename_directory_durably(folder.file("other"), folder.file("final")); }),
              HasSubstr("final"));
}

TEST(Checksum, PublishedValueAndPieces) {
  EXPECT_EQ(xxh3({}), 0x2d06800538d394c2u);  // XXH3_64bits of nothing, seed 0, from the specification
  std::vector<uint8_t> bytes(100'000);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(i * i >> 3);
  Xxh3 hash;
  hash.add(std::span(bytes).first(777));
  hash.add({});
  hash.add(std::span(bytes).subspan(777));
  EXPECT_EQ(hash.value(), xxh3(bytes));
  bytes[50'000] ^= 1;
  EXPECT_NE(hash.value(), xxh3(bytes));
}

}  // namespace
}  // namespace agoq
