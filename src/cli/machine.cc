#include "cli/machine.h"

#include <cblas.h>
#include <dlfcn.h>
#include <fmt/format.h>
#include <omp.h>
#include <sys/statvfs.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <set>
#include <sstream>

#include "agoq/agoq.h"
#include "base/build_id.h"
#include "base/error.h"
#include "base/text.h"
#include "cli/blas_core.h"
#include "cli/environment.h"
#include "cli/python.h"
#include "comm/gpu/nccl_cuda.h"
#include "device/gpu.h"
#include "device/gpu_queues.h"
#include "ops/attention/attention_check.h"
#include "ops/library_versions.h"

namespace agoq::cli {
namespace {

namespace fs = std::filesystem;

// "key : value" lines, as /proc writes them; the first of each key.
std::map<std::string, std::string> read_pairs(const char* path) {
  std::map<std::string, std::string> pairs;
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);)
    if (const size_t colon = line.find(':'); colon != std::string::npos)
      pairs.emplace(trim(std::string_view(line).substr(0, colon)), trim(std::string_view(line).substr(colon + 1)));
  return pairs;
}

std::string kibibytes(const std::string& text) {
  uint64_t count = 0;
  std::istringstream(text) >> count;
  return human_bytes(count * 1024);
}

Finding cpu() {
  auto info = read_pairs("/proc/cpuinfo");
  std::string model = info.contains("model name") ? info["model name"] : "unknown model";
  return {"CPU", fmt::format("{}, {} threads usable", model, omp_get_num_procs())};
}

