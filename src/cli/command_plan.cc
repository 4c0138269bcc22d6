#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "base/text.h"
#include "cli/command.h"
#include "cli/memory_table.h"
#include "cli/options.h"
#include "plan/comparison.h"
#include "train/memory_advice.h"

namespace agoq::cli {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kListed = 12;

struct PlanOptions {
  std::shared_ptr<SettingOptions> settings;
  std::string model;
  std::string target = "cuda";
  bool json = false;
};

struct Plan {
  train::TrainConfig config;
  model::ModelConfig model;
  Device target{};
  plan::Layout ours, reference;
  uint64_t estimate = 0;  // CUDA context and libraries
  uint64_t budget = 0;    // 0: none given
  std::vector<plan::Advice> advice;
  std::string note;
  uint64_t needed() const { return ours.total + estimate; }
  bool fits() const { return needed() <= budget; }
};

Plan make_plan(const PlanOptions& options) {
  Plan p;
  train::TrainConfig config = options.settings->config();
  if (!options.model.empty()) {
    require(config.model.empty() && config.model_config.empty() && config.finetune.empty(),
            "give the model once: '{}', --model, --model-config or --finetune", options.model);
    config.model_config = options.model;
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
  p.config = train::resolved(config, p.model, p.target);
  const parallel::Job job = train::make_job(p.config, p.model);
  p.ours = plan::plan_layout(job, p.target);
  p.reference = plan::plan_layout(plan::reference_job(job), p.target);
  if (!config.gpu_memory.empty()) p.budget = parse_bytes(config.gpu_memory);
  if (p.budget > 0 && !p.fits())
    p.advice = train::memory_advice(p.config, p.model, p.budget > p.estimate ? p.budget - p.estimate : 0, p.target);
  return p;
}

void print_advice(const Plan& p) {
  if (p.ours.model_state() + p.estimate > p.budget)
    fmt::print("Weights, gradients and moments alone are {}: no batch is small enough.\n\n",
               human_bytes(p.ours.model_state()));
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

void print_text(const Plan& p) {
  fmt::print("{} parameters, micro-batches of {} x {} tokens, on {}\n\n",
             human_count(static_cast<uint64_t>(p.model.parameters())), p.config.micro_batch_size, p.config.seq_length,
             p.target == Device::Cuda ? "a GPU" : "the CPU");
  fmt::print("{}\n", memory_table(p.ours, p.reference));
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

void print_json(const Plan& p) {
  Json json;
  json["target"] = p.target == Device::Cuda ? "cuda" : "cpu";
  json["parameters"] = p.model.parameters();
  json["seq_length"] = p.config.seq_length;
  json["micro_batch_size"] = p.config.micro_batch_size;
  for (const plan::OwnerPair& row : plan::paired(p.ours, p.reference))
    json["owners"].push_back({{"owner", row.owner}, {"bytes", row.bytes}, {"reference_bytes", row.reference}});
  json["total"] = p.ours.total;
  json["reference_total"] = p.reference.total;
  json["bytes_per_parameter"] = static_cast<double>(p.ours.model_state()) / static_cast<double>(p.model.parameters());
  json["cuda_context_estimate"] = p.estimate;
  if (!p.note.empty()) json["note"] = p.note;
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
  options->settings = SettingOptions::add(*app, {"model", "model-config", "finetune", "seq-length", "micro-batch-size",
                                                 "global-batch-size", "Precision", "gpu-memory"});
  app->add_option("--target", options->target, "lay out for a GPU (bf16 compute) or for the CPU (default: cuda)")
      ->type_name("cuda|cpu")
      ->check(CLI::IsMember({"cuda", "cpu"}).description(""));
  app->add_flag("--json", options->json, "print JSON");
  app->footer(
      "Nothing is allocated and no GPU is needed: the training code itself runs on shapes alone.\n"
      "Example: agoq plan llama3-8b --seq-length 8192 --gpu-memory 80GiB");
  return {app, [options] {
            const Plan plan = make_plan(*options);
            options->json ? print_json(plan) : print_text(plan);
          }};
}

}  // namespace agoq::cli
