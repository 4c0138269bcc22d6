#include "comm/launch/launch.h"

#include <charconv>
#include <cstdint>
#include <cstdlib>
#include <optional>

#include "base/checksum.h"
#include "base/error.h"
#include "base/text.h"
#include "comm/limits.h"

namespace agoq::comm {
namespace {

// Below the ports that systems hand out to connections, so that ours is free unless someone listens there.
constexpr int kFirstPort = 20000, kPorts = 12000;

// Of the kPorts ones, the same for all processes of a job and most likely another for another job.
int port_of_job(std::string_view job) {
  const uint64_t hash = xxh3({reinterpret_cast<const uint8_t*>(job.data()), job.size()});
  return kFirstPort + static_cast<int>(hash % kPorts);
}

// MASTER_PORT itself is taken by torchrun's agent.
int port_beside(int taken) {
  constexpr int kApart = 1000;
  return kFirstPort + ((taken - kFirstPort + kApart) % kPorts + kPorts) % kPorts;
}

std::optional<int> parse(std::string_view text) {
  int value = 0;
  const auto [rest, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || rest != text.data() + text.size() || value < 0) return std::nullopt;
  return value;
}

class Variables {
 public:
  explicit Variables(const Lookup& lookup) : lookup_(lookup) {}

  bool has(const char* name) const {
    const char* const value = lookup_(name);
    return value != nullptr && *value != '\0';
  }

  std::string text(const char* name) const {
    require(has(name), "the environment variable {} is missing, although others of its launcher are set", name);
    return lookup_(name);
  }

  // The first of these that is set, or "".
  std::string first(std::initializer_list<const char*> names) const {
    for (const char* name : names)
      if (has(name)) return lookup_(name);
    return "";
  }

  int number(const char* name) const {
    const std::string value = text(name);
    const std::optional<int> number = parse(value);
    require(number.has_value(), "the environment variable {} is '{}', not a number", name, value);
    return *number;
  }
  int number(const char* name, int otherwise) const { return has(name) ? number(name) : otherwise; }

