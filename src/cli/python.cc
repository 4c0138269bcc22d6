#include "cli/python.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>
#include <sstream>

#include "base/error.h"
#include "base/text.h"
#include "cli/line_process.h"

namespace agoq::cli {
namespace {

namespace fs = std::filesystem;

// The folder that holds python/agoq: the source tree around build/agoq, or PREFIX/share/agoq beside PREFIX/bin/agoq.
fs::path project_folder() {
  std::error_code ignored;
  const fs::path program = fs::read_symlink("/proc/self/exe", ignored);
  fs::path folder = program.parent_path();
  for (int up = 0; up < 4 && folder.has_relative_path(); ++up, folder = folder.parent_path())
    for (const fs::path& candidate : {folder, folder / "share/agoq"})
      if (fs::exists(candidate / "python/agoq/__init__.py", ignored)) return candidate;
  fail("cannot find AGoQ's Python modules (python/agoq) near {}; run the program from the folder it was built in",
       program.string());
}

// The names in requirements.txt, without their versions.
std::vector<std::string> required_packages(const std::string& modules) {
  std::ifstream in(modules + "/requirements.txt");
  std::vector<std::string> names;
  for (std::string line; std::getline(in, line);)
    if (const std::string name = line.substr(0, line.find_first_of(" <>=!~;#")); !name.empty()) names.push_back(name);
  return names;
}

// Python looks into the current folder first, where a file may have the name of any module.
constexpr const char* kLeaveCurrentFolder = "import sys; sys.path = [folder for folder in sys.path if folder]";

// Runs the module that its second argument names, found in the folder that is the first and nowhere else.
constexpr const char* kRunScript = R"(
sys.path.insert(0, sys.argv.pop(1))
import runpy
runpy.run_module('agoq', run_name='__main__', alter_sys=True)
)";

// Answers a line of package names with Python's version and theirs; a Python that is too old has no use for any.
constexpr const char* kVersionsScript = R"(
import importlib.metadata as metadata
def version(name):
    if sys.version_info < (3, 10): return '-'
    try: return metadata.version(name)
    except metadata.PackageNotFoundError: return '-'
print(sys.version.split()[0], *map(version, sys.stdin.readline().split()))
)";

// The project's own Python, and those of the PATH.
std::vector<std::string> candidates(const fs::path& project) {
  std::vector<std::string> found;
  const auto add = [&](const fs::path& program) {
    if (access(program.c_str(), X_OK) == 0) found.push_back(program.string());
  };
  add(project / ".venv/bin/python");
  const char* path = std::getenv("PATH");
  for (const std::string& folder : split(path ? path : "", ':'))
    if (!folder.empty()) add(fs::path(folder) / "python3");
  return found;
}

// How many packages it lacks; none if it does not run.
std::optional<int64_t> lacking(const Python& python) {
  try {
    const std::vector<Package> packages = examine_python(python).packages;
    return std::count_if(packages.begin(), packages.end(), [](const Package& p) { return p.version == "-"; });
  } catch (const Error&) {
    return std::nullopt;
  }
}

// So that children of this process, and theirs, import our modules from this folder, and nothing from the current one,
// which Python takes an empty entry for.
void set_python_path(const std::string& modules) {
  std::vector<std::string> folders = {modules};
  const char* before = std::getenv("PYTHONPATH");
  for (const std::string& folder : split(before ? before : "", ':'))
    if (!folder.empty() && folder != modules) folders.push_back(folder);
  setenv("PYTHONPATH", join(folders, ":").c_str(), 1);
  setenv("PYTHONSAFEPATH", "1", 1);  // from Python 3.11 on
}

}  // namespace

Python find_python() {
  const fs::path project = project_folder();
  Python best{"", (project / "python").string()};
  set_python_path(best.modules);
  if (const char* chosen = std::getenv("AGOQ_PYTHON"); chosen && *chosen) {
    best.interpreter = chosen;
    return best;
  }
  std::optional<int64_t> fewest;
  for (const std::string& interpreter : candidates(project)) {
    const auto count = lacking({interpreter, best.modules});
    if (!count || (fewest && *fewest <= *count)) continue;
    fewest = count;
    best.interpreter = interpreter;
    if (*count == 0) break;
  }
  require(fewest.has_value(),
          "there is no Python 3 on the PATH: `sudo apt-get install python3 python3-venv`, then "
          "`make -C {} venv`; or set AGOQ_PYTHON to a Python interpreter",
          project.string());
  return best;
}

PythonVersions examine_python(const Python& python) {
  const std::vector<std::string> names = required_packages(python.modules);
  LineProcess process({python.interpreter, "-c", std::string(kLeaveCurrentFolder) + kVersionsScript},
                      LineProcess::Messages::Dropped);
  std::istringstream answer(process.ask(join(names, " ")));
  PythonVersions versions;
  answer >> versions.python;
  std::string version;
  for (const std::string& name : names)
    if (answer >> version) versions.packages.push_back({name, version});
  return versions;
}

std::vector<std::string> python_command(const Python& python, const std::string& module,
                                        std::vector<std::string> arguments) {
  std::vector<std::string> command = {python.interpreter, "-c", std::string(kLeaveCurrentFolder) + kRunScript,
                                      python.modules, module};
  command.insert(command.end(), arguments.begin(), arguments.end());
  return command;
}

void forward_to_python(const std::string& module, std::vector<std::string> arguments) {
  const Python python = find_python();
  require(fs::exists(fs::path(python.modules) / "agoq" / (module + ".py")), "{}/agoq/{}.py is missing", python.modules,
          module);
  std::vector<std::string> command = python_command(python, module, std::move(arguments));
  std::vector<char*> argv;
  for (std::string& word : command) argv.push_back(word.data());
  argv.push_back(nullptr);
  std::fflush(nullptr);
  execvp(argv[0], argv.data());
  fail("cannot run {}: {}; set AGOQ_PYTHON to a Python interpreter, or unset it", python.interpreter,
       std::strerror(errno));
}

}  // namespace agoq::cli
