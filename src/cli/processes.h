// The processes of one run: found in what the launcher says, and connected.
#pragma once

#include <functional>
#include <memory>

#include "comm/launch/launch.h"
#include "comm/transport/transport.h"
#include "train/trainer.h"

namespace agoq::cli {

class RunProcesses {
 public:
  // Waits for all others to come. One process, if no launcher says otherwise.
  explicit RunProcesses(const train::TrainConfig& config);

  bool alone() const { return launch_.world == 1; }
  bool is_rank0() const { return launch_.rank == 0; }  // which prints for all
  train::Processes for_trainer() const { return {transport_.get(), launch_.local_rank, launch_.local_world}; }
  // Does the work; if it ends with an error, all other processes end with it, too. The leading one throws the whole of
  // its text, the others their rank and its first line.
  void run(const std::function<void()>& work) const;

 private:
  comm::Launch launch_;
  std::unique_ptr<comm::Transport> transport_;  // null: alone
};

}  // namespace agoq::cli
