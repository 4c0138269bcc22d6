// Runs of several processes, as a launcher starts them: the same numbers as one process, and checkpoints that any
// number of processes, and every other command, can read.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "cli/ranks.h"

namespace agoq {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using test::operator+;
using test::kDp2;
using test::kPp2;
using test::kTp2;
using test::kTp2Dp2;
using test::kTp2Dp2Pp2;
using test::losses_of;
using test::MeshSetting;
using test::metrics_of;
using test::Ran;
using test::Ranks;
using test::run_agoq;
using test::TinyMeshRun;
using test::Words;
using testing::HasSubstr;
using testing::StartsWith;

constexpr double kFp32 = 1e-4;  // sums in another order

void expect_all_well(const std::vector<Ran>& all) {
  for (size_t rank = 0; rank < all.size(); ++rank) {
    EXPECT_EQ(all[rank].status, 0) << "rank " << rank << ": " << all[rank].err;
    EXPECT_EQ(all[rank].err, "") << "rank " << rank;
    if (rank == 0) continue;
    EXPECT_EQ(all[rank].out, "") << "rank 0 alone speaks";
  }
}

std::vector<Ran> run_mesh(const MeshSetting& mesh, const Words& arguments) {
  return Ranks(mesh.world, arguments + mesh.settings).wait();
}

MeshSetting with_strategy(const MeshSetting& mesh, const std::string& strategy) {
  return {mesh.name + ", " + strategy, mesh.world,
          mesh.settings + Words{"--data-parallel-sharding-strategy", strategy}};
}

void expect_close(const std::map<int64_t, double>& losses, const std::map<int64_t, double>& truth,
                  const std::string& what) {
  ASSERT_EQ(losses.size(), truth.size()) << what;
  for (const auto& [step, loss] : truth) EXPECT_NEAR(losses.at(step), loss, kFp32) << what << ", step " << step;
}

TEST(Mesh, LossesAreThoseOfOneProcess) {
  const TinyMeshRun tiny;
  const auto in_fp32 = [&](const std::string& save) { return tiny.arguments(4, save, {"--baseline", "fp32"}); };
  const Ran alone = run_agoq(in_fp32("alone"));
  ASSERT_EQ(alone.status, 0) << alone.err;
  const auto truth = losses_of(tiny.file("alone"));
  ASSERT_LT(truth.at(4), truth.at(1) - 0.1) << "it learns";
  for (const MeshSetting& mesh : {kTp2, kPp2, kDp2, kTp2Dp2, kTp2Dp2Pp2, with_strategy(kDp2, "optim_grads"),
                                  with_strategy(kTp2Dp2Pp2, "optim_grads_params")}) {
    const std::vector<Ran> all = run_mesh(mesh, in_fp32(mesh.name));
    expect_all_well(all);
    EXPECT_THAT(all[0].out, HasSubstr("4/4 | loss")) << mesh.name;
    expect_close(losses_of(tiny.file(mesh.name)), truth, mesh.name);
  }
}

TEST(Mesh, TheSameBitsEveryTime) {
  const TinyMeshRun tiny;
  for (const MeshSetting& mesh :
       {kTp2Dp2, kPp2, with_strategy(kDp2, "optim_grads"), with_strategy(kDp2, "optim_grads_params")}) {
    const std::string first = mesh.name, second = first + " again";
    for (const std::string& save : {first, second}) expect_all_well(run_mesh(mesh, tiny.arguments(3, save)));
    EXPECT_EQ(metrics_of(tiny.file(first)), metrics_of(tiny.file(second)));
  }
}

// Trains in turn as several processes and as one, in the same folder.
TEST(Mesh, CheckpointsGoOnInAnyOtherMesh) {
  const TinyMeshRun tiny;
  const auto in_fp32 = [&](int steps, const std::string& save) {
    return tiny.arguments(steps, save, {"--baseline", "fp32"});
  };
  ASSERT_EQ(run_agoq(in_fp32(10, "whole")).status, 0);
  const MeshSetting alone{"alone", 1, {}};
  const MeshSetting dp2_pp2{"dp2 x pp2", 4, {"--pipeline-model-parallel-size", "2"}};
  int steps = 0;
  for (const MeshSetting& mesh :
       {dp2_pp2, with_strategy(kDp2, "optim_grads_params"), alone, with_strategy(kTp2Dp2Pp2, "optim_grads"), kTp2}) {
    steps += 2;
    const std::vector<Ran> all = run_mesh(mesh, in_fp32(steps, "parts"));
    expect_all_well(all);
    EXPECT_THAT(all[0].out, HasSubstr(steps == 2 ? "2/2 | loss" : fmt::format("at step {}\n", steps - 2))) << mesh.name;
  }
  expect_close(losses_of(tiny.file("parts")), losses_of(tiny.file("whole")), "in parts");
}

// The other commands run as one process each, on what a mesh has saved.
class MeshCheckpoint : public testing::Test {
 public:
  static void SetUpTestSuite() {
    tiny_ = new TinyMeshRun;
    expect_all_well(run_mesh(kTp2Dp2, tiny_->arguments(3, "run")));
  }
  static void TearDownTestSuite() { delete tiny_; }

