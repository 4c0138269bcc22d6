#include <fmt/format.h>

#include <CLI/CLI.hpp>

#include "base/text.h"
#include "cli/command.h"
#include "cli/machine.h"

namespace agoq::cli {
namespace {

const char* name_of(State state) {
  switch (state) {
    case State::Ok:
      return "ok";
    case State::Slow:
      return "slow";
    case State::Absent:
      return "absent";
    case State::Missing:
      return "MISSING";
    case State::Unfit:
      return "UNFIT";
  }
  return "";
}

void print_findings(const std::vector<Finding>& findings) {
  Table table({"", "what", "found"});
  for (const Finding& f : findings) table.add_row({name_of(f.state), f.what, f.found});
  fmt::print("{}", table.text());
  bool heading = false;
  for (const Finding& f : findings) {
    if (f.state == State::Ok || f.remedy.empty()) continue;
    if (!heading) fmt::print("\nWhat helps:\n");
    heading = true;
    fmt::print("  {}: {}\n", f.what, f.remedy);
  }
}

}  // namespace

Command add_doctor(CLI::App& program) {
  CLI::App* app = program.add_subcommand("doctor", "this machine, its libraries and devices, and what is missing");
  return {app, [] { print_findings(examine_machine()); }};
}

}  // namespace agoq::cli