Finding instructions() {
  auto info = read_pairs("/proc/cpuinfo");
  std::istringstream words(info["flags"]);
  std::set<std::string> flags;
  for (std::string flag; words >> flag;) flags.insert(flag);
  std::vector<std::string> found;
  for (const char* name :
       {"sse4_2", "avx", "avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "amx_bf16"})
    if (flags.contains(name)) found.emplace_back(name);
  return {"instruction sets", found.empty() ? "none of the x86 vector extensions" : join(found, " ")};
}

Finding memory() {
  auto info = read_pairs("/proc/meminfo");
  return {"memory", fmt::format("{}, {} available", kibibytes(info["MemTotal"]), kibibytes(info["MemAvailable"]))};
}

Finding disk() {
  struct statvfs space {};
  if (statvfs(".", &space) != 0) return {"disk space here", "unknown"};
  return {"disk space here", human_bytes(uint64_t{space.f_bavail} * space.f_frsize) + " free"};
}

// The program has asked for better kernels already where it could (cli/environment.h), so here it could not.
std::string blas_remedy(std::string_view core) {
  const char* asked = std::getenv("OPENBLAS_CORETYPE");
  if (asked && asked != core)
    return fmt::format("unset OPENBLAS_CORETYPE, which asks for {}; this CPU can run {}", asked, core);
  return fmt::format(
      "an OpenBLAS that contains kernels for {} (built with DYNAMIC_ARCH): sudo apt-get install libopenblas0-openmp",
      core);
}

Finding openblas() {
  Finding finding{"OpenBLAS", fmt::format("{}, kernels for {}, {} threads", trim(openblas_get_config()),
                                          openblas_get_corename(), openblas_get_num_threads())};
  if (const std::string_view faster = faster_blas_core(); !faster.empty()) {
    finding.state = State::Slow;
    finding.remedy = blas_remedy(faster);
  }
  return finding;
}

Finding openmp() {
  return {"OpenMP", fmt::format("version {}, {} threads", _OPENMP, omp_get_max_threads())};
}

// Too few queues stop jobs over several GPUs (comm/gpu/nccl_cuda.cc).
Finding environment_variable(const EnvironmentVariable& variable) {
  Finding finding{variable.name, variable.value + (variable.chosen ? ", chosen by agoq" : ", of the environment")};
  if (kCudaBuild && variable.name == kGpuQueuesVariable) {
    finding.remedy = why_too_few_gpu_queues(variable.value.c_str());
    if (!finding.remedy.empty()) finding.state = State::Unfit;
  }
  return finding;
}

struct Library {
  const char* what;
  std::vector<const char*> names;
  const char* remedy;
};

Finding library(const Library& wanted) {
  for (const char* name : wanted.names)
    // Never unloaded: what such a library keeps for itself would look like a leak without it.
    if (dlopen(name, RTLD_LAZY | RTLD_LOCAL | RTLD_NODELETE)) return {wanted.what, name};
  return {wanted.what, "not found (this build does not need it)", State::Absent, wanted.remedy};
}

// Of a build without CUDA: what a build with it would find here.
std::vector<Finding> libraries_here() {
  const Library wanted[] = {
      {"CUDA runtime",
       {"libcudart.so.13", "libcudart.so.12", "libcudart.so"},
       "https://developer.nvidia.com/cuda-downloads"},
      {"cuBLASLt", {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"}, "comes with CUDA"},
      {"cuDNN", {"libcudnn.so.9", "libcudnn.so"}, "https://developer.nvidia.com/cudnn-downloads"},
      {"NCCL", {"libnccl.so.2", "libnccl.so"}, "sudo apt-get install libnccl2 (NVIDIA's repository)"},
  };
  std::vector<Finding> findings;
  for (const Library& one : wanted) findings.push_back(library(one));
  return findings;
}

// Versions that are loaded, beside those of the headers that this program was compiled with.
std::vector<Finding> loaded_libraries() {
  std::vector<Finding> findings;
  if constexpr (kCudaBuild) {
    std::vector<LibraryVersion> libraries = {cuda_runtime_version(), ops::cublaslt_version(), ops::cudnn_version()};
    if constexpr (comm::kNcclBuild) libraries.push_back(comm::nccl_version());
    for (const LibraryVersion& one : libraries) {
      Finding finding{one.name, one.text()};
      if (!one.fits()) {
        finding.state = State::Unfit;
        finding.remedy = one.misfit() + ": put the newer one first in LD_LIBRARY_PATH, or build again on this machine";
      }
      findings.push_back(std::move(finding));
    }
  }
  return findings;
}

// The test that a run makes before step 0 (ops/attention/attention_check.h), with the heads of LLaMA3-8B and every
// path.
[[maybe_unused]] Finding attention(Gpu& gpu) {
  const char* what = "attention by cuDNN";
  if constexpr (kCudaBuild) {
    try {
      ops::require_right_attention(gpu, {{32, 8, 128}, /*window=*/4096}, {.packed = true});
    } catch (const Error& error) {
      return {what, error.what(), State::Unfit, "put another version of cuDNN first in LD_LIBRARY_PATH"};
    }
  }
  return {what, "equal to our own kernels: dense and packed, with and without a window, forward and backward"};
}

Finding gpus() {
  int count = 0;
  std::error_code ignored;
  while (fs::exists(fmt::format("/dev/nvidia{}", count), ignored)) ++count;
  std::ifstream in("/proc/driver/nvidia/version");
  std::string driver;
  std::getline(in, driver);
  if (count == 0) return {"NVIDIA GPUs", "none; training runs on the CPU", State::Absent};
  return {"NVIDIA GPUs", fmt::format("{}; {}", count, driver.empty() ? "driver version unknown" : driver)};
}

// The GPU that training would use and whether it computes rightly, or why it would not be used.
std::vector<Finding> usable_gpu() {
  if constexpr (kCudaBuild) {
    if (const std::string problem = why_no_gpu(); !problem.empty())
      return {{"training on a GPU", problem, State::Absent}};
    Gpu gpu;
    return {{"training on a GPU", fmt::format("{}, {} of {} free", gpu.name(), human_bytes(gpu.free_memory()),
                                              human_bytes(gpu.total_memory()))},
            attention(gpu)};
  }
  return {{"training on a GPU", "this build has no CUDA backend", State::Absent,
           "build it again where the CUDA toolkit and cuDNN are installed"}};
}

std::vector<Finding> python() {
  try {
    const Python python = find_python();
    const PythonVersions versions = examine_python(python);
    std::vector<Finding> findings = {{"Python", versions.python + " at " + python.interpreter}};
    for (const auto& [name, version] : versions.packages) {
      const bool present = version != "-";
      findings.push_back({"Python: " + name, present ? version : "not installed; data, report and tokenizers use it",
                          present ? State::Ok : State::Absent,
                          "make venv, or set AGOQ_PYTHON to an interpreter that has it"});
    }
    return findings;
  } catch (const Error& error) {
    return {{"Python", error.what(), State::Missing, "sudo apt-get install python3 python3-venv"}};
  }
}

}  // namespace

std::vector<Finding> examine_machine() {
  std::vector<Finding> findings = {{"agoq", fmt::format("{}, build {}, backends: {}", kVersion,
                                                        build_id().substr(0, 12), kCudaBuild ? "cpu, cuda" : "cpu")},
                                   cpu(),
                                   instructions(),
                                   memory(),
                                   disk(),
                                   openblas(),
                                   openmp()};
  for (const EnvironmentVariable& variable : settled_environment()) findings.push_back(environment_variable(variable));
  findings.push_back(gpus());
  const auto add = [&](std::vector<Finding> more) {
    std::move(more.begin(), more.end(), std::back_inserter(findings));
  };
  add(usable_gpu());
  add(kCudaBuild ? loaded_libraries() : libraries_here());
  add(python());
  return findings;
}

}  // namespace agoq::cli
