#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/text.h"
#include "cli/command.h"
#include "cli/memory_table.h"
#include "cli/options.h"
#include "cli/stage_tables.h"
#include "comm/limits.h"
#include "plan/comparison.h"
#include "train/init_source.h"
#include "train/memory_advice.h"

namespace agoq::cli {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kListed = 12;  // changes
constexpr int kListedRanks = 64;

struct PlanOptions {
  std::shared_ptr<SettingOptions> settings;
  std::string model;
  std::string target = "cuda";
  int world_size = 0;
  bool json = false;
};

struct Plan {
  train::TrainConfig config;
  model::ModelConfig model;
  Device target{};
  parallel::RunSpec run_spec;
  std::vector<plan::RankPlan> stages;
  plan::RankPlan largest;
  plan::Layout reference;  // of the largest
  uint64_t estimate = 0;   // CUDA context and libraries
  uint64_t budget = 0;     // 0: none given
  std::vector<plan::Advice> advice;
  std::string note;
  const plan::Layout& ours() const { return largest.layout; }
  const comm::Mesh& mesh() const { return run_spec.parallelism.mesh; }
  uint64_t needed() const { return ours().total + estimate; }
  bool fits() const { return needed() <= budget; }
};

Plan make_plan(const PlanOptions& options) {
  Plan p;
  train::TrainConfig config = options.settings->config();
  if (!options.model.empty()) {
    require(config.model.empty() && config.model_config.empty() && config.finetune.empty(),
            "give the model once: '{}', --model, --model-config or --finetune", options.model);
    // Of a folder the weights say whether the head is tied.
    (std::filesystem::is_directory(options.model) ? config.model : config.model_config) = options.model;
  }
  p.model = train::resolve_model(config);
  if (config.seq_length > p.model.max_positions) {
    p.note =
        fmt::format("sequences of {} are longer than the {} positions this model was made for; planned all the same",
                    config.seq_length, p.model.max_positions);
    p.model.max_positions = config.seq_length;
  }
  p.target = options.target == "cuda" ? Device::Cuda : Device::Cpu;
  p.estimate = plan::beside_the_arena(p.target);
  const int world = options.world_size > 0 ? options.world_size : train::model_ranks(config);
  p.config = train::resolved(config, p.model, p.target, world);
  p.run_spec = train::planned_run_spec(p.config, p.model, p.target, {0, world});
  p.stages = plan::plan_stages(p.run_spec, p.target);
  p.largest = plan::largest(p.stages);
  p.reference = plan::plan_layout(plan::at_rank(plan::reference_run_spec(p.run_spec), p.largest.rank), p.target);
  if (!config.gpu_memory.empty()) p.budget = parse_bytes(config.gpu_memory);
  if (p.budget > 0 && !p.fits())
    p.advice =
        train::memory_advice(p.config, p.model, world, p.budget > p.estimate ? p.budget - p.estimate : 0, p.target);
  return p;
}

void print_advice(const Plan& p) {
  if (p.ours().model_state() + p.estimate > p.budget)
    fmt::print("Weights, gradients and moments alone are {}: no batch is small enough.\n\n",
               human_bytes(p.ours().model_state()));
  if (p.advice.empty()) {
    fmt::print("No single setting makes it smaller; take a smaller model or a larger device.\n");
    return;
  }
  Table table({"single change", "saves", "then needs", "fits", "costs"});
  for (size_t i = 0; i < std::min(kListed, p.advice.size()); ++i) {
    const plan::Advice& a = p.advice[i];
    table.add_row({a.what, human_bytes(a.saved), human_bytes(a.total + p.estimate), a.fits ? "yes" : "no", a.cost});
  }
  fmt::print("{}", table.text());
  if (!p.advice.front().fits) fmt::print("\nNo single change is enough; combine some of these.\n");
}

// How long stages of a pipeline wait for each other, of the time they compute; backward takes twice as long as forward.
double idle(const parallel::Parallelism& p) {
  return parallel::simulate(p.stages(), p.chunks, p.micro_batches, {}).bubble;
}

void print_mesh(const Plan& p) {
  const parallel::Parallelism& parallelism = p.run_spec.parallelism;
  fmt::print("{} processes: {}; micro-batches of a step on each data rank: {}\n", p.mesh().ranks(), p.mesh().text(),
             parallelism.micro_batches);
  if (parallelism.stages() > 1)
    fmt::print("stages wait for each other for {:.0f}% of the time they compute\n", 100 * idle(parallelism));
  fmt::print("\nOne rank of each stage, that with the most where ranks have unequal parts:\n\n{}\n",
             stage_memory_table(p.stages));
  fmt::print("The most activations of one chunk and micro-batch at a time, and bytes sent in a step:\n\n{}\n",
             stage_traffic_table(p.stages));
  if (parallelism.stages() > 1) fmt::print("Stage {} needs the most:\n\n", p.largest.stage);
}

void print_text(const Plan& p) {
  const std::string products = train::fp8_text(p.config, p.model.layers);
  fmt::print("{} parameters, micro-batches of {} x {} tokens, on {}\n{}\n",
             human_count(static_cast<uint64_t>(p.model.parameters())), p.config.micro_batch_size, p.config.seq_length,
             p.target == Device::Cuda ? "a GPU" : "the CPU", products.empty() ? "" : products + "\n");
  if (p.mesh().ranks() > 1) print_mesh(p);
  fmt::print("{}\n", memory_table(p.ours(), p.reference));
  if (p.estimate > 0)
    fmt::print("CUDA context and libraries, an estimate not in the total: {}\n", human_bytes(p.estimate));
  if (!p.note.empty()) fmt::print("note: {}\n", p.note);
  if (p.budget == 0) return;
  if (p.fits()) {
    fmt::print("fits in {}: yes, {} free\n", human_bytes(p.budget), human_bytes(p.budget - p.needed()));
    return;
  }
  fmt::print("fits in {}: no, {} too much\n\n", human_bytes(p.budget), human_bytes(p.needed() - p.budget));
  print_advice(p);
}

Json json_of(const plan::RankPlan& rank, const comm::Mesh& mesh) {
  Json json;
  json["rank"] = rank.rank;
  for (const comm::Axis& axis : mesh.axes()) json[axis.name] = mesh.at(rank.rank, axis.name);
  for (const parallel::LayerRange& chunk : rank.chunks) json["layers"].push_back({chunk.begin, chunk.end});
  json["parameters"] = rank.parameters;
  json["in_flight"] = rank.in_flight;
  json["widths"] = rank.widths;
  json["total"] = rank.layout.total;
  for (const OwnerBytes& owner : rank.layout.owners)
    json["owners"].push_back({{"owner", owner.owner.text()}, {"bytes", owner.bytes}});
  const parallel::Traffic& sent = rank.sent;
  json["bytes_sent"] = {{"tensor", sent.tensor}, {"data", sent.data}, {"pipeline", sent.pipeline}};
  return json;
}

// Stages by the rank that holds the most; every rank where there are few.
void add_mesh(Json& json, const Plan& p) {
  json["world_size"] = p.mesh().ranks();
  for (const comm::Axis& axis : p.mesh().axes()) json["mesh"][axis.name] = axis.size;
  json["micro_batches"] = p.run_spec.parallelism.micro_batches;
  json["idle"] = idle(p.run_spec.parallelism);
  json["largest_rank"] = p.largest.rank;
  for (const plan::RankPlan& stage : p.stages) json["stages"].push_back(json_of(stage, p.mesh()));
  if (p.mesh().ranks() > kListedRanks) return;
  for (const plan::RankPlan& rank : plan::plan_ranks(p.run_spec, p.target))
    json["ranks"].push_back(json_of(rank, p.mesh()));
}

void print_json(const Plan& p) {
  Json json;
  json["target"] = p.target == Device::Cuda ? "cuda" : "cpu";
  json["model"] = Json::parse(model::config_to_json(p.model));
  json["parameters"] = p.model.parameters();
  json["seq_length"] = p.config.seq_length;
  json["micro_batch_size"] = p.config.micro_batch_size;
  if (const std::string products = train::fp8_text(p.config, p.model.layers); !products.empty())
    json["products"] = products;
  for (const plan::OwnerPair& row : plan::paired(p.ours(), p.reference))
    json["owners"].push_back({{"owner", row.owner.text()}, {"bytes", row.bytes}, {"reference_bytes", row.reference}});
  json["total"] = p.ours().total;
  json["reference_total"] = p.reference.total;
  json["bytes_per_parameter"] = static_cast<double>(p.ours().model_state()) / static_cast<double>(p.largest.parameters);
  json["cuda_context_estimate"] = p.estimate;
  if (!p.note.empty()) json["note"] = p.note;
  add_mesh(json, p);
  if (p.budget > 0) {
    json["budget"] = p.budget;
    json["fits"] = p.fits();
    json["advice"] = Json::array();
    for (const plan::Advice& a : p.advice)
      json["advice"].push_back(
          {{"change", a.what}, {"cost", a.cost}, {"total", a.total}, {"saved", a.saved}, {"fits", a.fits}});
  }
  fmt::print("{}\n", json.dump(1));
}

}  // namespace

