#include "cli/program.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <new>
#include <stdexcept>
#include <vector>

#include "agoq/agoq.h"
#include "base/error.h"
#include "base/text.h"
#include "cli/command.h"
#include "cli/help.h"
#include "cli/python.h"

namespace agoq::cli {
namespace {

constexpr const char* kAbout =
    "AGoQ trains LLaMA-architecture language models in a fraction of the usual memory: activations in about 4 bits,\n"
    "gradients and Adam's moments in 8.";

constexpr const char* kFirstSteps =
    "First steps:\n"
    "  agoq doctor                                                    what this machine has, and what is missing\n"
    "  agoq train --model-config demo --data-path book.txt --save runs/first\n"
    "  agoq generate runs/first --prompt 'In the beginning'\n"
    "  agoq plan --model-config llama3-8b --seq-length 8192 --gpu-memory 80GiB\n"
    "\n"
    "agoq COMMAND --help explains a command.";

int report_usage_error(const std::string& message, const std::string& command) {
  fmt::print(stderr, "agoq: error: {} (see agoq{}{} --help)\n", printable(message), command.empty() ? "" : " ",
             command);
  return kWrongUsage;
}

// The first argument that `app` does not know, as a message; empty if there is none.
std::string unknown_argument(const CLI::App& app) {
  std::vector<std::string> known;
  for (const CLI::Option* option : app.get_options())
    for (const std::string& name : option->get_lnames()) known.push_back("--" + name);
  for (const std::string& extra : app.remaining()) {
    if (extra == "--") continue;
    if (!extra.starts_with('-')) return fmt::format("unexpected argument '{}'", extra);
    const std::string flag = extra.substr(0, extra.find('='));
    return fmt::format("unknown flag {}{}", flag, did_you_mean(flag, known));
  }
  return {};
}

constexpr auto kCommands = {add_train,   add_plan, add_eval,   add_generate, add_export,
                            add_inspect, add_data, add_report, add_bench,    add_doctor};

std::string unknown_command(const std::string& name, const std::vector<Command>& commands) {
  std::vector<std::string> names;
  for (const Command& command : commands) names.push_back(command.app->get_name());
  return fmt::format("unknown command '{}'{}", name, did_you_mean(name, names));
}

// Parses and runs; the exit status.
int dispatch(CLI::App& program, const std::vector<Command>& commands, int argc, char** argv) {
  const std::string first = argc > 1 ? argv[1] : "--help";
  const auto chosen =
      std::find_if(commands.begin(), commands.end(), [&](const Command& c) { return c.app->get_name() == first; });
  if (chosen == commands.end() && !first.starts_with('-'))
    return report_usage_error(unknown_command(first, commands), "");
  if (first == "data" || first == "report") forward_to_python(first, {argv + 2, argv + argc});

  const CLI::App& app = chosen == commands.end() ? program : *chosen->app;
  const std::string name = chosen == commands.end() ? "" : first;
  try {
    std::vector<std::string> arguments(argv + std::min(argc, 1), argv + argc);
    if (arguments.empty()) arguments = {first};
    std::reverse(arguments.begin(), arguments.end());  // as CLI11 wants them
    program.parse(arguments);
  } catch (const CLI::Success& asked) {  // --help, --version
    return program.exit(asked);
  } catch (const CLI::ParseError& error) {
    const std::string unknown = unknown_argument(app);
    return report_usage_error(unknown.empty() ? error.what() : unknown, name);
  } catch (const std::logic_error&) {  // how CLI11 2.1 says that it cannot read the value of a switch
    return report_usage_error("a switch takes no value, or =true or =false", name);
  }
  if (const std::string unknown = unknown_argument(app); !unknown.empty()) return report_usage_error(unknown, name);
  chosen->run();
  const bool written = std::fflush(stdout) == 0 && std::ferror(stdout) == 0;
  require(written || chosen->output == Output::Log,
          "standard output took only a part of the result; is its disk full?");
  return 0;
}

}  // namespace

int run_program(int argc, char** argv) try {
  CLI::App program(kAbout, "agoq");
  program.formatter(help_formatter());  // commands inherit it
  program.footer(kFirstSteps);
  program.set_version_flag("--version", fmt::format("agoq {}", kVersion), "print the version");
  program.set_help_flag("--help,-h", "print this help");
  program.allow_extras();
  std::vector<Command> commands;
  for (const auto add : kCommands) {
    commands.push_back(add(program));
    commands.back().app->group("Commands")->allow_extras();
  }
  return dispatch(program, commands, argc, argv);
} catch (const std::exception& error) {
  std::fflush(stdout);
  fmt::print(stderr, "agoq: error: {}\n", printable(text_of(error)));
  return kFailed;
}

std::string text_of(const std::exception& error) {
  if (dynamic_cast<const std::bad_alloc*>(&error) == nullptr) return error.what();
  return "this machine has not enough memory for that; `agoq plan --target cpu` tells what a run needs";
}

}  // namespace agoq::cli
