#include "cli/environment.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include "base/text.h"
#include "cli/blas_core.h"
#include "comm/gpu_link.h"
#include "device/gpu.h"
#include "device/gpu_queues.h"

namespace agoq::cli {
namespace {

constexpr const char* kVariables[] = {"OPENBLAS_CORETYPE", "GOMP_SPINCOUNT", kGpuQueuesVariable, "NCCL_NVLS_ENABLE"};
// Tells the program that starts again which of them it has chosen the first time; there only in between.
constexpr const char* kChosenBefore = "AGOQ_CHOSEN_VARIABLES";

std::vector<std::string>& chosen() {
  static std::vector<std::string> names;
  return names;
}

void recall_chosen() {
  const char* before = std::getenv(kChosenBefore);
  if (before == nullptr) return;
  chosen() = split(before, ' ');
  unsetenv(kChosenBefore);
}

bool set_if_unset(const char* name, const char* value) {
  if (std::getenv(name) != nullptr || setenv(name, value, 0) != 0) return false;
  chosen().emplace_back(name);
  return true;
}

// A value that does not help is found set at the next start: the program starts again once at most.
bool choose_blas_core() {
  const std::string core(faster_blas_core());
  return !core.empty() && set_if_unset("OPENBLAS_CORETYPE", core.c_str());
}

bool choose_spin_count() {
  return std::getenv("OMP_WAIT_POLICY") == nullptr && set_if_unset("GOMP_SPINCOUNT", "10000");
}

}  // namespace

void settle_environment(char** argv) {
  recall_chosen();
  if constexpr (kCudaBuild) set_if_unset(kGpuQueuesVariable, std::to_string(kMostGpuQueues).c_str());
  if constexpr (comm::kNcclBuild) set_if_unset("NCCL_NVLS_ENABLE", "0");
  const bool core = choose_blas_core(), spin = choose_spin_count();
  if (!core && !spin) return;
  setenv(kChosenBefore, join(chosen(), " ").c_str(), 1);
  execv("/proc/self/exe", argv);
  unsetenv(kChosenBefore);  // starting again has failed, so the program goes on as it is: slower, not wrong
}

std::vector<EnvironmentVariable> settled_environment() {
  std::vector<EnvironmentVariable> variables;
  for (const char* name : kVariables) {
    const char* value = std::getenv(name);
    if (value == nullptr) continue;
    const bool ours = std::find(chosen().begin(), chosen().end(), name) != chosen().end();
    variables.push_back({name, value, ours});
  }
  return variables;
}

std::string chosen_variables() {
  std::vector<std::string> settings;
  for (const EnvironmentVariable& variable : settled_environment())
    if (variable.chosen) settings.push_back(variable.name + "=" + variable.value);
  return settings.empty() ? "" : "set     " + join(settings, " ");
}

}  // namespace agoq::cli