 private:
  const Lookup& lookup_;
};

Launch torchrun(const Variables& env) {
  const int port = env.number("MASTER_PORT");
  return {.rank = env.number("RANK"),
          .world = env.number("WORLD_SIZE"),
          .local_rank = env.number("LOCAL_RANK", 0),  // one process a host sets neither
          .local_world = env.number("LOCAL_WORLD_SIZE", 1),
          .master_addr = env.text("MASTER_ADDR"),
          .master_port = port_beside(port),
          .job = fmt::format("{} {}", env.first({"TORCHELASTIC_RUN_ID"}), port),
          .launcher = "torchrun"};
}

// Of Open MPI 4's mpirun: "1631780864.0;tcp://192.0.2.2,10.1.0.1:49975;tcp6://..." -> "192.0.2.2". Else "".
std::string host_of_uri(std::string_view uri) {
  constexpr std::string_view kScheme = "tcp://";
  const size_t scheme = uri.find(kScheme);
  if (scheme == std::string_view::npos) return "";
  const std::string_view hosts = uri.substr(scheme + kScheme.size());
  return std::string(hosts.substr(0, hosts.find_first_of(",:")));
}

// Of Open MPI 5's mpirun, which names the job after itself: "prterun-node-1-12003@1" -> "node-1". Else "".
std::string host_of_namespace(std::string_view job) {
  const size_t tool = job.find('-'), number = job.rfind('@');
  const size_t process = job.substr(0, number).rfind('-');
  if (number == std::string_view::npos || tool == std::string_view::npos || process <= tool + 1) return "";
  if (!parse(job.substr(process + 1, number - process - 1))) return "";
  return std::string(job.substr(tool + 1, process - tool - 1));
}

// Where mpirun runs, and with it rank 0, unless a host file begins with another host. PMIX_SERVER_URI* are of no use:
// in them each rank's own host has its daemon's address.
std::string host_of_mpirun(const Variables& env) {
  std::string host = host_of_uri(env.first({"OMPI_MCA_orte_hnp_uri"}));
  if (host.empty()) host = host_of_namespace(env.first({"PMIX_NAMESPACE"}));
  require(!host.empty(),
          "the host of rank 0 is not to be found in the environment: set AGOQ_MASTER_ADDR to its name or address");
  return host;
}

// Inside a Slurm allocation mpirun and mpiexec begin with its first host, wherever they run themselves.
std::string first_of_allocation(const Variables& env) {
  return env.has("SLURM_JOB_NODELIST") ? first_host(env.text("SLURM_JOB_NODELIST")) : "";
}

Launch open_mpi(const Variables& env) {
  Launch launch{.rank = env.number("OMPI_COMM_WORLD_RANK"),
                .world = env.number("OMPI_COMM_WORLD_SIZE"),
                .local_rank = env.number("OMPI_COMM_WORLD_LOCAL_RANK"),
                .local_world = env.number("OMPI_COMM_WORLD_LOCAL_SIZE"),
                .launcher = "Open MPI"};
  launch.job = env.first({"OMPI_MCA_ess_base_jobid", "PMIX_NAMESPACE", "OMPI_MCA_orte_hnp_uri"});
  launch.master_port = port_of_job(launch.job);
  if (launch.local_world == launch.world || env.has("AGOQ_MASTER_ADDR")) return launch;
  launch.master_addr = first_of_allocation(env);
  if (launch.master_addr.empty()) launch.master_addr = host_of_mpirun(env);
  return launch;
}

Launch mpich(const Variables& env) {
  Launch launch{.rank = env.number("PMI_RANK"), .world = env.number("PMI_SIZE"), .launcher = "MPICH"};
  launch.local_rank = env.number("MPI_LOCALRANKID", launch.rank);
  launch.local_world = env.number("MPI_LOCALNRANKS", launch.world);
  // It names no job, so without a batch system's name all of a user's jobs on a host share a port.
  launch.job = env.first({"PMI_JOBID", "SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "USER"});
  launch.master_port = port_of_job(launch.job);
  if (launch.local_world == launch.world) return launch;
  launch.master_addr = first_of_allocation(env);
  require(!launch.master_addr.empty() || env.has("AGOQ_MASTER_ADDR"),
          "mpiexec has started ranks on several hosts, but does not tell where rank 0 is: "
          "mpiexec -genv AGOQ_MASTER_ADDR HOST ... does, HOST being the name or address of the first");
  return launch;
}

// "4(x2),3" is 4, 4 and 3 tasks on three nodes.
int tasks_of_node(const std::string& per_node, int node) {
  for (const std::string& run : split(per_node, ',')) {
    const size_t open = run.find("(x");
    const std::optional<int> tasks = parse(std::string_view(run).substr(0, open));
    const std::optional<int> nodes =
        open == std::string::npos ? 1 : parse(std::string_view(run).substr(open + 2, run.size() - open - 3));
    if (!tasks || !nodes) break;
    if (node < *nodes) return *tasks;
    node -= *nodes;
  }
  fail("'{}' does not tell the tasks of node {}", per_node, node);
}

Launch slurm(const Variables& env) {
  Launch launch{.rank = env.number("SLURM_PROCID"),
                .world = env.number("SLURM_STEP_NUM_TASKS"),
                .local_rank = env.number("SLURM_LOCALID"),
                .launcher = "Slurm"};
  launch.local_world = tasks_of_node(env.text("SLURM_STEP_TASKS_PER_NODE"), env.number("SLURM_NODEID", 0));
  launch.job = env.text("SLURM_JOB_ID") + "." + env.text("SLURM_STEP_ID");
  launch.master_port = port_of_job(launch.job);
  if (env.has("SLURM_STEP_NODELIST"))
    launch.master_addr = first_host(env.text("SLURM_STEP_NODELIST"));
  else
    launch.master_addr = env.text("SLURM_LAUNCH_NODE_IPADDR");
  return launch;
}

bool any_of(const Variables& env, std::initializer_list<const char*> names) {
  return !env.first(names).empty();
}

// The shell of an salloc or sbatch has most of srun's variables, but is no task of a step.
bool in_slurm_step(const Variables& env) {
  return env.has("SLURM_PROCID") && env.has("SLURM_STEP_ID") && env.number("SLURM_STEP_NUM_TASKS", 1) > 1;
}

// What the launcher around torchrun says of this process.
struct Around {
  std::string_view launcher;
  int rank, world;
};
std::optional<Around> around_torchrun(const Variables& env) {
  if (env.has("OMPI_COMM_WORLD_RANK") && env.has("OMPI_COMM_WORLD_SIZE"))
    return Around{"Open MPI", env.number("OMPI_COMM_WORLD_RANK"), env.number("OMPI_COMM_WORLD_SIZE")};
  if (env.has("MPI_LOCALRANKID") && env.has("PMI_RANK") && env.has("PMI_SIZE"))
    return Around{"MPICH", env.number("PMI_RANK"), env.number("PMI_SIZE")};
  if (in_slurm_step(env)) return Around{"Slurm", env.number("SLURM_PROCID"), env.number("SLURM_STEP_NUM_TASKS")};
  return std::nullopt;
}

// By which another launcher's environment is known: what `env -u` has to take away for torchrun to count alone.
std::string options_without_launchers(const Variables& env) {
  std::string options;
  for (const char* name : {"SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK"})
    if (env.has(name)) options += fmt::format(" -u {}", name);
  return options;
}

// RANK and WORLD_SIZE that are left over in a shell would make each process of an mpirun a world of its own. A torchrun
// in each of its processes makes the world larger, or gives the same processes other ranks.
void refuse_left_over(const Variables& env, const Launch& launch) {
  const std::optional<Around> around = around_torchrun(env);
  if (!around || launch.world > around->world) return;
  const bool renumbered = launch.rank == around->rank || env.has("TORCHELASTIC_RUN_ID");
  require(launch.world == around->world && renumbered,
          "RANK={} and WORLD_SIZE={}, which torchrun sets, contradict {}, for which this is rank {} of {}. If they are "
          "left over from another job: unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE TORCHELASTIC_RUN_ID. If you "
          "run torchrun in a shell that {} has started: env{} torchrun ...",
          launch.rank, launch.world, around->launcher, around->rank, around->world, around->launcher,
          options_without_launchers(env));
}

// Launchers start each other: an mpirun inside a Slurm allocation starts its daemons by srun, which leaves variables,
// and srun may stand in for MPICH's mpiexec.
Launch find_launcher(const Variables& env) {
  if (any_of(env, {"RANK", "WORLD_SIZE", "LOCAL_RANK"})) {
    Launch launch = torchrun(env);
    refuse_left_over(env, launch);
    return launch;
  }
  if (any_of(env, {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"})) return open_mpi(env);
  const bool by_mpiexec = any_of(env, {"PMI_RANK", "PMI_SIZE"});
  const bool by_srun = in_slurm_step(env);
  if (by_mpiexec && (env.has("MPI_LOCALRANKID") || !by_srun)) return mpich(env);
  if (by_srun) return slurm(env);
  return {};
}

}  // namespace

std::string first_host(std::string_view list) {
  const size_t open = list.find_first_of("[,");
  if (open == std::string_view::npos || list[open] == ',') return std::string(list.substr(0, open));
  const size_t close = list.find(']', open);
  require(close != std::string_view::npos, "'{}' is not a list of hosts: a bracket does not close", list);
  const std::string_view inside = list.substr(open + 1, close - open - 1);
  // What follows may have brackets of its own: "rack[1-2]node[3,4]".
  const std::string rest = first_host(list.substr(close + 1));
  return fmt::format("{}{}{}", list.substr(0, open), inside.substr(0, inside.find_first_of("-,")), rest);
}

Launch find_launch(const Lookup& environment) {
  const Variables env(environment);
  Launch launch = find_launcher(env);
  if (launch.local_world == launch.world) launch.master_addr = Launch{}.master_addr;
  if (env.has("AGOQ_MASTER_ADDR")) launch.master_addr = env.text("AGOQ_MASTER_ADDR");
  launch.master_port = env.number("AGOQ_MASTER_PORT", launch.master_port);
  require(launch.world >= 1 && launch.rank < launch.world, "{} says that this is rank {} of {}", launch.launcher,
          launch.rank, launch.world);
  require(launch.world <= kMostRanks, "{} says that there are {} ranks; a run has at most {}", launch.launcher,
          launch.world, kMostRanks);
  require(launch.local_rank < launch.local_world && launch.local_world <= launch.world,
          "{} says that this is local rank {} of {} on its host, and rank {} of {} in all", launch.launcher,
          launch.local_rank, launch.local_world, launch.rank, launch.world);
  require(launch.master_port < 1 << 16, "{} is not a port; AGOQ_MASTER_PORT is between 1 and 65535",
          launch.master_port);
  return launch;
}

Launch find_launch() {
  return find_launch([](const char* name) -> const char* { return std::getenv(name); });
}

}  // namespace agoq::comm
