// What becomes of a run of several processes when something goes wrong: it ends, everywhere, within seconds, says
// why, and the same command goes on as if nothing had been.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>

#include "cli/ranks.h"
#include "train/data_files.h"

namespace agoq {
namespace {

namespace fs = std::filesystem;
using std::chrono::seconds;
using test::operator+;
using test::Apart;
using test::kPp2;
using test::kTp2;
using test::kTp2Dp2;
using test::losses_of;
using test::metrics_of;
using test::Ran;
using test::Ranks;
using test::run_agoq;
using test::TinyMeshRun;
using test::Words;
using testing::AllOf;
using testing::HasSubstr;

constexpr seconds kSoon{30};  // on a busy machine; an idle one takes a few
constexpr seconds kPatience{3};
const Words kImpatient = {"--distributed-timeout-minutes", "0.05"};
constexpr int kSteps = 16;  // enough to be disturbed before they are done

// All but `gone` end by themselves, as failed, and say this in a line.
void expect_all_fail(const std::vector<Ran>& all, const std::string& why, int gone = -1) {
  for (int rank = 0; rank < static_cast<int>(all.size()); ++rank) {
    if (rank == gone) continue;
    const Ran& ran = all[static_cast<size_t>(rank)];
    EXPECT_EQ(ran.status, 1) << "rank " << rank << ": " << ran.err;
    EXPECT_THAT(ran.err, HasSubstr(why)) << "rank " << rank;
    EXPECT_THAT(ran.err, HasSubstr("agoq: error: ")) << "rank " << rank;
    if (rank == 0) continue;
    EXPECT_THAT(ran.err, HasSubstr("[rank " + std::to_string(rank) + "]"));
    EXPECT_EQ(std::count(ran.err.begin(), ran.err.end(), '\n'), 1) << ran.err;
  }
}

// Before the ranks have met, nobody knows of a dead one: the others wait for it, or have just heard of its end.
void expect_none_succeeds(const std::vector<Ran>& all, int victim) {
  for (int rank = 0; rank < static_cast<int>(all.size()); ++rank) {
    const Ran& ran = all[static_cast<size_t>(rank)];
    EXPECT_TRUE(ran.status == 128 + SIGKILL || (ran.status == 1 && rank != victim)) << rank << ": " << ran.err;
    EXPECT_THAT(ran.out, testing::Not(HasSubstr(fmt::format("{0}/{0} | loss", kSteps))));
  }
}

// Kills one rank of a run at a moment drawn from the seed. False: the run had ended by then.
bool kill_at_random(const TinyMeshRun& tiny, const Words& arguments, const std::string& save, int seed) {
  std::mt19937 random(static_cast<uint32_t>(seed));
  const int victim = std::uniform_int_distribution(0, 3)(random);
  const int lines = std::uniform_int_distribution(0, kSteps - 3)(random);
  SCOPED_TRACE(fmt::format("seed {}: rank {} killed after {} steps", seed, victim, lines));
  Ranks ranks(4, arguments);
  EXPECT_TRUE(lines == 0 || ranks.until_lines(tiny.metrics(save), lines));
  std::this_thread::sleep_for(std::chrono::milliseconds(std::uniform_int_distribution(0, lines ? 60 : 300)(random)));
  ranks.signal(victim, SIGKILL);
  const std::vector<Ran> all = ranks.wait({}, lines > 0 ? kSoon : kPatience);
  const auto succeeded = [](const Ran& ran) { return ran.status == 0; };
  const auto others = std::count_if(all.begin(), all.end(), succeeded) - succeeded(all[static_cast<size_t>(victim)]);
  if (others == 3) return false;
  EXPECT_EQ(all[static_cast<size_t>(victim)].status, 128 + SIGKILL);
  if (lines == 0)
    expect_none_succeeds(all, victim);
  else
    expect_all_fail(all, fmt::format("rank {} is gone", victim), victim);
  return true;
}

// Four processes, and what the run is if nothing happens to it.
class FaultyMesh : public testing::Test {
 public:
  static void SetUpTestSuite() {
    tiny_ = new TinyMeshRun;
    const std::vector<Ran> all = Ranks(4, arguments("whole")).wait();
    for (const Ran& ran : all) ASSERT_EQ(ran.status, 0) << ran.err;
  }
  static void TearDownTestSuite() { delete tiny_; }

