// `agoq data` and `agoq report` are Python; here they only stand in the overview (program.cc forwards them).
#include <CLI/CLI.hpp>

#include "cli/command.h"
#include "cli/python.h"

namespace agoq::cli {
namespace {

Command add(CLI::App& program, const std::string& name, const std::string& summary) {
  return {program.add_subcommand(name, summary), [name] { forward_to_python(name, {}); }};
}

}  // namespace

Command add_data(CLI::App& program) {
  return add(program, "data", "tokenize text or conversations into a training file");
}

Command add_report(CLI::App& program) {
  return add(program, "report", "plot a run, follow it, or export it to TensorBoard");
}

}  // namespace agoq::cli
