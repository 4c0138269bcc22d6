#include "cli/python.h"

#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "base/error.h"

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

}  // namespace

Python find_python() {
  const fs::path project = project_folder();
  Python python{"python3", (project / "python").string()};
  std::error_code ignored;
  if (const char* chosen = std::getenv("AGOQ_PYTHON"); chosen && *chosen)
    python.interpreter = chosen;
  else if (const fs::path own = project / ".venv/bin/python"; fs::exists(own, ignored))
    python.interpreter = own.string();
  return python;
}

std::vector<std::string> python_command(const Python& python, const std::string& module,
                                        std::vector<std::string> arguments) {
  std::vector<std::string> command = {python.interpreter, "-m", "agoq." + module};
  command.insert(command.end(), arguments.begin(), arguments.end());
  return command;
}

void set_python_path(const Python& python) {
  const char* before = std::getenv("PYTHONPATH");
  const std::string path = python.modules + (before && *before ? ":" + std::string(before) : "");
  setenv("PYTHONPATH", path.c_str(), 1);
}

void forward_to_python(const std::string& module, std::vector<std::string> arguments) {
  const Python python = find_python();
  require(fs::exists(fs::path(python.modules) / "agoq" / (module + ".py")), "{}/agoq/{}.py is missing", python.modules,
          module);
  set_python_path(python);
  std::vector<std::string> command = python_command(python, module, std::move(arguments));
  std::vector<char*> argv;
  for (std::string& word : command) argv.push_back(word.data());
  argv.push_back(nullptr);
  std::fflush(nullptr);
  execvp(argv[0], argv.data());
  fail("cannot run {}: {}; set AGOQ_PYTHON to a Python interpreter, or make the project's own with `make venv`",
       python.interpreter, std::strerror(errno));
}

}  // namespace agoq::cli