 protected:
  static Words arguments(const std::string& save, const Words& more = {}) {
    return tiny_->arguments(kSteps, save, kTp2Dp2.settings + Words{"--save-interval", "1"} + more);
  }
  static void expect_goes_on(const std::string& save, const Words& more = {}, const std::string& whole = "whole") {
    const std::vector<Ran> all = Ranks(4, arguments(save, more)).wait();
    for (const Ran& ran : all) ASSERT_EQ(ran.status, 0) << ran.err;
    EXPECT_EQ(metrics_of(tiny_->file(save)), metrics_of(tiny_->file(whole))) << save;
  }
  // A kill that comes too late is repeated at another moment.
  static void expect_killed_goes_on(int seed, const Words& more = {}, const std::string& whole = "whole") {
    constexpr int kTries = 5, kFarApart = 1000;
    for (int attempt = 0; attempt < kTries; ++attempt) {
      const std::string save = fmt::format("killed{}.{}", seed, attempt);
      if (kill_at_random(*tiny_, arguments(save, more), save, seed + attempt * kFarApart))
        return expect_goes_on(save, more, whole);
    }
    FAIL() << "the run of seed " << seed << " had ended before each of " << kTries << " kills";
  }
  static inline TinyMeshRun* tiny_ = nullptr;
};

TEST_F(FaultyMesh, ASignalToOneStopsAllSaved) {
  for (const int number : {SIGTERM, SIGUSR1}) {
    const std::string save = "signal" + std::to_string(number);
    Ranks ranks(4, arguments(save));
    ASSERT_TRUE(ranks.until_lines(tiny_->metrics(save), 2));
    ranks.signal(2, number);
    const std::vector<Ran> all = ranks.wait();
    for (const Ran& ran : all) EXPECT_EQ(ran.status, 0) << ran.err;
    EXPECT_THAT(all[0].out, HasSubstr("the same command again continues it"));
    EXPECT_LT(losses_of(tiny_->file(save)).size(), kSteps);
    expect_goes_on(save);
  }
}

// As a launcher does that passes on the Ctrl-C that the terminal has sent to everyone.
TEST_F(FaultyMesh, TheSameSignalTwiceAtOnceIsOne) {
  Ranks ranks(4, arguments("twice"));
  ASSERT_TRUE(ranks.until_lines(tiny_->metrics("twice"), 2));
  for (int rank = 0; rank < 4; ++rank) ranks.signal(rank, SIGINT);
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  for (int rank = 0; rank < 4; ++rank) ranks.signal(rank, SIGTERM);
  for (const Ran& ran : ranks.wait()) EXPECT_EQ(ran.status, 0) << ran.err;
  expect_goes_on("twice");
}

TEST_F(FaultyMesh, AKilledOneEndsAllAndTheRunGoesOn) {
  for (const int seed : {1, 2, 3}) expect_killed_goes_on(seed);
}

// Ranks that wait for others' weights and gradients in every layer learn of it as soon, and checkpoints of slices are
// whole.
TEST_F(FaultyMesh, AKilledOneEndsAllUnderEveryShardingStrategy) {
  int seed = 20;
  for (const char* strategy : {"optim_grads", "optim_grads_params"}) {
    const Words more = {"--data-parallel-sharding-strategy", strategy};
    for (const Ran& ran : Ranks(4, arguments(strategy, more)).wait()) ASSERT_EQ(ran.status, 0) << ran.err;
    for (int i = 0; i < 2; ++i) expect_killed_goes_on(++seed, more, strategy);
  }
}

// At any moment of its life: also before the first step, and while a checkpoint is written.
TEST_F(FaultyMesh, KilledTwentyTimesTheRunGoesOn) {
  if (std::getenv("AGOQ_LONG_TESTS") == nullptr) GTEST_SKIP() << "takes a minute; AGOQ_LONG_TESTS=1 runs it";
  for (int seed = 100; seed < 120; ++seed) expect_killed_goes_on(seed);
}

TEST_F(FaultyMesh, AStoppedOneEndsAllAndTheRunGoesOn) {
  Ranks ranks(4, arguments("stopped", kImpatient));
  ASSERT_TRUE(ranks.until_lines(tiny_->metrics("stopped"), 2));
  ranks.signal(1, SIGSTOP);
  expect_all_fail(ranks.wait({1}, kSoon), "rank 1 does not answer", 1);
  expect_goes_on("stopped");
}

// For a person who does not want to wait for the step: this one ends at once, and the others with it.
TEST_F(FaultyMesh, ASecondSignalEndsItAtOnce) {
  Ranks ranks(4, arguments("at-once"));
  ASSERT_TRUE(ranks.until_lines(tiny_->metrics("at-once"), 2));
  ranks.signal(1, SIGSTOP);  // no step ends any more
  ranks.signal(2, SIGTERM);
  std::this_thread::sleep_for(std::chrono::milliseconds(2100));
  ranks.signal(2, SIGTERM);
  const std::vector<Ran> all = ranks.wait({1}, kSoon);
  EXPECT_EQ(all[2].status, 128 + SIGTERM);
  for (const int rank : {0, 3}) EXPECT_THAT(all[static_cast<size_t>(rank)].err, HasSubstr("rank 2 is gone"));
  expect_goes_on("at-once");
}

TEST_F(FaultyMesh, AFullDiskOnOneRankFailsTheSaveAndNotTheRun) {
  // Room for the small files of a run, but not for a rank's part of a checkpoint.
  const Words saves_twice = tiny_->arguments(4, "full", kTp2Dp2.settings + Words{"--save-interval", "3"});
  ASSERT_EQ(Ranks(4, tiny_->arguments(2, "full", kTp2Dp2.settings)).wait()[0].status, 0);
  const std::vector<Ran> all = Ranks(4, saves_twice, {{1, {.file_bytes = 16384}}}).wait();
  EXPECT_THAT(all[0].out,
              AllOf(HasSubstr("NOT SAVED at step 3"), HasSubstr("rank 1: "),
                    HasSubstr("training goes on, the last checkpoint is of step 2"), HasSubstr("4/4 | loss")));
  expect_all_fail(all, "the checkpoint of step 4 was not saved");  // the last one: the run has lost its end
  const fs::path checkpoints = tiny_->file("full") + "/checkpoints";
  EXPECT_TRUE(fs::exists(checkpoints / "step-00000002/manifest.json"));
  EXPECT_FALSE(fs::exists(checkpoints / "step-00000003"));
  EXPECT_EQ(run_agoq({"inspect", tiny_->file("full"), "--verify"}).status, 0);
  for (const Ran& ran : Ranks(4, saves_twice).wait()) EXPECT_EQ(ran.status, 0) << ran.err;
}

TEST_F(FaultyMesh, TheFolderOfARunThatGoesOnIsRefusedByAll) {
  Ranks first(4, tiny_->arguments(100000, "held", kTp2Dp2.settings));
  ASSERT_TRUE(first.until_lines(tiny_->metrics("held"), 1));
  expect_all_fail(Ranks(2, tiny_->arguments(5, "held", kTp2.settings)).wait({}, kSoon), "is in use by process ");
  first.signal(3, SIGTERM);
  for (const Ran& ran : first.wait()) EXPECT_EQ(ran.status, 0) << ran.err;
}

// Ranks that were not told the same.
TEST(MeshRefuses, OtherSettingsOnOneRank) {
  const TinyMeshRun tiny;
  write_plainly(tiny.file("other.txt"), read_plainly(tiny.text_path()) + "more");
  const std::string text = tiny.text_path(), other = tiny.file("other.txt");
  struct Case {
    Words said_to_rank_1;
    std::string why;
  };
  for (const Case& it :
       {Case{{"--lr", "0.25"}, "--lr is '0.005' on rank 0 and '0.25' on rank 1"},
        Case{{"--data-path", other}, fmt::format("--data-path is '{}' on rank 0 and '{}' on rank 1", text, other)},
        Case{{"--seed", "7"}, "--seed is '1234' on rank 0 and '7' on rank 1"},
        Case{{"--tensor-model-parallel-size", "1"},
             "--tensor-model-parallel-size is '2' on rank 0 and '1' on rank 1"}}) {
    Words arguments = tiny.arguments(3, "run", kTp2.settings), deviant = arguments;
    const auto at = std::find(deviant.begin(), deviant.end(), it.said_to_rank_1[0]);
    if (at == deviant.end())
      deviant = deviant + it.said_to_rank_1;
    else
      *(at + 1) = it.said_to_rank_1[1];
    expect_all_fail(Ranks(2, {}, {{0, {.arguments = arguments}}, {1, {.arguments = deviant}}}).wait({}, kSoon), it.why);
    EXPECT_FALSE(fs::exists(tiny.file("run"))) << "nothing is begun";
  }
}

// Hosts on which the same name means another file, or none.
TEST(MeshRefuses, OtherDataOnOneRank) {
  const TinyMeshRun tiny;
  const fs::path here = tiny.file("here"), elsewhere = tiny.file("elsewhere"), nowhere = tiny.file("nowhere");
  for (const fs::path& folder : {here, elsewhere, nowhere}) fs::create_directory(folder);
  write_plainly(here / "text.txt", read_plainly(tiny.text_path()));
  write_plainly(elsewhere / "text.txt", read_plainly(tiny.text_path()) + "more");
  Words arguments = tiny.arguments(3, "run", kTp2Dp2.settings);
  *(std::find(arguments.begin(), arguments.end(), "--data-path") + 1) = "/proc/self/cwd/text.txt";
  const auto outcome = [&](const fs::path& of_rank_2) {
    return Ranks(4, arguments,
                 {{0, {.folder = here}}, {1, {.folder = here}}, {2, {.folder = of_rank_2}}, {3, {.folder = here}}})
        .wait({}, kSoon);
  };
  const std::vector<Ran> other = outcome(elsewhere), none = outcome(nowhere);
  expect_all_fail(other, "must agree: data is '[{\"weight\":1.0,\"tokens\":");
  expect_all_fail(other, "}]' on rank 2\n");
  expect_all_fail(none, "/proc/self/cwd/text.txt");
  EXPECT_THAT(none[0].err, HasSubstr("[rank 0] rank 2: "));
  EXPECT_FALSE(fs::exists(tiny.metrics("run"))) << "no step was made";
}

// The same tokens, which the index of rank 1 orders otherwise; as training data and as held-out data.
TEST(MeshRefuses, AnotherIndexOnOneRank) {
  const TinyMeshRun tiny;
  const fs::path here = tiny.file("here"), elsewhere = tiny.file("elsewhere");
  const std::vector<int64_t> one(400, 1), two(400, 2);
  for (const fs::path& folder : {here, elsewhere}) {
    fs::create_directory(folder);
    train::write_megatron(folder / "m", {one, two});
  }
  std::string index = read_plainly(elsewhere / "m.idx");
  const int64_t swapped[] = {800, 0};
  std::memcpy(&index[34 + 2 * 4], swapped, sizeof(swapped));
  write_plainly(elsewhere / "m.idx", index);
  const auto refused = [&](const Words& arguments) {
    return Ranks(2, arguments, {{0, {.folder = here}}, {1, {.folder = elsewhere}}}).wait({}, kSoon);
  };
  Words arguments = tiny.arguments(3, "run", kTp2.settings);
  expect_all_fail(refused(arguments + Words{"--valid-data-path", "/proc/self/cwd/m"}),
                  "must agree: held-out data is '[{");
  *(std::find(arguments.begin(), arguments.end(), "--data-path") + 1) = "/proc/self/cwd/m";
  expect_all_fail(refused(arguments), "must agree: data is '[{");
  EXPECT_FALSE(fs::exists(tiny.metrics("run"))) << "no step was made";
}

TEST(MeshRefuses, WhatNoMeshCanDo) {
  const TinyMeshRun tiny;
  struct Case {
    int world;
    Words settings;
    std::string why, choices;
  };
  for (const Case& it :
       {Case{3, {"--tensor-model-parallel-size", "2"}, "does not divide the 3 processes", "start 2 or 4"},
        Case{4, {"--tensor-model-parallel-size", "4"}, "cannot divide 4 query heads, 2 key/value heads", "use 1, 2"},
        Case{2,
             {"--pipeline-model-parallel-size", "2", "--num-virtual-stages-per-pipeline-rank", "3"},
             "4 layers are too few for 2 stages x 3 chunks",
             "2 stages allow at most 2 chunks"},
        Case{2,
             {"--num-distributed-optimizer-instances", "3"},
             "--num-distributed-optimizer-instances 3 does not divide 2 data-parallel ranks",
             "into equal groups"},
        Case{2,
             {"--num-distributed-optimizer-instances", "2", "--data-parallel-sharding-strategy", "no_shard"},
             "nothing is divided among the ranks of a group",
             "leave one of them out"},
        Case{2,
             {"--data-parallel-sharding-strategy", "optim_grads_params", "--fp8-format", "e4m3", "--fp8-weight-cache",
              "on"},
             "--fp8-weight-cache on keeps all weights on every rank",
             "leave one of them out"},
        Case{2,
             {"--data-parallel-sharding-strategy", "zero3"},
             "--data-parallel-sharding-strategy zero3",
             "optim_grads_params"},
        Case{3, {}, "--global-batch-size 8 is not a multiple of --micro-batch-size 1 for each of 3", "try 6 or 9"}}) {
    const std::vector<Ran> all = Ranks(it.world, tiny.arguments(1, "run", it.settings)).wait({}, kSoon);
    expect_all_fail(all, it.why);
    expect_all_fail(all, it.choices);
    EXPECT_FALSE(fs::exists(tiny.file("run"))) << "nothing is begun";
  }
}

TEST(MeshRefuses, ToWaitForEverForOneThatNeverStarts) {
  const TinyMeshRun tiny;
  const Words arguments = tiny.arguments(1, "run", kPp2.settings + kImpatient);
  Words four = tiny.arguments(1, "run", kTp2Dp2.settings + kImpatient);
  expect_all_fail(Ranks(4, four, {{2, {.absent = true}}}).wait({}, kSoon),
                  fmt::format("rank 2 of 4 did not come within {} s", kPatience.count()), 2);
  expect_all_fail(Ranks(2, arguments, {{0, {.absent = true}}}).wait({}, kSoon), "rank 1 found no rank 0", 0);
}

// The program with one bit of its build id turned over, as another compilation would have it; the id of either.
std::string other_build(const std::string& path, std::string& id, std::string& other_id) {
  std::string program = read_plainly(AGOQ_PROGRAM);
  constexpr size_t kBytes = 20;
  const std::string note("\4\0\0\0\x14\0\0\0\3\0\0\0GNU\0", 16);
  const size_t at = program.find(note) + note.size();
  const auto digits = [&] {
    std::string text;
    for (size_t i = 0; i < kBytes; ++i) text += fmt::format("{:02x}", static_cast<uint8_t>(program[at + i]));
    return text;
  };
  id = digits();
  program[at] = static_cast<char>(program[at] ^ 1);
  other_id = digits();
  write_plainly(path, program);
  fs::permissions(path, fs::perms::owner_all);
  return path;
}

TEST(MeshRefuses, AnotherBuildOnOneRank) {
  const TinyMeshRun tiny;
  std::string id, other_id;
  const std::string program = other_build(tiny.file("agoq"), id, other_id);
  expect_all_fail(Ranks(2, tiny.arguments(1, "run", kPp2.settings), {{1, {.program = program}}}).wait({}, kSoon),
                  fmt::format("the build is '{}' on rank 0 and '{}' on rank 1", id, other_id));
  EXPECT_FALSE(fs::exists(tiny.file("run"))) << "nothing is begun";
}

// On one host no set-up is needed: the ranks make themselves a secret, and the second start finds it.
TEST(MeshSecret, IsMadeWhereAllRanksAreOnOneHost) {
  const TinyMeshRun tiny;
  const Apart here{.environment = {"AGOQ_JOB_SECRET=", "XDG_CONFIG_HOME=", "HOME=" + tiny.file("home")}};
  for (const char* save : {"first", "second"})
    for (const Ran& ran : Ranks(2, tiny.arguments(1, save, kPp2.settings), {{0, here}, {1, here}}).wait())
      EXPECT_EQ(ran.status, 0) << ran.err;
  EXPECT_EQ(read_plainly(tiny.file("home/.config/agoq/job-secret")).size(), 65U);
}

TEST(MeshSecret, OfSeveralHostsMustBeGiven) {
  const TinyMeshRun tiny;
  const Apart apart{
      .environment = {"AGOQ_JOB_SECRET=", "XDG_CONFIG_HOME=", "HOME=/proc/none", "AGOQ_MASTER_ADDR=0.0.0.0"}};
  const auto outcome = [&](const Words& more) {
    return Ranks(2, tiny.arguments(1, "run", kPp2.settings + more), {{0, apart}, {1, apart}}).wait({}, kSoon);
  };
  expect_all_fail(outcome({}), "export AGOQ_JOB_SECRET=$(head -c 24 /dev/urandom | base64)");
  EXPECT_FALSE(fs::exists(tiny.file("run"))) << "nothing is begun";
  const std::vector<Ran> open = outcome({"--rendezvous-open"});
  for (const Ran& ran : open) EXPECT_EQ(ran.status, 0) << ran.err;
  EXPECT_THAT(open[0].err, HasSubstr("--rendezvous-open: whoever reaches port "));
}

TEST(MeshRefuses, APortThatIsInUse) {
  const TinyMeshRun tiny;
  const int port = test::free_port();
  const std::vector<FileDescriptor> taken = comm::listen_tcp(port, "localhost");
  const std::vector<Ran> all = Ranks(2, tiny.arguments(1, "run", kPp2.settings), {{1, {.absent = true}}}, port).wait();
  EXPECT_THAT(all[0].err,
              HasSubstr(fmt::format("cannot listen on port {}: Address already in use; AGOQ_MASTER_PORT", port)));
  EXPECT_EQ(all[0].status, 1);
}

}  // namespace
}  // namespace agoq
