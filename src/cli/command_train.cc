#include <fmt/format.h>
#include <omp.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <cmath>
#include <csignal>
#include <ctime>
#include <optional>

#include "base/log.h"
#include "base/text.h"
#include "cli/command.h"
#include "cli/environment.h"
#include "cli/memory_table.h"
#include "cli/options.h"
#include "cli/processes.h"
#include "cli/progress.h"
#include "cli/text_tokens.h"
#include "train/trainer.h"

namespace agoq::cli {
namespace {

constexpr int kExitOnSignal = 128;

// Set by a signal, read at every step boundary: the only state that a signal handler may touch.
std::atomic<bool> stop_requested{false};
std::atomic<int64_t> requested_at{0};  // seconds; 0: not yet
static_assert(std::atomic<bool>::is_always_lock_free && std::atomic<int64_t>::is_always_lock_free);

// A launcher passes on the signal that the terminal has sent to all processes: this soon it is the same request.
constexpr int64_t kSameRequest = 1;

// The first signal ends the run at the next step boundary, saved; a second one ends it at once. A reader of the output
// that goes (`| tee` at Ctrl-C) ends nothing: what is printed is a log, and the run is yet to be saved.
void on_signal(int number) {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  int64_t before = 0;
  if (requested_at.compare_exchange_strong(before, now.tv_sec))
    stop_requested = true;
  else if (now.tv_sec - before > kSameRequest)
    _exit(kExitOnSignal + number);
}

void catch_signals() {
  struct sigaction action {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;                        // a save in progress must not fail with EINTR
  for (const int number : {SIGINT, SIGTERM, SIGUSR1})  // mpirun passes on only the last to its processes
    sigaction(number, &action, nullptr);
  struct sigaction hangup {};
  sigaction(SIGHUP, nullptr, &hangup);
  if (hangup.sa_handler != SIG_IGN) sigaction(SIGHUP, &action, nullptr);  // ignored under nohup
  std::signal(SIGPIPE, SIG_IGN);
}

void print_start(const train::RunPlan& run) {
  const model::ModelConfig& model = run.model;
  fmt::print("device  {}, {} threads\n", run.device, omp_get_max_threads());
  if (const std::string chosen = chosen_variables(); !chosen.empty()) fmt::print("{}\n", chosen);
  fmt::print(
      "model   {} parameters: {} layers, hidden {}, feed-forward {}, {} query and {} key/value heads, vocabulary {}\n",
      human_count(static_cast<uint64_t>(model.parameters())), model.layers, model.hidden_size, model.ffn_size,
      model.heads.query, model.heads.kv, model.vocab_size);
  fmt::print("batch   {} sequences of {} tokens a step, in micro-batches of {}\n", run.config.global_batch_size,
             run.config.seq_length, run.config.micro_batch_size);
  if (const std::string products = train::fp8_text(run.config, model.layers); !products.empty())
    fmt::print("layers  {}\n", products);
  fmt::print("\n{}\n", memory_table(run.layout, run.reference));
  std::fflush(stdout);
}

void print_end(const train::RunPlan& run, const train::Summary& summary, const std::string& save) {
  Table table({"", "AGoQ", "bf16/fp32", "AGoQ needs"});
  const auto row = [&](const char* what, double ours, double reference) {
    table.add_row({what, fmt::format("{:.2f}", ours), fmt::format("{:.2f}", reference),
                   fmt::format("{:.0f}%", 100 * ours / reference)});
  };
  row("bytes per parameter (weights, corrections, gradients, moments)", summary.bytes_per_parameter,
      run.bytes_per_parameter(run.reference));
  row("saved activation bytes per token and layer", summary.saved_bytes_per_token_layer,
      run.saved_bytes_per_token_layer(run.reference));
  fmt::print("\n{}\n", table.text());
  fmt::print("{} tokens at {:.0f} tokens/s; training loss {:.4f}", human_count(summary.tokens),
             summary.tokens_per_second, summary.train_loss);
  if (summary.valid_loss)
    fmt::print(", held-out loss {:.4f} (perplexity {:.2f})", *summary.valid_loss, std::exp(*summary.valid_loss));
  if (const int64_t broken = summary.skipped - summary.without_targets; broken > 0)
    fmt::print("; {} steps skipped for non-finite gradients", broken);
  if (summary.without_targets > 0)
    fmt::print("; {} steps skipped because nothing in them counted for the loss", summary.without_targets);
  fmt::print("\n");
  if (!save.empty())
    fmt::print("run folder {}: look at it with `agoq report {}`, write with it by `agoq generate {}`\n", save, save,
               save);
}

// A tokenizer whose failures are told once, as warnings: the run is saved and done, and all processes compute a sample
// together, so one that cannot decode goes on without text.
class SampleTokens : public TextTokens {
 public:
  // Only one process shows text; the others need none.
  SampleTokens(const train::TrainConfig& config, bool shows) : shows_(shows) {
    guarded([&] { inner_ = open_tokenizer(config.tokenizer, config.prompt_bos); });
  }
  bool fine() const { return fine_; }

  std::vector<int32_t> encode(const std::string& text) override {
    std::vector<int32_t> ids;
    guarded([&] { ids = inner_->encode(text); });
    return ids;
  }
  std::string decode_next(int32_t id) override {
    return decoded([&] { return inner_->decode_next(id); });
  }
  std::string decode_rest() override {
    return decoded([&] { return inner_->decode_rest(); });
  }

 private:
  void guarded(const std::function<void()>& action) {
    if (!fine_) return;
    try {
      action();
    } catch (const std::exception& error) {
      fine_ = false;
      log_warning("no sample of what the model writes: {}", error.what());
    }
  }
  std::string decoded(const std::function<std::string()>& decode) {
    std::string text;
    if (shows_) guarded([&] { text = decode(); });
    return text;
  }

  bool shows_, fine_ = true;
  std::unique_ptr<TextTokens> inner_;
};

// What the model writes now: all processes compute it, one shows it.
void print_sample(train::Trainer& trainer, bool show) {
  const train::TrainConfig& config = trainer.plan().config;
  if (config.sample_tokens == 0) return;
  SampleTokens tokenizer(config, show);
  std::string text = config.sample_prompt.empty() ? "\n" : config.sample_prompt;
  const std::vector<int32_t> ids = tokenizer.encode(text);
  const std::vector<char> ready = trainer.state().groups().world().values(tokenizer.fine() ? 'y' : 'n');
  if (std::find(ready.begin(), ready.end(), 'n') != ready.end()) return;
  train::SamplingOptions options;
  options.max_new_tokens = config.sample_tokens;
  options.seed = config.seed;
  options.stop_tokens = trainer.plan().stop_tokens;
  continue_text(trainer.state(), ids, options, tokenizer, [&](const std::string& more) {
    text += more;
    return true;
  });
  if (show) fmt::print("\nsample of what the model writes now:\n\n{}\n", text);
}

// What the leading process shows of the run.
class Watcher {
 public:
  // Of several processes the output goes through a launcher, whose terminal (mpirun gives rank 0 one) is none to draw
  // on.
  explicit Watcher(bool alone) : alone_(alone) {}
  train::Observer observer() {
    train::Observer observer;
    observer.on_plan = [this](const train::RunPlan& run) {
      print_start(run);
      run_ = &run;
      progress_.emplace(run.config.log_interval, alone_);
    };
    observer.on_note = [this](const std::string& text) { progress_->say("  " + text); };
    observer.on_step = [this](const train::StepMetrics& metrics) {
      train_loss_ = metrics.counted ? metrics.loss : train_loss_.value_or(NAN);
      progress_->step(metrics, run_->config.train_iters);
    };
    observer.on_valid = [this](int64_t step, double loss) {
      progress_->say(fmt::format("  step {}: held-out loss {:.4f}, perplexity {:.2f}; training loss {:.4f}", step, loss,
                                 std::exp(loss), train_loss_.value_or(NAN)));
    };
    return observer;
  }
  void finish_progress() { progress_->finish(); }
  void print_outcome(const train::RunPlan& run, const train::Summary& summary) const {
    const std::string& save = run.config.save;
    if (summary.stopped_early) {
      const char* cause = summary.time_is_up ? "at the end of --exit-duration-in-mins," : "by a signal";
      fmt::print("stopped {} at step {}{}\n", cause, summary.step,
                 save.empty() ? "; nothing is saved without --save" : "; the same command again continues it");
    } else if (!train_loss_) {
      fmt::print("nothing to do: all {} steps are done; --train-iters N goes on to step N\n", summary.step);
    } else {
      print_end(run, summary, save);
    }
  }

 private:
  bool alone_;
  std::optional<Progress> progress_;     // once the resolved settings are known
  const train::RunPlan* run_ = nullptr;  // the trainer's own, whose number of steps --train-minutes changes
  std::optional<double> train_loss_;     // of the last step
};

void train_run(const train::TrainConfig& given) {
  const RunProcesses processes(given);
  catch_signals();  // until here there is nothing to save
  processes.run([&] {
    Watcher watcher(processes.alone());
    train::Trainer trainer(given, processes.is_rank0() ? watcher.observer() : train::Observer{},
                           processes.for_trainer());
    const int64_t first_step = trainer.step();
    const train::Summary summary = trainer.run(stop_requested);
    if (processes.is_rank0()) watcher.finish_progress();
    if (!summary.stopped_early && summary.step > first_step) print_sample(trainer, processes.is_rank0());
    if (processes.is_rank0()) watcher.print_outcome(trainer.plan(), summary);
  });
}

}  // namespace

Command add_train(CLI::App& program) {
  CLI::App* app = program.add_subcommand("train", "train a model, or continue a run");
  app->footer(
      "Example: agoq train --model-config demo --data-path book.txt --seq-length 256 --micro-batch-size 8 "
      "--train-iters 300 \\\n"
      "           --lr 2e-3 --lr-warmup-iters 30 --eval-interval 50 --save runs/first\n"
      "         agoq train --finetune runs/first --data-path poems.txt --seq-length 256 --train-iters 50 --save "
      "runs/poems");
  return {app, [options = SettingOptions::add(*app)] { train_run(options->config()); }, Output::Log};
}

}  // namespace agoq::cli
