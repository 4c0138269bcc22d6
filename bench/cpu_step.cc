// Where the time of a training step goes on the CPU: tokens/s, time by kind of work, and how close its matrix products
// come to what the machine's BLAS can do, for AGoQ and for unquantized training in turn.
//
//   build/bench/cpu_step --config examples/demo.toml --steps 20
//
// Tokens are random (time does not depend on them). Variants take turns, a step each, so that whatever else the machine
// does meets all of them alike; times are medians over the steps, and the ceiling is measured between the rounds.
#include <fmt/format.h>
#include <omp.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/text.h"
#include "bench/measure.h"
#include "bench/step_profile.h"
#include "bench/steps.h"
#include "cli/options.h"
#include "ops/linear/linear.h"
#include "plan/layout.h"
#include "train/data/micro_batch.h"
#include "train/init_source.h"

namespace agoq::bench {
namespace {

using Clock = std::chrono::steady_clock;
constexpr size_t kKinds = static_cast<size_t>(Work::Count);

// agoq, paper, fp8, bf16: that activation policy with 8-bit gradients and moments; fp32-baseline, bf16-baseline: no
// quantization at all.
train::TrainConfig variant_config(train::TrainConfig config, const std::string& name) {
  constexpr std::string_view kBaseline = "-baseline";
  if (name.ends_with(kBaseline))
    config.baseline = name.substr(0, name.size() - kBaseline.size());
  else
    config.activation_policy = name;
  return config;
}

struct Step {
  double seconds = 0;
  Profile profile;
};

// One way to train the model, with all its memory, ready to step.
class Variant {
 public:
  Variant(const std::string& variant_name, const train::TrainConfig& given, const model::ModelConfig& model)
      : name(variant_name),
        config_(train::resolved(variant_config(given, variant_name), model, Device::Cpu)),
        run_spec_(train::make_run_spec(config_, model)),
        layout_(plan::plan_layout(run_spec_, Device::Cpu)),
        arena_(Device::Cpu, layout_.total),
        state_(arena_, Device::Cpu, run_spec_) {
    state_.params().initialize(state_.context(), config_.seed);
    const train::BatchSpec spec = train::batch_spec(config_, model);
    for (int64_t sample = 0; sample < config_.global_batch_size; sample += config_.micro_batch_size)
      batches_.push_back(random_batch(spec, static_cast<uint32_t>(sample)));
  }

  void step(bool counts) {
    Step step;
    Context& ctx = state_.context();
    ctx.profile = &step.profile;
    ctx.random.step = index_++;
    const Clock::time_point start = Clock::now();
    state_.begin_step();
    const float scale = 1.0f / static_cast<float>(tokens());
    for (size_t i = 0; i < batches_.size(); ++i)
      state_.forward_backward(train::view(batches_[i]), static_cast<uint32_t>(i), scale);
    state_.optimizer().step(ctx, static_cast<float>(config_.lr), {});
    step.seconds = std::chrono::duration<double>(Clock::now() - start).count();
    ctx.profile = nullptr;
    if (counts) steps_.push_back(step);
  }

  int64_t tokens() const { return config_.global_batch_size * config_.seq_length; }  // of a step
  double seconds() const {
    return median_of([](const Step& s) { return s.seconds; });
  }
  double seconds(size_t kind) const {
    return median_of([&](const Step& s) { return s.profile.seconds[kind]; });
  }
  // Of a step's time: the median over the steps of their shares.
  double share(size_t kind) const {
    return median_of([&](const Step& s) { return s.profile.seconds[kind] / s.seconds; });
  }
  double gemm_flops() const { return steps_.front().profile.gemm_flops; }  // of a step
  size_t memory() const { return layout_.total; }

  const std::string name;

 private:
  template <class Value>
  double median_of(Value&& value) const {
    std::vector<double> values;
    for (const Step& step : steps_) values.push_back(value(step));
    return median(std::move(values));
  }