Command add_plan(CLI::App& program) {
  CLI::App* app = program.add_subcommand("plan", "tell before training what it will hold, and whether it fits");
  auto options = std::make_shared<PlanOptions>();
  app->add_option("MODEL", options->model, "a preset, a Hugging Face folder or a config.json");
  options->settings =
      SettingOptions::add(*app, {"model", "model-config", "finetune", "ignore-config-keys", "seq-length",
                                 "micro-batch-size", "global-batch-size", "Precision", "Parallel", "gpu-memory"});
  app->add_option("--world-size", options->world_size,
                  "number of processes; those that tensor and pipeline leave are data parallel (default: one copy of "
                  "the model)")
      ->type_name("N")
      ->check(CLI::Range(1, comm::kMostRanks).description(""))
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  app->add_option("--target", options->target, "lay out for a GPU (bf16 compute) or for the CPU (default: cuda)")
      ->type_name("cuda|cpu")
      ->check(CLI::IsMember({"cuda", "cpu"}).description(""));
  app->add_flag("--json", options->json, "print JSON");
  app->footer(
      "Nothing is allocated and no GPU is needed: the training code itself runs on shapes alone.\n"
      "Examples:\n"
      "  agoq plan llama3-8b --seq-length 8192 --gpu-memory 80GiB\n"
      "  agoq plan llama3-8b --pipeline-model-parallel-size 4 --num-virtual-stages-per-pipeline-rank 2 "
      "--global-batch-size 8");
  return {app, [options] {
            const Plan plan = make_plan(*options);
            options->json ? print_json(plan) : print_text(plan);
          }};
}

}  // namespace agoq::cli
