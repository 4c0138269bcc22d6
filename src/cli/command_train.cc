#include <fmt/format.h>
#include <omp.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <cmath>
#include <csignal>
#include <optional>

#include "base/text.h"
#include "cli/command.h"
#include "cli/memory_table.h"
#include "cli/options.h"
#include "cli/progress.h"
#include "train/trainer.h"

namespace agoq::cli {
namespace {

constexpr int kExitOnSignal = 128;

// Set by a signal, read at every step boundary: the only state that a signal handler may touch.
std::atomic<bool> stop_requested{false};
static_assert(std::atomic<bool>::is_always_lock_free);

// The first signal ends the run at the next step boundary, saved; a second one ends it at once.
void on_signal(int number) {
  if (stop_requested.exchange(true)) _exit(kExitOnSignal + number);
}

void catch_signals() {
  struct sigaction action {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;  // a save in progress must not fail with EINTR
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

struct Plans {
  plan::Layout ours, reference;
  int64_t layers = 0, tokens = 0;  // of the model, of one micro-batch
  int64_t parameters = 0;
};

Plans plans_of(const train::TrainConfig& config, const model::ModelConfig& model) {
  const parallel::Job job = train::make_job(config, model);
  return {plan::plan_layout(job, Device::Cpu), plan::plan_layout(plan::reference_job(job), Device::Cpu), model.layers,
          job.tokens(), model.parameters()};
}

void print_start(const train::TrainConfig& config, const model::ModelConfig& model, const Plans& plans) {
  fmt::print("device  {}, {} threads\n", config.device == "auto" ? "cpu" : config.device, omp_get_max_threads());
  fmt::print(
      "model   {} parameters: {} layers, hidden {}, feed-forward {}, {} query and {} key/value heads, vocabulary {}\n",
      human_count(static_cast<uint64_t>(model.parameters())), model.layers, model.hidden_size, model.ffn_size,
      model.heads.query, model.heads.kv, model.vocab_size);
  fmt::print("batch   {} sequences of {} tokens a step, in micro-batches of {}\n\n", config.global_batch_size,
             config.seq_length, config.micro_batch_size);
  fmt::print("{}\n", memory_table(plans.ours, plans.reference));
  std::fflush(stdout);
}

double saved_per_token_layer(const plan::Layout& layout, const Plans& plans) {
  return static_cast<double>(layout.starting_with("saved ")) / static_cast<double>(plans.tokens * plans.layers);
}

void print_end(const train::Trainer& trainer, const train::Summary& summary, const Plans& plans) {
  if (!summary.sample.empty()) fmt::print("\nsample of what the model writes now:\n\n{}\n", summary.sample);
  fmt::print("\n{}\n", memory_table(trainer.layout(), plans.reference));
  const double parameters = static_cast<double>(plans.parameters);
  Table table({"", "AGoQ", "bf16/fp32", "AGoQ needs"});
  const auto row = [&](const char* what, double ours, double reference) {
    table.add_row({what, fmt::format("{:.2f}", ours), fmt::format("{:.2f}", reference),
                   fmt::format("{:.0f}%", 100 * ours / reference)});
  };
  row("bytes per parameter (weights, corrections, gradients, moments)", summary.bytes_per_parameter,
      static_cast<double>(plans.reference.model_state()) / parameters);
  row("saved activation bytes per token and layer", summary.saved_bytes_per_token_layer,
      saved_per_token_layer(plans.reference, plans));
  fmt::print("{}\n", table.text());
  fmt::print("{} tokens at {:.0f} tokens/s; training loss {:.4f}", human_count(summary.tokens),
             summary.tokens_per_second, summary.train_loss);
  if (summary.valid_loss)
    fmt::print(", held-out loss {:.4f} (perplexity {:.2f})", *summary.valid_loss, std::exp(*summary.valid_loss));
  if (summary.skipped > 0) fmt::print("; {} steps skipped for non-finite gradients", summary.skipped);
  fmt::print("\n");
  if (const std::string& save = trainer.config().save; !save.empty())
    fmt::print("run folder {}: look at it with `agoq report {}`, write with it by `agoq generate {}`\n", save, save,
               save);
}

void train_run(const train::TrainConfig& given) {
  const model::ModelConfig model = train::resolve_model(given);
  const train::TrainConfig config = train::resolved(given, model, train::resolve_device(given.device));
  require(!config.data_path.empty(),
          "no training data: give --data-path FILE (text, flat .bin, or Megatron-LM prefix)");
  use_threads(config);
  const Plans plans = plans_of(config, model);
  print_start(config, model, plans);

  catch_signals();
  Progress progress(config.train_iters, config.log_interval);
  train::Observer observer;
  observer.on_note = [&](const std::string& text) { progress.say("  " + text); };
  std::optional<double> train_loss;  // of the last step
  observer.on_step = [&](const train::StepMetrics& metrics) {
    train_loss = metrics.loss;
    progress.step(metrics);
  };
  observer.on_valid = [&](int64_t step, double loss) {
    progress.say(fmt::format("  step {}: held-out loss {:.4f}, perplexity {:.2f}; training loss {:.4f}", step, loss,
                             std::exp(loss), train_loss.value_or(NAN)));
  };
  train::Trainer trainer(given, observer);
  const train::Summary summary = trainer.run(stop_requested);
  progress.finish();
  if (!train_loss && !summary.stopped_early) {
    fmt::print("nothing to do: all {} steps are done; --train-iters N goes on to step N\n", summary.step);
    return;
  }
  if (!summary.stopped_early) return print_end(trainer, summary, plans);
  fmt::print("stopped by a signal at step {}{}\n", summary.step,
             config.save.empty() ? "; nothing is saved without --save" : "; the same command again continues it");
}

}  // namespace

Command add_train(CLI::App& program) {
  CLI::App* app = program.add_subcommand("train", "train a model, or continue a run");
  app->footer(
      "Example: agoq train --model-config demo --data-path book.txt --seq-length 256 --micro-batch-size 8 "
      "--train-iters 300 \\\n"
      "           --lr 2e-3 --lr-warmup-iters 30 --eval-interval 50 --save runs/first");
  return {app, [options = SettingOptions::add(*app)] { train_run(options->config()); }};
}

}  // namespace agoq::cli
