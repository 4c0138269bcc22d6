// A command of the program: its options, and what it does once they are read.
#pragma once

#include <cstdint>
#include <functional>

namespace CLI {
class App;
}

namespace agoq::cli {

// What a command prints: its result, without which it has failed, or a log of what it does.
enum class Output : uint8_t { Result, Log };

struct Command {
  CLI::App* app = nullptr;
  std::function<void()> run;  // throws agoq::Error
  Output output = Output::Result;
};

Command add_train(CLI::App& program);
Command add_plan(CLI::App& program);
Command add_eval(CLI::App& program);
Command add_generate(CLI::App& program);
Command add_export(CLI::App& program);
Command add_inspect(CLI::App& program);
Command add_bench(CLI::App& program);
Command add_doctor(CLI::App& program);
// Written in Python; get all their arguments as they are (see forward_to_python).
Command add_data(CLI::App& program);
Command add_report(CLI::App& program);

}  // namespace agoq::cli
