// Which process of how many this is: found in what a launcher leaves in the environment.
#pragma once

#include <functional>
#include <string>
#include <string_view>

namespace agoq::comm {

struct Launch {
  int rank = 0, world = 1;
  int local_rank = 0, local_world = 1;    // among the processes of this host
  std::string master_addr = "localhost";  // the host of rank 0, where the ranks meet
  int master_port = 0;                    // our own, not the launcher's
  std::string job = {};                   // what the launcher calls it, the same for all ranks; "": nothing
  std::string launcher = "none";          // torchrun, Open MPI, MPICH or Slurm: for messages
};

// The value of an environment variable, or null.
using Lookup = std::function<const char*(const char* name)>;

// Reads the variables of torchrun, Open MPI's mpirun, MPICH's mpiexec and Slurm's srun, which come in this order.
// AGOQ_MASTER_ADDR and AGOQ_MASTER_PORT overrule what they say of the meeting point. None of them set: one process.
// Ranks that are all on one host meet on its loopback. Throws on variables that contradict each other or are set in
// part.
Launch find_launch(const Lookup& environment);
Launch find_launch();  // in this process's environment

// "node[003-007,9],login1" -> "node003". Throws on brackets that do not close.
std::string first_host(std::string_view slurm_node_list);

}  // namespace agoq::comm
