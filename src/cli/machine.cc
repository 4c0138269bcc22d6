#include "cli/machine.h"

#include <cblas.h>
#include <dlfcn.h>
#include <fmt/format.h>
#include <omp.h>
#include <sys/statvfs.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>

#include "agoq/agoq.h"
#include "base/error.h"
#include "base/text.h"
#include "cli/python.h"
#include "comm/nccl_cuda.h"
#include "device/gpu.h"

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

Finding openblas() {
  return {"OpenBLAS", fmt::format("{}, kernels for {}, {} threads", trim(openblas_get_config()),
                                  openblas_get_corename(), openblas_get_num_threads())};
}

Finding openmp() {
  return {"OpenMP", fmt::format("version {}, {} threads", _OPENMP, omp_get_max_threads())};
}

struct Library {
  const char* what;
  std::vector<const char*> names;
  const char* remedy;
  bool cuda = false;  // the CUDA backend needs it
};

Finding library(const Library& wanted) {
  for (const char* name : wanted.names)
    // Never unloaded: what such a library keeps for itself would look like a leak without it.
    if (dlopen(name, RTLD_LAZY | RTLD_LOCAL | RTLD_NODELETE)) return {wanted.what, name};
  const bool needed = kCudaBuild && wanted.cuda;
  return {wanted.what, needed ? "not found" : "not found (this build does not need it)", false, needed, wanted.remedy};
}

Finding nccl() {
  if constexpr (comm::kNcclBuild) return {"NCCL", comm::nccl_version()};
  return library({"NCCL", {"libnccl.so.2", "libnccl.so"}, "sudo apt-get install libnccl2 (NVIDIA's repository)"});
}

std::vector<Finding> optional_libraries() {
  const Library wanted[] = {
      {"CUDA runtime",
       {"libcudart.so.13", "libcudart.so.12", "libcudart.so"},
       "https://developer.nvidia.com/cuda-downloads"},
      {"cuBLASLt", {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"}, "comes with CUDA", true},
      {"cuDNN", {"libcudnn.so.9", "libcudnn.so"}, "https://developer.nvidia.com/cudnn-downloads", true},
  };
  std::vector<Finding> findings;
  for (const Library& one : wanted) findings.push_back(library(one));
  findings.push_back(nccl());
  return findings;
}

Finding gpus() {
  int count = 0;
  std::error_code ignored;
  while (fs::exists(fmt::format("/dev/nvidia{}", count), ignored)) ++count;
  std::ifstream in("/proc/driver/nvidia/version");
  std::string driver;
  std::getline(in, driver);
  if (count == 0) return {"NVIDIA GPUs", "none; training runs on the CPU", false};
  return {"NVIDIA GPUs", fmt::format("{}; {}", count, driver.empty() ? "driver version unknown" : driver)};
}

// The GPU that training would use, or why it would not.
Finding usable_gpu() {
  if constexpr (kCudaBuild) {
    if (const std::string problem = why_no_gpu(); !problem.empty()) return {"training on a GPU", problem, false};
    const Gpu gpu;
    return {"training on a GPU", fmt::format("{}, {} of {} free", gpu.name(), human_bytes(gpu.free_memory()),
                                             human_bytes(gpu.total_memory()))};
  }
  return {"training on a GPU", "this build has no CUDA backend", false, false,
          "build it again where the CUDA toolkit and cuDNN are installed"};
}

std::vector<Finding> python() {
  try {
    const Python python = find_python();
    const PythonVersions versions = examine_python(python);
    std::vector<Finding> findings = {{"Python", versions.python + " at " + python.interpreter}};
    for (const auto& [name, version] : versions.packages) {
      const bool present = version != "-";
      findings.push_back({"Python: " + name, present ? version : "not installed; data, report and tokenizers use it",
                          present, false, "make venv, or set AGOQ_PYTHON to an interpreter that has it"});
    }
    return findings;
  } catch (const Error& error) {
    return {{"Python", error.what(), false, true, "sudo apt-get install python3 python3-venv"}};
  }
}

}  // namespace

std::vector<Finding> examine_machine() {
  std::vector<Finding> findings = {
      {"agoq", fmt::format("{}, backends: {}", kVersion, kCudaBuild ? "cpu, cuda" : "cpu")},
      cpu(),
      instructions(),
      memory(),
      disk(),
      openblas(),
      openmp(),
      gpus(),
      usable_gpu()};
  for (Finding& f : optional_libraries()) findings.push_back(std::move(f));
  for (Finding& f : python()) findings.push_back(std::move(f));
  return findings;
}

}  // namespace agoq::cli