 protected:
  static std::string run() { return tiny_->file("run"); }
  static inline TinyMeshRun* tiny_ = nullptr;
};

TEST_F(MeshCheckpoint, IsInspectedEvaluatedExportedAndWrittenWith) {
  const Ran inspected = run_agoq({"inspect", run(), "--verify", "--all"});
  EXPECT_EQ(inspected.status, 0) << inspected.err;
  for (const char* what : {"step 3", "weights/layers.3.qkv", "checksums of all"})
    EXPECT_THAT(inspected.out, HasSubstr(what));

  const std::string exported = tiny_->file("exported");
  ASSERT_EQ(run_agoq({"export", run(), exported, "--dtype", "fp32"}).status, 0);
  const auto loss_of = [&](const std::string& source) -> double {
    const Ran ran = run_agoq(
        {"eval", source, "--data-path", tiny_->text_path(), "--seq-length", "32", "--max-samples", "40", "--json"});
    EXPECT_EQ(ran.status, 0) << ran.err;
    return json::parse(ran.out)["loss"];
  };
  const double loss = loss_of(run());
  EXPECT_DOUBLE_EQ(loss, loss_of(exported));
  EXPECT_LT(loss, 5.5) << "untrained: ln 257 = 5.55";

  const auto generate = [](const std::string& source) {
    return run_agoq({"generate", source, "--prompt", "the cat", "--max-new-tokens", "6", "--temperature", "0"});
  };
  const std::string written = generate(run()).out;
  EXPECT_THAT(written, StartsWith("the cat"));
  EXPECT_EQ(written, generate(exported).out);
}

// Begins as a mesh with what a mesh has saved; then the source is needed no more.
TEST_F(MeshCheckpoint, IsFinetuned) {
  const std::string source = tiny_->file("source");
  fs::copy(run(), source, fs::copy_options::recursive);
  Words arguments = tiny_->arguments(2, "tuned");
  const auto model = std::find(arguments.begin(), arguments.end(), "--model-config");
  *model = "--finetune";
  *(model + 1) = source;
  const std::vector<Ran> all = run_mesh(kPp2, arguments);
  expect_all_well(all);
  EXPECT_THAT(all[0].out, HasSubstr("begins with the weights of " + source + "/checkpoints/step-00000003"));
  EXPECT_LT(losses_of(tiny_->file("tuned")).at(1), losses_of(run()).at(2)) << "it begins where the other ended";
}

TEST_F(MeshCheckpoint, ADamagedOneIsPassedOverByAllAlike) {
  const std::string copy = tiny_->file("damaged");
  expect_all_well(run_mesh(kTp2Dp2, tiny_->arguments(3, "damaged", {"--save-interval", "1"})));
  // A file of the last rank: no other rank reads most of it.
  const std::string shard = copy + "/checkpoints/step-00000003/shard-00003-00000.safetensors";
  std::string bytes = read_plainly(shard);
  bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 1);
  write_plainly(shard, bytes);
  const std::vector<Ran> all = run_mesh(kTp2Dp2, tiny_->arguments(3, "damaged"));
  for (const Ran& ran : all) EXPECT_EQ(ran.status, 0) << ran.err;
  EXPECT_THAT(all[0].err, testing::AllOf(HasSubstr("PASSING OVER"), HasSubstr(shard)));
  for (size_t rank = 1; rank < all.size(); ++rank) EXPECT_EQ(all[rank].err, "");
  EXPECT_THAT(all[0].out, testing::ContainsRegex("resumed from .*step-00000002 at step 2"));
  EXPECT_EQ(losses_of(copy), losses_of(run()));
}

// Slurm leaves variables in the shell of an allocation; a program typed there is no task of a step.
TEST(Mesh, TheShellOfAnAllocationStartsOneProcess) {
  const TinyMeshRun tiny;
  const Ran ran = run_agoq(tiny.arguments(1, "run"),
                           {.before = "export SLURM_JOB_ID=7 SLURM_NTASKS=4 SLURM_NPROCS=4 SLURM_PROCID=0 "
                                      "SLURM_LOCALID=0 SLURM_NODEID=0 SLURM_JOB_NODELIST=node1; "});
  EXPECT_EQ(ran.status, 0) << ran.err;
  EXPECT_THAT(ran.out, HasSubstr("1/1 | loss"));
}

TEST(Mpirun, StartsAMesh) {
  if (std::system("command -v mpirun >/dev/null") != 0) GTEST_SKIP() << "there is no mpirun on PATH";
  const TinyMeshRun tiny;
  const std::string mpirun = "OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 mpirun -np 2 ";
  const std::string open_mpi_only = std::system("mpirun --version | grep -q 'Open MPI'") == 0 ? "--oversubscribe " : "";
  const Ran ran =
      run_agoq(tiny.arguments(2, "run") + kTp2.settings, {.program = "env " + mpirun + open_mpi_only + AGOQ_PROGRAM});
  EXPECT_EQ(ran.status, 0) << ran.err;
  EXPECT_THAT(ran.out, testing::AllOf(HasSubstr("1/2 | loss"), HasSubstr("2/2 | loss")));
  EXPECT_THAT(ran.out, testing::Not(HasSubstr("\x1b[K")))
      << "no redrawn lines, though rank 0 has a terminal of mpirun's";
  EXPECT_EQ(losses_of(tiny.file("run")).size(), 2u);
  EXPECT_TRUE(fs::exists(tiny.file("run") + "/checkpoints/step-00000002/shard-00001-00000.safetensors"))
      << "two processes, not two runs of one";
}

}  // namespace
}  // namespace agoq
