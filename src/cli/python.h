// The Python side: where its interpreter and modules are, and running them.
#pragma once

#include <string>
#include <vector>

namespace agoq::cli {

struct Python {
  std::string interpreter;  // $AGOQ_PYTHON, the project's .venv, or python3 of the PATH
  std::string modules;      // the project's python/ folder, found from the program's own place
};

// Throws when the modules cannot be found.
Python find_python();
// `python -m agoq.MODULE ARGUMENTS...` as a command for execv.
std::vector<std::string> python_command(const Python& python, const std::string& module,
                                        std::vector<std::string> arguments);
// Makes the modules importable in this process's children.
void set_python_path(const Python& python);

// Becomes `python -m agoq.MODULE ARGUMENTS...`. Returns only by an exception.
[[noreturn]] void forward_to_python(const std::string& module, std::vector<std::string> arguments);

}  // namespace agoq::cli
