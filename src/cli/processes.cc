#include "cli/processes.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <thread>

#include "base/build_id.h"
#include "base/log.h"
#include "cli/program.h"
#include "comm/launch/connect.h"

namespace agoq::cli {
namespace {

using std::chrono::seconds;

// A process that knows that the run is over, but whose main thread is stuck (in a call of a library, say), ends by
// itself.
constexpr seconds kGrace{30};

// So that a reader of the output of all sees who says what, and a long text once.
std::string told_by(const comm::Launch& launch, const std::string& text) {
  if (launch.world == 1) return text;
  return fmt::format("[rank {}] {}", launch.rank, launch.rank == 0 ? text : text.substr(0, text.find('\n')));
}

void end_if_stuck(const std::string& message) {
  std::thread([message] {
    std::this_thread::sleep_for(kGrace);
    fmt::print(stderr, "agoq: error: {}; this process did not end by itself\n", message);
    _exit(kFailed);
  }).detach();
}

comm::ConnectOptions options_of(const comm::Launch& launch, const train::TrainConfig& config) {
  using Minutes = std::chrono::duration<double, std::ratio<60>>;
  const auto timeouts = std::chrono::duration_cast<comm::Duration>(Minutes(config.distributed_timeout_minutes));
  comm::ConnectOptions options;
  options.key = comm::find_job_key(launch, config.rendezvous_open);
  options.agreement = {{"the build", build_id()}};
  options.rendezvous_timeout = options.timeouts.wait = timeouts;
  // Heard of no more before it is missed: else whoever waits for it is told what it waited for when it was last heard.
  options.timeouts.silence = std::min<comm::Duration>(options.timeouts.silence, timeouts / 2);
  options.on_fault = [launch](const std::string& cause) { end_if_stuck(told_by(launch, cause)); };
  return options;
}

}  // namespace

RunProcesses::RunProcesses(const train::TrainConfig& config) : launch_(comm::find_launch()) {
  require(config.distributed_timeout_minutes > 0, "--distributed-timeout-minutes must be positive, not {}",
          config.distributed_timeout_minutes);
  set_log_rank(launch_.rank, launch_.world);
  if (alone()) return;
  try {
    const comm::ConnectOptions options = options_of(launch_, config);
    if (is_rank0() && options.key.source == comm::kNoSecret)
      log_warning("--rendezvous-open: whoever reaches port {} can join this run", launch_.master_port);
    transport_ = comm::connect(launch_, options);
  } catch (const std::exception& error) {
    fail("{}", told_by(launch_, text_of(error)));
  }
}

void RunProcesses::run(const std::function<void()>& work) const {
  if (!transport_) return work();
  try {
    work();
  } catch (const std::exception& error) {
    const std::string text = text_of(error);
    transport_->abandon(text);
    fail("{}", told_by(launch_, text));
  }
}

}  // namespace agoq::cli
