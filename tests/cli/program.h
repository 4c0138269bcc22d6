// Runs the real program as a user does.
#pragma once

#include <sys/wait.h>

#include <cstdlib>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/scratch_folder.h"
#include "base/text.h"
#include "cli/blas_core.h"

namespace agoq::test {

struct Ran {
  int status = -1;
  std::string out, err;
};

inline std::string quoted(const std::string& word) {
  std::string text = "'";
  for (const char c : word) text += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return text + "'";
}

// Shell commands around the program.
struct Shell {
  std::string before = "";         // ends with a semicolon
  std::string while_it_runs = "";  // may speak of the process as $pid
  std::string program = AGOQ_PROGRAM;
  std::string output = "";  // instead of a file that is read afterwards
};

// Sets what the program sets at its start, to start once more (cli/environment.h): that is twice the time of a start.
inline void settle_blas_core() {
  if (const std::string core(cli::faster_blas_core()); !core.empty()) ::setenv("OPENBLAS_CORETYPE", core.c_str(), 0);
}

inline Ran run_agoq(const std::vector<std::string>& arguments, const Shell& shell = {}) {
  settle_blas_core();
  const ScratchFolder folder;
  std::string command = shell.before + "OMP_WAIT_POLICY=passive OMP_NUM_THREADS=2 " + shell.program;
  for (const std::string& argument : arguments) command += " " + quoted(argument);
  command += " >" + quoted(shell.output.empty() ? folder.file("out") : shell.output) + " 2>" +
             quoted(folder.file("err")) + " </dev/null";
  if (!shell.while_it_runs.empty()) command += " & pid=$!; " + shell.while_it_runs + "; wait $pid";
  const int status = std::system(command.c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), read_plainly(folder.file("out")),
          read_plainly(folder.file("err"))};
}

// The same, with a signal once the file has so many lines (or after a minute).
inline Ran run_and_signal(const std::vector<std::string>& arguments, const std::string& signal, const std::string& file,
                          int lines) {
  const std::string wait = "for i in $(seq 1200); do [ $(cat " + quoted(file) + " 2>/dev/null | wc -l) -ge " +
                           std::to_string(lines) + " ] && break; sleep 0.05; done; ";
  return run_agoq(arguments, {.while_it_runs = wait + "kill -" + signal + " $pid"});
}

// Of a run folder, by step.
inline std::map<int64_t, double> losses_of(const std::string& folder) {
  std::map<int64_t, double> losses;
  for (const std::string& line : split(trim(read_plainly(folder + "/metrics.jsonl")), '\n'))
    if (const auto entry = nlohmann::json::parse(line); entry.contains("loss")) losses[entry["step"]] = entry["loss"];
  return losses;
}

// A folder with a text to learn from and a model small enough to learn it in a moment.
class TinyRun {
 public:
  TinyRun() {
    std::string text;
    for (int i = 0; i < 400; ++i)
      text += "the cat sat on the mat and looked at line " + std::to_string(i * i % 97) + ".\n";
    write_plainly(text_path(), text);
    write_plainly(model_path(),
                  R"({"model_type": "llama", "vocab_size": 257, "hidden_size": 64, "intermediate_size": 128,
                      "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
                      "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "tie_word_embeddings": false})");
  }

  std::string text_path() const { return folder_.file("text.txt"); }
  std::string model_path() const { return folder_.file("config.json"); }
  std::string file(const std::string& name) const { return folder_.file(name); }

  std::vector<std::string> train_arguments(int steps, const std::string& save) const {
    return {"train",
            "--device",
            "cpu",
            "--model-config",
            model_path(),
            "--data-path",
            text_path(),
            "--seq-length",
            "32",
            "--micro-batch-size",
            "2",
            "--global-batch-size",
            "4",
            "--lr",
            "5e-3",
            "--lr-decay-style",
            "constant",
            "--train-iters",
            std::to_string(steps),
            "--save",
            file(save)};
  }
  Ran train(int steps, const std::string& save, const std::vector<std::string>& more = {}) const {
    std::vector<std::string> arguments = train_arguments(steps, save);
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run_agoq(arguments);
  }

 private:
  ScratchFolder folder_;
};

}  // namespace agoq::test
