#include "train/coordinator.h"

#include <omp.h>

#include <algorithm>
#include <future>

#include "base/error.h"
#include "comm/all_gather_strings.h"

namespace agoq::train {
namespace {

constexpr uint32_t kChannel = 1000;  // no group of tensors has it

}  // namespace

std::vector<std::string> Coordinator::gather(const std::string& mine) const {
  if (alone()) return {mine};
  return comm::all_gather_strings(*transport_, kChannel, mine);
}

std::string Coordinator::broadcast(const std::string& of_rank0) const {
  return gather(is_rank0() ? of_rank0 : "").front();
}

bool Coordinator::any(bool mine) const {
  const std::vector<std::string> all = gather(mine ? "y" : "");
  return std::any_of(all.begin(), all.end(), [](const std::string& text) { return !text.empty(); });
}

std::string Coordinator::problem(const std::function<void()>& work) const {
  std::string mine;
  try {
    work();
  } catch (const std::exception& error) {
    mine = error.what();
    if (mine.empty()) mine = "unknown";
  }
  const std::vector<std::string> all = gather(mine);
  const auto first = std::find_if(all.begin(), all.end(), [](const std::string& text) { return !text.empty(); });
  return first == all.end() ? "" : *first;
}

void Coordinator::at_length(const std::function<void()>& work, std::chrono::milliseconds still_there) const {
  std::future<void> done = std::async(std::launch::async, [&, threads = omp_get_max_threads()] {
    omp_set_num_threads(threads);  // a setting of each thread
    work();
  });
  while (any(done.wait_for(still_there) != std::future_status::ready)) {
  }
  const std::string error = problem([&] { done.get(); });
  require(error.empty(), "{}", error);
}

void Coordinator::agree(const comm::ConsistencyCheck& items) const {
  if (!alone()) comm::agree(*transport_, kChannel, items);
}

}  // namespace agoq::train
