#include "comm/launch/launch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "base/error.h"
#include "base/error_of.h"
#include "comm/limits.h"

namespace agoq::comm {
namespace {

using testing::HasSubstr;
using Variables = std::map<std::string, std::string>;

Launch launch_in(const Variables& variables) {
  return find_launch([&](const char* name) -> const char* {
    const auto at = variables.find(name);
    return at == variables.end() ? nullptr : at->second.c_str();
  });
}

std::string error_in(const Variables& variables) {
  return error_of([&] { launch_in(variables); });
}

const Variables kTorchrun = {{"RANK", "5"},
                             {"WORLD_SIZE", "8"},
                             {"LOCAL_RANK", "1"},
                             {"LOCAL_WORLD_SIZE", "4"},
                             {"MASTER_ADDR", "node1"},
                             {"MASTER_PORT", "29500"}};

const Variables kOpenMpi = {
    {"OMPI_COMM_WORLD_RANK", "3"},
    {"OMPI_COMM_WORLD_SIZE", "4"},
    {"OMPI_COMM_WORLD_LOCAL_RANK", "3"},
    {"OMPI_COMM_WORLD_LOCAL_SIZE", "4"},
    {"OMPI_MCA_ess_base_jobid", "1631780865"},
    {"OMPI_MCA_orte_hnp_uri", "1631780864.0;tcp://192.0.2.2,10.0.0.7:49975;tcp6://[fd00::2]:37121"}};

const Variables kSlurm = {{"SLURM_PROCID", "9"},
                          {"SLURM_STEP_NUM_TASKS", "11"},
                          {"SLURM_NTASKS", "11"},
                          {"SLURM_LOCALID", "1"},
                          {"SLURM_NODEID", "2"},
                          {"SLURM_STEP_TASKS_PER_NODE", "4(x2),3"},
                          {"SLURM_STEP_NODELIST", "node[003-004,9]"},
                          {"SLURM_JOB_ID", "1234"},
                          {"SLURM_STEP_ID", "0"}};

Variables with(Variables variables, const std::string& name, const std::string& value) {
  variables[name] = value;
  return variables;
}

Variables without(Variables variables, const std::string& name) {
  variables.erase(name);
  return variables;
}

TEST(Launch, OneProcessWithoutLauncher) {
  const Launch launch = launch_in({});
  EXPECT_EQ(launch.rank, 0);
  EXPECT_EQ(launch.world, 1);
  EXPECT_EQ(launch.local_world, 1);
  EXPECT_EQ(launch.launcher, "none");
}

TEST(Launch, Torchrun) {
  const Launch launch = launch_in(kTorchrun);
  EXPECT_EQ(launch.rank, 5);
  EXPECT_EQ(launch.world, 8);
  EXPECT_EQ(launch.local_rank, 1);
  EXPECT_EQ(launch.local_world, 4);
  EXPECT_EQ(launch.master_addr, "node1");
  EXPECT_EQ(launch.launcher, "torchrun");
  EXPECT_EQ(launch.master_port, 30500);
}

TEST(Launch, TorchrunsPortIsNeverOurs) {
  for (int port = 1; port < 1 << 16; ++port) {
    const int ours = launch_in(with(kTorchrun, "MASTER_PORT", std::to_string(port))).master_port;
    ASSERT_NE(ours, port);
    ASSERT_GE(ours, 1024);
    ASSERT_LT(ours, 1 << 16);
  }
}

TEST(Launch, OpenMpi) {
  const Launch launch = launch_in(kOpenMpi);
  EXPECT_EQ(launch.rank, 3);
  EXPECT_EQ(launch.world, 4);
  EXPECT_EQ(launch.local_rank, 3);
  EXPECT_EQ(launch.launcher, "Open MPI");
  EXPECT_EQ(launch.master_addr, "localhost");
  EXPECT_EQ(launch.master_port, launch_in(with(kOpenMpi, "OMPI_COMM_WORLD_RANK", "0")).master_port);
  EXPECT_NE(launch.master_port, launch_in(with(kOpenMpi, "OMPI_MCA_ess_base_jobid", "1631780866")).master_port);
}

TEST(Launch, OpenMpiOnSeveralHostsMeetsWhereItRuns) {
  Variables variables = with(kOpenMpi, "OMPI_COMM_WORLD_SIZE", "8");
  EXPECT_EQ(launch_in(variables).master_addr, "192.0.2.2");
  variables.erase("OMPI_MCA_orte_hnp_uri");
  EXPECT_THAT(error_in(variables), HasSubstr("set AGOQ_MASTER_ADDR"));
  EXPECT_EQ(launch_in(with(variables, "AGOQ_MASTER_ADDR", "first")).master_addr, "first");
}

// As Open MPI 5.0.11 leaves them to a rank on node-2, where the daemon at tcp4:// is that of its own host.
const Variables kOpenMpi5 = {{"OMPI_COMM_WORLD_RANK", "3"},
                             {"OMPI_COMM_WORLD_SIZE", "4"},
                             {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                             {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"},
                             {"PMIX_HOSTNAME", "node-2"},
                             {"PMIX_NAMESPACE", "prterun-node-1-12003@1"},
                             {"PMIX_SERVER_URI2", "prterun-node-1-12003@0.1;tcp4://10.0.0.2:36555"},
                             {"PMIX_SERVER_URI4", "prterun-node-1-12003@0.1;tcp4://10.0.0.2:36555"}};

TEST(Launch, OpenMpi5OnSeveralHostsMeetsWhereItRuns) {
  const Launch launch = launch_in(kOpenMpi5);
  EXPECT_EQ(launch.master_addr, "node-1");
  EXPECT_EQ(launch.job, "prterun-node-1-12003@1");
  EXPECT_EQ(launch.master_port, launch_in(with(kOpenMpi5, "PMIX_SERVER_URI2", "another")).master_port);
  const auto host = [](const std::string& job) {
    return launch_in(with(kOpenMpi5, "PMIX_NAMESPACE", job)).master_addr;
  };
  EXPECT_EQ(host("prterun-h1.cluster-7.example-99@2"), "h1.cluster-7.example");
  EXPECT_EQ(host("prte-h1-99@2"), "h1");
  for (const char* job :
       {"1631780865", "prterun@1", "prterun-@1", "prterun-h1@1", "prterun-h1-99", "-@", "prterun-h1-x@1"})
    EXPECT_THAT(error_in(with(kOpenMpi5, "PMIX_NAMESPACE", job)), HasSubstr("set AGOQ_MASTER_ADDR")) << job;
  EXPECT_EQ(launch_in(with(kOpenMpi5, "OMPI_COMM_WORLD_LOCAL_SIZE", "4")).master_addr, "localhost");
}

TEST(Launch, RanksOfOneHostMeetOnItsLoopback) {
  const Variables one_host = with(kTorchrun, "LOCAL_WORLD_SIZE", "8");
  EXPECT_EQ(launch_in(one_host).master_addr, "localhost");
  EXPECT_EQ(launch_in(with(one_host, "AGOQ_MASTER_ADDR", "node1")).master_addr, "node1");
  EXPECT_EQ(launch_in(with(kSlurm, "SLURM_STEP_TASKS_PER_NODE", "1,1,11")).master_addr, "localhost");
}

TEST(Launch, EachJobHasANameThatItsRanksShare) {
  EXPECT_EQ(launch_in(kSlurm).job, "1234.0");
  EXPECT_EQ(launch_in(kOpenMpi).job, "1631780865");
  EXPECT_EQ(launch_in(with(kTorchrun, "TORCHELASTIC_RUN_ID", "a run")).job, "a run 29500");
  EXPECT_EQ(launch_in(with(kTorchrun, "RANK", "0")).job, launch_in(kTorchrun).job);
}

// `export RANK=0 WORLD_SIZE=1` of an earlier trial, and then mpirun -np 2.
TEST(Launch, LeftOverVariablesAreRefusedByBothNames) {
  const Variables left_over = {
      {"RANK", "0"}, {"WORLD_SIZE", "1"}, {"MASTER_ADDR", "localhost"}, {"MASTER_PORT", "29500"}};
  const auto within = [](Variables inner, const Variables& outer) {
    inner.insert(outer.begin(), outer.end());
    return inner;
  };
  EXPECT_EQ(launch_in(left_over).world, 1);
  EXPECT_THAT(
      error_in(within(left_over, kOpenMpi)),
      HasSubstr("RANK=0 and WORLD_SIZE=1, which torchrun sets, contradict Open MPI, for which this is rank 3 of 4. If "
                "they are left over from another job: unset RANK WORLD_SIZE"));
  EXPECT_THAT(error_in(within(left_over, kOpenMpi5)), HasSubstr("contradict Open MPI"));
  EXPECT_THAT(error_in(within(left_over, kSlurm)), HasSubstr("contradict Slurm, for which this is rank 9 of 11"));
  EXPECT_THAT(error_in(within(left_over, {{"PMI_RANK", "1"}, {"PMI_SIZE", "2"}, {"MPI_LOCALRANKID", "1"}})),
              HasSubstr("contradict MPICH, for which this is rank 1 of 2"));
  // An elastic torchrun's own, left in the shell of one of its workers.
  EXPECT_THAT(error_in(within(with(left_over, "TORCHELASTIC_RUN_ID", "x"), kOpenMpi)),
              HasSubstr("contradict Open MPI"));
  // Of two processes both would be rank 0.
  EXPECT_THAT(error_in(within(with(left_over, "WORLD_SIZE", "4"), kOpenMpi)), HasSubstr("contradict Open MPI"));
}

// `srun -n 8 --pty bash`, and there torchrun with fewer processes: the message gives a command that works.
TEST(Launch, TorchrunInAShellOfALauncherIsToldWhatToTakeAway) {
  Variables variables = with(with(kTorchrun, "RANK", "1"), "WORLD_SIZE", "2");
  variables = with(with(variables, "LOCAL_WORLD_SIZE", "2"), "TORCHELASTIC_RUN_ID", "none");
  for (const Variables& outer :
       {kSlurm, kOpenMpi, Variables{{"PMI_RANK", "0"}, {"PMI_SIZE", "4"}, {"MPI_LOCALRANKID", "0"}}})
    variables.insert(outer.begin(), outer.end());
  const std::string error = error_in(variables);
  EXPECT_THAT(error, HasSubstr("env -u SLURM_PROCID -u OMPI_COMM_WORLD_RANK -u PMI_RANK torchrun ..."));
  for (const char* name : {"SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK"}) variables.erase(name);
  EXPECT_EQ(launch_in(variables).launcher, "torchrun");
  EXPECT_EQ(launch_in(variables).world, 2);
  variables.insert(*kOpenMpi.find("OMPI_COMM_WORLD_RANK"));
  EXPECT_THAT(error_in(variables), HasSubstr(": env -u OMPI_COMM_WORLD_RANK torchrun ...")) << "no more than there is";
}

TEST(Launch, TorchrunInsideAnotherLauncherCounts) {
  const auto within = [](Variables inner, const Variables& outer) {
    inner.insert(outer.begin(), outer.end());
    return inner;
  };
  EXPECT_EQ(launch_in(within(kTorchrun, kOpenMpi)).launcher, "torchrun") << "4 agents, 2 processes each";
  const Variables same_world = with(with(kTorchrun, "WORLD_SIZE", "4"), "RANK", "1");
  EXPECT_EQ(launch_in(within(with(same_world, "TORCHELASTIC_RUN_ID", "x"), kOpenMpi)).rank, 1)
      << "agents numbered anew";
  EXPECT_EQ(launch_in(within(with(same_world, "RANK", "3"), kOpenMpi)).rank, 3) << "a script that translates";
}

TEST(Launch, Mpich) {
  const Variables variables = {
      {"PMI_RANK", "1"}, {"PMI_SIZE", "4"}, {"MPI_LOCALRANKID", "1"}, {"MPI_LOCALNRANKS", "4"}};
  const Launch launch = launch_in(variables);
  EXPECT_EQ(launch.rank, 1);
  EXPECT_EQ(launch.world, 4);
  EXPECT_EQ(launch.local_rank, 1);
  EXPECT_EQ(launch.local_world, 4);
  EXPECT_EQ(launch.launcher, "MPICH");
  EXPECT_THAT(error_in(with(variables, "PMI_SIZE", "8")), HasSubstr("-genv AGOQ_MASTER_ADDR HOST"));
}

// Rank 3 of 4 on two hosts, started inside `salloc -N 2`, where Hydra's own processes are the step's tasks.
const Variables kMpichInSlurm = {{"PMI_RANK", "3"},
                                 {"PMI_SIZE", "4"},
                                 {"MPI_LOCALRANKID", "1"},
                                 {"MPI_LOCALNRANKS", "2"},
                                 {"MPIR_CVAR_CH3_INTERFACE_HOSTNAME", "h4"},
                                 {"PMI_FD", "6"},
                                 {"SLURM_JOB_ID", "32"},
                                 {"SLURM_JOB_NODELIST", "h[3-4]"},
                                 {"SLURM_LAUNCH_NODE_IPADDR", "10.77.0.10"},
                                 {"SLURM_LOCALID", "0"},
                                 {"SLURM_NODEID", "1"},
                                 {"SLURM_NPROCS", "2"},
                                 {"SLURM_NTASKS", "4"},
                                 {"SLURM_PROCID", "1"},
                                 {"SLURM_STEP_ID", "0"},
                                 {"SLURM_STEP_NODELIST", "h[3-4]"},
                                 {"SLURM_STEP_NUM_TASKS", "2"},
                                 {"SLURM_STEP_TASKS_PER_NODE", "1(x2)"}};

TEST(Launch, MpichInsideAnAllocationMeetsOnItsFirstHost) {
  const Launch launch = launch_in(kMpichInSlurm);
  EXPECT_EQ(launch.launcher, "MPICH");
  EXPECT_EQ(launch.rank, 3);
  EXPECT_EQ(launch.world, 4);
  EXPECT_EQ(launch.local_rank, 1);
  EXPECT_EQ(launch.local_world, 2);
  EXPECT_EQ(launch.master_addr, "h3");
  EXPECT_EQ(launch_in(with(kMpichInSlurm, "AGOQ_MASTER_ADDR", "10.0.0.3")).master_addr, "10.0.0.3");
}

// mpirun on a login node, which is none of the allocation: its daemons are the step's tasks.
TEST(Launch, OpenMpiInsideAnAllocationMeetsOnItsFirstHost) {
  const Launch launch = launch_in({{"OMPI_COMM_WORLD_RANK", "0"},
                                   {"OMPI_COMM_WORLD_SIZE", "4"},
                                   {"OMPI_COMM_WORLD_LOCAL_RANK", "0"},
                                   {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"},
                                   {"OMPI_MCA_ess_base_jobid", "2792882177"},
                                   {"OMPI_MCA_orte_hnp_uri", "2792882176.0;tcp://10.77.0.10:44433"},
                                   {"SLURM_JOB_ID", "36"},
                                   {"SLURM_JOB_NODELIST", "h[1-2]"},
                                   {"SLURM_LOCALID", "0"},
                                   {"SLURM_NPROCS", "2"},
                                   {"SLURM_NTASKS", "2"},
                                   {"SLURM_PROCID", "0"},
                                   {"SLURM_STEP_ID", "0"},
                                   {"SLURM_STEP_NODELIST", "h[1-2]"},
                                   {"SLURM_STEP_NUM_TASKS", "2"},
                                   {"SLURM_STEP_TASKS_PER_NODE", "1(x2)"}});
  EXPECT_EQ(launch.launcher, "Open MPI");
  EXPECT_EQ(launch.world, 4);
  EXPECT_EQ(launch.local_world, 2);
  EXPECT_EQ(launch.master_addr, "h1");
}

TEST(Launch, Slurm) {
  const Launch launch = launch_in(kSlurm);
  EXPECT_EQ(launch.rank, 9);
  EXPECT_EQ(launch.world, 11);
  EXPECT_EQ(launch.local_rank, 1);
  EXPECT_EQ(launch.local_world, 3);
  EXPECT_EQ(launch.master_addr, "node003");
  EXPECT_EQ(launch.launcher, "Slurm");
  EXPECT_EQ(launch.master_port, launch_in(with(kSlurm, "SLURM_PROCID", "8")).master_port);
  EXPECT_NE(launch.master_port, launch_in(with(kSlurm, "SLURM_STEP_ID", "1")).master_port);
  EXPECT_EQ(launch_in(with(kSlurm, "SLURM_NODEID", "1")).local_world, 4);
  Variables by_address = without(kSlurm, "SLURM_STEP_NODELIST");
  by_address["SLURM_LAUNCH_NODE_IPADDR"] = "10.0.0.3";
  EXPECT_EQ(launch_in(by_address).master_addr, "10.0.0.3");
}

TEST(Launch, AShellInsideAnAllocationIsNoTask) {
  EXPECT_EQ(launch_in(without(kSlurm, "SLURM_STEP_ID")).world, 1);
  EXPECT_EQ(launch_in(without(kSlurm, "SLURM_PROCID")).world, 1);
  EXPECT_EQ(launch_in(with(kSlurm, "SLURM_STEP_NUM_TASKS", "1")).world, 1);
}

TEST(Launch, TheInnermostLauncherCounts) {
  Variables both = kSlurm;
  both.insert(kOpenMpi.begin(), kOpenMpi.end());
  EXPECT_EQ(launch_in(both).launcher, "Open MPI");
  const Variables srun_with_pmi = with(with(kSlurm, "PMI_RANK", "9"), "PMI_SIZE", "11");
  EXPECT_EQ(launch_in(srun_with_pmi).launcher, "Slurm");
}

TEST(Launch, OurOwnVariablesOverrule) {
  const Launch launch = launch_in(with(with(kTorchrun, "AGOQ_MASTER_ADDR", "10.1.2.3"), "AGOQ_MASTER_PORT", "4567"));
  EXPECT_EQ(launch.master_addr, "10.1.2.3");
  EXPECT_EQ(launch.master_port, 4567);
  EXPECT_THAT(error_in(with(kTorchrun, "AGOQ_MASTER_PORT", "65536")), HasSubstr("65536"));
}

TEST(Launch, RefusesContradictions) {
  EXPECT_THAT(error_in(with(kTorchrun, "RANK", "8")), HasSubstr("rank 8 of 8"));
  EXPECT_THAT(error_in(with(kTorchrun, "LOCAL_RANK", "4")), HasSubstr("local rank 4 of 4"));
  EXPECT_THAT(error_in(with(kTorchrun, "LOCAL_WORLD_SIZE", "9")), HasSubstr("9"));
  EXPECT_THAT(error_in(with(kTorchrun, "WORLD_SIZE", "0")), HasSubstr("of 0"));
  EXPECT_THAT(error_in(with(kTorchrun, "RANK", "five")), HasSubstr("RANK is 'five'"));
  EXPECT_THAT(error_in(with(kTorchrun, "RANK", "-1")), HasSubstr("RANK is '-1'"));
  EXPECT_THAT(error_in(without(kTorchrun, "WORLD_SIZE")), HasSubstr("WORLD_SIZE is missing"));
  EXPECT_THAT(error_in(without(kTorchrun, "MASTER_ADDR")), HasSubstr("MASTER_ADDR is missing"));
  EXPECT_THAT(error_in(without(kOpenMpi, "OMPI_COMM_WORLD_SIZE")), HasSubstr("OMPI_COMM_WORLD_SIZE is missing"));
  EXPECT_THAT(error_in({{"PMI_RANK", "1"}}), HasSubstr("PMI_SIZE is missing"));
  EXPECT_THAT(error_in(without(kSlurm, "SLURM_LOCALID")), HasSubstr("SLURM_LOCALID is missing"));
  EXPECT_THAT(error_in(with(kSlurm, "SLURM_STEP_TASKS_PER_NODE", "4(x1)")), HasSubstr("4(x1)"));
}

TEST(Launch, FirstHostOfASlurmList) {
  EXPECT_EQ(first_host("node1"), "node1");
  EXPECT_EQ(first_host("login,node[3-4]"), "login");
  EXPECT_EQ(first_host("node[003-007,9],login"), "node003");
  EXPECT_EQ(first_host("node[9,12]"), "node9");
  EXPECT_EQ(first_host("rack[1-2]-node[03,4]"), "rack1-node03");
  EXPECT_THROW(first_host("node[3"), Error);
}

TEST(Launch, ARunHasALargestNumberOfRanks) {
  const auto world = [](const char* ranks) {
    return with(with(kTorchrun, "WORLD_SIZE", ranks), "LOCAL_WORLD_SIZE", "8");
  };
  EXPECT_EQ(launch_in(world("65536")).world, kMostRanks);
  EXPECT_THAT(error_in(world("65537")), HasSubstr("there are 65537 ranks; a run has at most 65536"));
}

}  // namespace
}  // namespace agoq::comm
