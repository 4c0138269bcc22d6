// The Python side: where its interpreter and modules are, and running them.
#pragma once

#include <string>
#include <vector>

namespace agoq::cli {

struct Python {
  std::string interpreter;
  std::string modules;  // the project's python/ folder, found from the program's own place
};

// $AGOQ_PYTHON or, of the project's .venv and every python3 of the PATH, the first that lacks fewest of the packages
// that the modules use. From then on children of this process find the modules, too. Throws when the modules or any
// Python cannot be found.
Python find_python();

struct Package {
  std::string name, version;  // "-": not installed
};
struct PythonVersions {
  std::string python;
  std::vector<Package> packages;  // of python/requirements.txt
};
// Throws when the interpreter does not run.
PythonVersions examine_python(const Python& python);

// Runs the module agoq.MODULE as a command for execv: that in `python.modules`, whatever of this name the current
// folder or PYTHONPATH has.
std::vector<std::string> python_command(const Python& python, const std::string& module,
                                        std::vector<std::string> arguments);
// Becomes that command. Returns only by an exception.
[[noreturn]] void forward_to_python(const std::string& module, std::vector<std::string> arguments);

}  // namespace agoq::cli
