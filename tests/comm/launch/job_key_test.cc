#include "comm/launch/job_key.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <map>

#include "base/error.h"
#include "base/error_of.h"
#include "comm/processes.h"

namespace agoq::comm {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;
using Variables = std::map<std::string, std::string>;

constexpr const char* kSecret = "a secret of a test";

class JobKeyTest : public testing::Test {
 protected:
  JobKeyTest() {
    std::string name = fs::temp_directory_path() / "agoq_job_key_XXXXXX";
    folder_ = ::mkdtemp(name.data());
  }
  ~JobKeyTest() override {
    fs::permissions(folder_, fs::perms::owner_all);
    fs::remove_all(folder_);
  }
  std::string home() const { return folder_; }
  std::string file() const { return folder_ + "/.config/agoq/job-secret"; }
  std::string temporary_file() const { return fmt::format("{}/agoq-{}/job-secret", folder_, ::geteuid()); }
  void write(const std::string& text, mode_t mode) const {
    fs::create_directories(fs::path(file()).parent_path());
    std::ofstream(file()) << text;
    ::chmod(file().c_str(), mode);
  }

  std::string folder_;
};

// Of a rank of two hosts.
Launch launch(const std::string& job = "7.0") {
  Launch launch = launch_of(1, 4, 20000);
  launch.master_addr = "node1";
  launch.job = job;
  return launch;
}

Launch on_one_host() {
  Launch here = launch();
  here.master_addr = "localhost";
  return here;
}

JobKey key_in(const Variables& variables, const Launch& launch, bool open = false,
              const std::string& temporary = "/proc/no-temporary") {
  const auto lookup = [&](const char* name) -> const char* {
    const auto at = variables.find(name);
    return at == variables.end() ? nullptr : at->second.c_str();
  };
  return find_job_key(launch, open, lookup, temporary);
}

std::string error_in(const Variables& variables, const Launch& launch,
                     const std::string& temporary = "/proc/no-temporary") {
  return error_of([&] { key_in(variables, launch, false, temporary); });
}

TEST_F(JobKeyTest, OfAVariableAndTheJob) {
  const Variables variables = {{"AGOQ_JOB_SECRET", kSecret}, {"HOME", home()}};
  const JobKey key = key_in(variables, launch());
  EXPECT_EQ(key.source, "AGOQ_JOB_SECRET");
  EXPECT_EQ(hex(key.bytes), hex(keyed_hash(kSecret, "AGOQ job 7.0")));
  EXPECT_EQ(hex(key_in(variables, launch(), true).bytes), hex(key.bytes)) << "--rendezvous-open takes nothing away";
  EXPECT_NE(hex(key_in(variables, launch("8.0")).bytes), hex(key.bytes));
  EXPECT_FALSE(fs::exists(home() + "/.config"));
  EXPECT_THAT(error_in({{"AGOQ_JOB_SECRET", "1234"}}, launch()), HasSubstr("has 4 characters; it needs at least 16"));
}

TEST_F(JobKeyTest, AFileOfTheUserIsMadeOnce) {
  const JobKey key = key_in({{"HOME", home()}}, launch());
  EXPECT_EQ(key.source, file());
  EXPECT_EQ(hex(key_in({{"HOME", home()}}, launch()).bytes), hex(key.bytes));
  EXPECT_NE(hex(key_in({{"HOME", home()}}, launch("8.0")).bytes), hex(key.bytes));
  EXPECT_EQ(key_in({{"HOME", "/nowhere"}, {"XDG_CONFIG_HOME", home() + "/xdg"}}, launch()).source,
            home() + "/xdg/agoq/job-secret");
  struct stat status {};
  ASSERT_EQ(::stat(file().c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 07777, 0600U);
  EXPECT_EQ(status.st_nlink, 1U) << "what was written aside is gone";
  EXPECT_EQ(status.st_size, 65) << "256 bits in hexadecimal digits";
}

TEST_F(JobKeyTest, RanksThatMakeItAtTheSameTimeHaveTheSame) {
  const std::string home_folder = home();
  Processes processes(12, [=](int) { return hex(key_in({{"HOME", home_folder}}, launch()).bytes); });
  EXPECT_THAT(processes.texts(), testing::Each(hex(key_in({{"HOME", home()}}, launch()).bytes)));
}

TEST_F(JobKeyTest, AFileThatOthersCanReadIsRefused) {
  write(kSecret, 0640);
  EXPECT_THAT(error_in({{"HOME", home()}}, launch()), AllOf(HasSubstr(file()), HasSubstr("chmod go=")));
  write(kSecret, 0600);
  EXPECT_EQ(hex(key_in({{"HOME", home()}}, launch()).bytes), hex(keyed_hash(kSecret, "AGOQ job 7.0")));
  write("short", 0600);
  EXPECT_THAT(error_in({{"HOME", home()}}, launch()), HasSubstr("holds 5 characters"));
  fs::remove(file());
  fs::create_symlink("/etc/hostname", file());
  EXPECT_THAT(error_in({{"HOME", home()}}, launch()), HasSubstr("cannot read the job's secret"));
  fs::remove(file());
  ::mkfifo(file().c_str(), 0600);
  EXPECT_THAT(error_in({{"HOME", home()}}, launch()), HasSubstr("is not a file")) << "and nobody waits for it";
  fs::remove(file());
  ::chmod((home() + "/.config/agoq").c_str(), 0777);
  EXPECT_THAT(error_in({{"HOME", home()}}, launch()), HasSubstr("open to other users"));
}

TEST_F(JobKeyTest, SeveralHostsWithoutAnyAreRefusedWithTheLineToAdd) {
  const auto refused = AllOf(HasSubstr("export AGOQ_JOB_SECRET=$(head -c 24 /dev/urandom | base64)"),
                             HasSubstr("mpirun -x AGOQ_JOB_SECRET"), HasSubstr("--rendezvous-open"));
  EXPECT_THAT(error_in({}, launch()), AllOf(HasSubstr("AGOQ_JOB_SECRET is not set"), refused));
  EXPECT_THAT(error_in({{"HOME", "/proc/no-home"}}, launch()), AllOf(HasSubstr("/proc/no-home/.config/agoq"), refused));
  EXPECT_EQ(key_in({}, launch(), true).source, kNoSecret);
}

TEST_F(JobKeyTest, OneHostNeedsNoHome) {
  Launch here = on_one_host();
  const JobKey key = key_in({{"HOME", "/proc/no-home"}}, here, false, folder_);
  EXPECT_EQ(key.source, temporary_file());
  EXPECT_EQ(hex(key_in({}, here, false, folder_).bytes), hex(key.bytes));
  EXPECT_THAT(error_in({}, here), AllOf(HasSubstr("HOME is not set"), HasSubstr("/proc/no-temporary/agoq-")));
  here.world = 1;
  EXPECT_EQ(key_in({}, here).source, kNoSecret) << "one process meets nobody";
}

// As NFS gives files to nobody, and vfat opens them to all: no `chmod` helps there.
TEST_F(JobKeyTest, OneHostNeedsNoHomeThatKeepsModes) {
  write(kSecret, 0640);
  const Variables variables = {{"HOME", home()}};
  EXPECT_EQ(key_in(variables, on_one_host(), false, folder_).source, temporary_file());
  EXPECT_THAT(error_in(variables, launch(), folder_), HasSubstr("chmod go=")) << "several hosts share no such folder";
  ::chmod(temporary_file().c_str(), 0640);
  EXPECT_THAT(error_in(variables, on_one_host(), folder_), AllOf(HasSubstr(file()), HasSubstr(temporary_file())));
}

}  // namespace
}  // namespace agoq::comm
