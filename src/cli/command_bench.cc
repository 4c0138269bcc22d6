#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/text.h"
#include "bench/bench.h"
#include "bench/steps.h"
#include "cli/bench_collective.h"
#include "cli/command.h"
#include "cli/options.h"
#include "train/init_source.h"

namespace agoq::cli {
namespace {

using bench::Ceilings;
using bench::Measured;
using bench::OpPhase;
using Json = nlohmann::ordered_json;

struct BenchOptions {
  std::shared_ptr<SettingOptions> settings;
  std::string what;
  std::vector<int64_t> layers;
  std::vector<std::string> sizes;
  double seconds = 10;
  std::string json;
  bool profile = false;
};

// What is measured: settings as a run would have them.
struct Subject {
  train::TrainConfig config;
  model::ModelConfig model;
  Device device{};
};

Subject subject_of(const BenchOptions& options, int64_t layers = 0) {
  Subject s;
  s.config = options.settings->config();
  s.model = train::resolve_model(s.config);
  if (layers > 0) s.model.layers = layers;
  s.model.max_positions = std::max(s.model.max_positions, s.config.seq_length);
  s.device = train::resolve_device(s.config.device);
  s.config = train::resolved(s.config, s.model, s.device);
  use_threads(s.config);
  return s;
}

Json described(const BenchOptions& options, const Subject& s, const DeviceMemory& memory) {
  Json json = {{"what", options.what},
               {"device", memory.gpu() ? memory.gpu()->name() : "cpu"},
               {"compute_dtype", s.config.compute_dtype},
               {"hidden_size", s.model.hidden_size},
               {"ffn_size", s.model.ffn_size},
               {"seq_length", s.config.seq_length},
               {"micro_batch_size", s.config.micro_batch_size}};
  if (const std::string products = train::fp8_text(s.config, s.model.layers); !products.empty())
    json["products"] = products;
  return json;
}

// --- ops -------------------------------------------------------------------------------------------------------------

constexpr double kShareOfOp = 0.05;  // of --seconds

std::string percent(double share) {
  return fmt::format("{:.0f}%", 100 * share);
}

// Also of more than a thousand, without an exponent.
std::string teraflops(double flops_per_second) {
  const double tera = flops_per_second / 1e12;
  return tera < 100 ? fmt::format("{:.3g}", tera) : fmt::format("{:.0f}", tera);
}

void print_ops(const std::vector<Measured>& ops, const Ceilings& ceilings) {
  Table table({"op", "in", "us", "moves", "multiplies", "speed", "of ceiling"});
  for (const Measured& op : ops) {
    const bool moves = op.bytes > 0;
    table.add_row({op.name, std::string(name_of(op.part)), fmt::format("{:.1f}", op.seconds * 1e6),
                   moves ? human_bytes(static_cast<uint64_t>(op.bytes)) : "",
                   moves ? "" : fmt::format("{:.3g} GFLOP", op.flops / 1e9),
                   moves ? fmt::format("{:.1f} GB/s", op.bytes / op.seconds / 1e9)
                         : teraflops(op.flops / op.seconds) + " TFLOP/s",
                   percent(floor_of(op, ceilings) / op.seconds)});
  }
  fmt::print("{}\n", table.text());
}

void print_ceilings(const Ceilings& c, const parallel::RunSpec& run_spec) {
  fmt::print("ceilings, measured now: copy {:.1f} GB/s (read and written)", c.bytes_per_second / 1e9);
  if (c.flops > 0) fmt::print("; {} {} TFLOP/s", bench::ceiling_name(run_spec), teraflops(c.flops));
  fmt::print("\n\n");
}

Json json_of(const Ceilings& c) {
  Json json = {{"copy_bytes_per_second", c.bytes_per_second}};
  if (c.flops > 0) json["flops_per_second"] = c.flops;
  return json;
}

Json json_of(const std::vector<Measured>& ops, const Ceilings& ceilings) {
  Json json = Json::array();
  for (const Measured& op : ops) {
    const double floor = floor_of(op, ceilings);
    json.push_back({{"name", op.name},
                    {"part", name_of(op.part)},
                    {"ms", op.seconds * 1e3},
                    {"bytes", op.bytes},
                    {"flops", op.flops},
                    {"floor_ms", floor * 1e3},
                    {"share", floor / op.seconds}});
  }
  return json;
}

struct PhaseTimes {
  double ops = 0, floor = 0;  // seconds of its ops measured one by one, and the least they could take
};

PhaseTimes total_of(const std::vector<Measured>& ops, OpPhase part, const Ceilings& ceilings) {
  PhaseTimes total;
  for (const Measured& op : ops)
    if (op.part == part) total.ops += op.seconds, total.floor += floor_of(op, ceilings);
  return total;
}

Json report_layer(const bench::LayerTimes& layer, const std::vector<Measured>& ops, const Ceilings& ceilings) {
  Json json;
  Table table({"one layer", "ms", "its ops one by one", "floor", "of floor"});
  const std::pair<OpPhase, double> parts[] = {
      {OpPhase::Forward, layer.forward}, {OpPhase::Backward, layer.backward}, {OpPhase::Optimizer, layer.optimizer}};
  for (const auto& [part, seconds] : parts) {
    const PhaseTimes total = total_of(ops, part, ceilings);
    const std::string name(name_of(part));
    table.add_row({name, fmt::format("{:.3f}", seconds * 1e3), fmt::format("{:.3f}", total.ops * 1e3),
                   fmt::format("{:.3f}", total.floor * 1e3), percent(total.floor / seconds)});
    json[name] = {{"ms", seconds * 1e3}, {"ops_ms", total.ops * 1e3}, {"floor_ms", total.floor * 1e3}};
  }
  fmt::print("{}\n", table.text());
  return json;
}

// codec, op, layer and fp8.
Json run_ops(const BenchOptions& options) {
  const Subject s = subject_of(options, options.layers.empty() ? 0 : options.layers.front());
  const parallel::RunSpec run_spec = train::make_run_spec(s.config, s.model);
  const auto& recipe = run_spec.precision.fp8.recipe;
  require(options.what == "codec" || !recipe || !recipe->delayed,
          "--fp8-recipe delayed takes its scales from earlier steps: measure it by `agoq bench step`");
  bench::Bench bench(s.device, run_spec);
  Json json = described(options, s, bench.memory());
  const bool codec = options.what == "codec", layer = options.what == "layer", fp8 = options.what == "fp8";
  Ceilings ceilings;
  ceilings.bytes_per_second = bench.copy_bandwidth(kShareOfOp * options.seconds);
  if (!codec) ceilings.flops = bench.sustained_flops(options.seconds);
  print_ceilings(ceilings, run_spec);
  std::vector<bench::Op> ops = codec ? bench::codec_ops(run_spec)
                               : fp8 ? bench::fp8_ops(run_spec)
                                     : bench::layer_ops(run_spec);
  if (options.what == "op") {
    const std::vector<bench::Op> ends = bench::end_ops(run_spec);
    ops.insert(ops.end(), ends.begin(), ends.end());
  }
  const std::vector<Measured> measured = bench.measure(ops, kShareOfOp * options.seconds);
  print_ops(measured, ceilings);
  json["ceilings"] = json_of(ceilings);
  json["ops"] = json_of(measured, ceilings);
  if (layer) json["layer"] = report_layer(bench.measure_layer(options.seconds), measured, ceilings);
  return json;
}

// --- steps -----------------------------------------------------------------------------------------------------------

constexpr size_t kMostKernels = 25;  // that a profile lists

Json json_of(const bench::StepProfile& profile) {
  Json entries = Json::array();
  for (const bench::StepProfile::Entry& entry : profile.entries) {
    entries.push_back(
        {{"name", entry.name}, {"ms", entry.seconds * 1e3}, {"share", entry.seconds / profile.step_seconds}});
    if (entry.runs == 0) continue;
    entries.back()["runs"] = entry.runs;
    entries.back()["idle_before_ms"] = entry.idle_before * 1e3;
  }
  return {{"step_ms", profile.step_seconds * 1e3}, {"busy_ms", profile.busy_seconds * 1e3}, {"entries", entries}};
}

Json json_of(const bench::StepTimes& t, double ceiling) {
  Json json = {{"layers", t.layers},
               {"steps", t.steps},
               {"ms", t.seconds * 1e3},
               {"tokens_per_second", t.tokens_per_second},
               {"flops_per_second", t.flops},
               {"share", t.flops / ceiling},
               {"loss", t.loss},
               {"planned_bytes", t.planned_bytes}};
  if (t.driver_bytes > 0) json["driver_bytes"] = t.driver_bytes;
  if (t.profile) json["profile"] = json_of(*t.profile);
  return json;
}

void print_profiles(const std::vector<bench::StepTimes>& times) {
  for (const bench::StepTimes& t : times)
    if (t.profile) fmt::print("{} layers\n{}\n", t.layers, bench::table_of(*t.profile, kMostKernels));
}

void print_steps(const std::vector<bench::StepTimes>& times, double ceiling) {
  Table table({"layers", "ms/step", "tokens/s", "TFLOP/s", "of ceiling", "planned", "in use", "loss"});
  for (const bench::StepTimes& t : times)
    table.add_row({std::to_string(t.layers), fmt::format("{:.1f}", t.seconds * 1e3),
                   fmt::format("{:.0f}", t.tokens_per_second), teraflops(t.flops), percent(t.flops / ceiling),
                   human_bytes(t.planned_bytes), t.driver_bytes > 0 ? human_bytes(t.driver_bytes) : "",
                   fmt::format("{:.3f}", t.loss)});
  fmt::print("{}\n", table.text());
}

// What one more layer costs, from two depths.
Json report_marginal(const bench::StepTimes& a, const bench::StepTimes& b) {
  const auto layers = static_cast<double>(b.layers - a.layers);
  const double seconds = (b.seconds - a.seconds) / layers;
  const double bytes = (static_cast<double>(b.planned_bytes) - static_cast<double>(a.planned_bytes)) / layers;
  fmt::print("one more layer: {:.3f} ms a step, {}\n", seconds * 1e3, human_bytes(static_cast<uint64_t>(bytes)));
  return {{"ms", seconds * 1e3}, {"planned_bytes", bytes}};
}

Json run_steps(const BenchOptions& options) {
  const std::vector<int64_t> depths = options.layers.empty() ? std::vector<int64_t>{0} : options.layers;
  require(depths.size() == 1 || (depths.size() == 2 && depths[0] < depths[1]),
          "--num-layers: give one number of layers, or two rising ones for what one more layer costs");
  Json json;
  double ceiling = 0;
  std::string_view ceiling_name;
  {
    const Subject s = subject_of(options, depths.front());
    bench::Bench bench(s.device, train::make_run_spec(s.config, s.model));
    json = described(options, s, bench.memory());
    ceiling = bench.sustained_flops(options.seconds);
    ceiling_name = bench::ceiling_name(bench.run_spec());
  }
  std::vector<bench::StepTimes> times;
  for (const int64_t depth : depths) {
    const Subject s = subject_of(options, depth);
    times.push_back(bench::measure_steps(s.config, s.model, s.device, options.seconds,
                                         options.profile ? bench::Profiled::Yes : bench::Profiled::No));
  }
  fmt::print("ceiling, measured now: {} {} TFLOP/s\n\n", ceiling_name, teraflops(ceiling));
  print_steps(times, ceiling);
  print_profiles(times);
  json["ceilings"] = {{"flops_per_second", ceiling}};
  for (const bench::StepTimes& t : times) json["steps"].push_back(json_of(t, ceiling));
  if (times.size() == 2) json["one_more_layer"] = report_marginal(times[0], times[1]);
  return json;
}

// What the leading process has found; nothing on others.
std::optional<Json> run_what(const BenchOptions& options) {
  const bool collective = options.what == "collective";
  require(!options.profile || options.what == "step", "--profile is of `agoq bench step`, not of {}", options.what);
  require(collective || options.sizes.empty(), "--sizes is of `agoq bench collective`, not of {}", options.what);
  require(!collective || options.layers.empty(), "--num-layers: `agoq bench collective` has no layers; see --sizes");
  if (collective) return bench_collective(options.settings->config(), {options.sizes, kShareOfOp * options.seconds});
  return options.what == "step" ? run_steps(options) : run_ops(options);
}

void run_bench(const BenchOptions& options) {
  const auto check_file = [&](const std::ofstream& file) { require(file.good(), "cannot write {}", options.json); };
  if (!options.json.empty()) check_file(std::ofstream(options.json, std::ios::app));  // before minutes of measuring
  const std::optional<Json> json = run_what(options);
  if (!json || options.json.empty()) return;
  std::ofstream file(options.json);
  file << json->dump(1) << '\n';
  file.flush();
  check_file(file);
}

}  // namespace

Command add_bench(CLI::App& program) {
  CLI::App* app = program.add_subcommand(
      "bench", "measure codecs, ops, a layer or whole steps against this device, sums over ranks against NCCL");
  auto options = std::make_shared<BenchOptions>();
  app->add_option("WHAT", options->what,
                  "codec: every format; op: every op of a training step; layer: one decoder layer and its ops; step: "
                  "whole training steps; fp8: a layer's products of 8-bit floats, and the making of their operands; "
                  "collective: gradients summed over the processes of a launch")
      ->required()
      ->type_name("codec|op|layer|step|fp8|collective")
      ->check(CLI::IsMember({"codec", "op", "layer", "step", "fp8", "collective"}).description(""));
  app->add_option("--num-layers", options->layers,
                  "instead of the model's; two numbers (N,M) tell what one more layer costs a step")
      ->delimiter(',')
      ->type_name("N")
      ->check(CLI::PositiveNumber.description(""));
  app->add_option("--sizes", options->sizes,
                  "of the gradients of `collective`, counted in fp32 (default: 1MiB to 4GiB, as memory allows; on the "
                  "CPU to 16MiB)")
      ->delimiter(',')
      ->type_name("SIZE");
  app->add_option("--seconds", options->seconds,
                  "how long steps, a layer and the ceiling of matrix products run; an op, or a way to sum, runs for a "
                  "twentieth of it (default: 10)")
      ->type_name("S")
      ->check(CLI::PositiveNumber.description(""));
  app->add_flag("--profile", options->profile,
                "of `step`: also where a step's time goes, by some more steps: on a GPU its kernels by name (needs "
                "CUPTI, which comes with the CUDA toolkit), on the CPU kinds of work");
  app->add_option("--json", options->json, "also write JSON to this file")->type_name("FILE");
  options->settings = SettingOptions::add(*app);
  app->footer(
      "Random data; times are medians after a warm-up. Ceilings are measured in the same run: a large copy for what\n"
      "moves bytes (each input read once, each output written once), the matrix products and attention of a layer\n"
      "back to back for what multiplies. With --fp8-format these products are in 8-bit floats, of operands made\n"
      "beforehand.\n"
      "`collective` needs no model; every launcher of `agoq train` starts its processes. NCCL's own sums in fp32 and\n"
      "bf16 take turns with ours where each process has a GPU; NCCL_P2P_DISABLE=1 NCCL_SHM_DISABLE=1 puts the network\n"
      "between GPUs of one host.\n"
      "Example: agoq bench step --model-config llama3-8b --num-layers 4,8 --seq-length 8192\n"
      "         torchrun --no_python --nproc_per_node 8 agoq bench collective --sizes 32MiB,256MiB --json sums.json");
  return {app, [options] { run_bench(*options); }};
}

}  // namespace agoq::cli