  train::TrainConfig config_;
  parallel::RunSpec run_spec_;
  plan::Layout layout_;
  Arena arena_;
  parallel::TrainingState state_;
  std::vector<train::Batch> batches_;
  std::vector<Step> steps_;
  uint32_t index_ = 0;
};

struct Options {
  std::shared_ptr<cli::SettingOptions> settings;
  std::string variants = "agoq,paper,bf16,fp32-baseline";
  int64_t steps = 20, warmup = 3;
  bool json = false;
};

double rest(const Variant& v) {
  double counted = 0;
  for (size_t kind = 0; kind < kKinds; ++kind) counted += v.share(kind);
  return std::max(0.0, 1 - counted);
}

void print_json(const std::vector<std::unique_ptr<Variant>>& variants, double peak) {
  nlohmann::ordered_json json;
  json["threads"] = omp_get_max_threads();
  json["sgemm_gflops"] = peak / 1e9;
  for (const auto& v : variants) {
    nlohmann::ordered_json row = {{"name", v->name},
                                  {"step_ms", v->seconds() * 1e3},
                                  {"tokens_per_second", static_cast<double>(v->tokens()) / v->seconds()},
                                  {"gemm_gflops", v->gemm_flops() / v->seconds(size_t{0}) / 1e9},
                                  {"memory_bytes", v->memory()}};
    for (size_t kind = 0; kind < kKinds; ++kind)
      row["share"][std::string(name_of(static_cast<Work>(kind)))] = v->share(kind);
    row["share"]["rest"] = rest(*v);
    json["variants"].push_back(row);
  }
  fmt::print("{}\n", json.dump(1));
}

void print_table(const std::vector<std::unique_ptr<Variant>>& variants, double peak) {
  std::vector<std::string> headers = {"training", "tokens/s", "ms/step"};
  for (size_t kind = 0; kind < kKinds; ++kind) headers.emplace_back(name_of(static_cast<Work>(kind)));
  for (const char* name : {"rest", "GEMM GFLOP/s", "of sgemm", "memory"}) headers.emplace_back(name);
  const auto percent = [](double share) { return fmt::format("{:.1f}%", 100 * share); };
  Table table(headers);
  for (const auto& v : variants) {
    std::vector<std::string> row = {v->name, fmt::format("{:.0f}", static_cast<double>(v->tokens()) / v->seconds()),
                                    fmt::format("{:.1f}", v->seconds() * 1e3)};
    for (size_t kind = 0; kind < kKinds; ++kind) row.push_back(percent(v->share(kind)));
    const double speed = v->gemm_flops() / v->seconds(size_t{0});
    row.insert(row.end(), {percent(rest(*v)), fmt::format("{:.0f}", speed / 1e9), percent(speed / peak),
                           human_bytes(v->memory())});
    table.add_row(row);
  }
  fmt::print("{}\nmedians; sgemm by itself, 1024 x 1024 x 1024: {:.0f} GFLOP/s on {} threads\n", table.markdown(),
             peak / 1e9, omp_get_max_threads());
}

// FLOP/s of the best of a few square fp32 products on all threads.
double sgemm_flops() {
  constexpr int64_t kSize = 1024;
  constexpr int kRuns = 5;
  Arena arena(Device::Cpu, size_t{4} * kSize * kSize * sizeof(float));
  const Context ctx(arena, Device::Cpu, DType::F32);
  const auto matrix = [&] { return arena.allocate(Owner::Operands, DType::F32, {kSize, kSize}); };
  const Tensor a = matrix(), b = matrix(), c = matrix();
  std::fill_n(a.as<float>(), kSize * kSize, 0.5f);
  std::fill_n(b.as<float>(), kSize * kSize, 0.25f);
  double best = 1e30;
  for (int run = 0; run < kRuns; ++run) {
    const Clock::time_point start = Clock::now();
    ops::gemm(ctx, a, b, c);
    best = std::min(best, std::chrono::duration<double>(Clock::now() - start).count());
  }
  return 2.0 * kSize * kSize * kSize / best;
}

void run(const Options& options) {
  const train::TrainConfig config = options.settings->config();
  const model::ModelConfig model = train::resolve_model(config);
  cli::use_threads(config);
  std::vector<std::unique_ptr<Variant>> variants;
  for (const std::string& name : split(options.variants, ','))
    variants.push_back(std::make_unique<Variant>(name, config, model));
  std::vector<double> peaks;
  for (int64_t round = 0; round < options.warmup + options.steps; ++round) {
    for (const auto& variant : variants) variant->step(round >= options.warmup);
    peaks.push_back(sgemm_flops());
  }
  (options.json ? print_json : print_table)(variants, median(peaks));
}

}  // namespace
}  // namespace agoq::bench

int main(int argc, char** argv) try {
  CLI::App program("Times training steps on random tokens and tells where the time goes.", "cpu_step");
  agoq::bench::Options options;
  options.settings = agoq::cli::SettingOptions::add(program);
  program
      .add_option("--variants", options.variants,
                  "ways to train, in turn: an activation policy (agoq, paper, fp8, bf16), or "
                  "fp32-baseline, bf16-baseline")
      ->capture_default_str();
  program.add_option("--steps", options.steps, "steps of each that count")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  program.add_option("--warmup", options.warmup, "steps before them")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  program.add_flag("--json", options.json, "print JSON");
  CLI11_PARSE(program, argc, argv);
  agoq::bench::run(options);
  return 0;
} catch (const std::exception& error) {
  fmt::print(stderr, "cpu_step: error: {}\n", error.what());
  return 1;
}
