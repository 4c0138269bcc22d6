// A command of the program: its options, and what it does once they are read.
#pragma once

#include <functional>

namespace CLI {
class App;
}

namespace agoq::cli {

struct Command {
  CLI::App* app = nullptr;
  std::function<void()> run;  // throws agoq::Error
};

Command add_train(CLI::App& program);
Command add_plan(CLI::App& program);
Command add_eval(CLI::App& program);
Command add_generate(CLI::App& program);
Command add_export(CLI::App& program);
Command add_inspect(CLI::App& program);
Command add_doctor(CLI::App& program);
// Written in Python; get all their arguments as they are (see forward_to_python).
Command add_data(CLI::App& program);
Command add_report(CLI::App& program);

}  // namespace agoq::cli
