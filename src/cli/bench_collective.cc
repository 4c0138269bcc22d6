#include "cli/bench_collective.h"

#include <unistd.h>

#include <numeric>

#include "base/text.h"
#include "bench/collective.h"
#include "cli/options.h"
#include "cli/processes.h"
#include "comm/gpu/nccl_cuda.h"

namespace agoq::cli {
namespace {

using bench::SumTime;
using bench::SumTimes;
using codec::Codec;
using Json = nlohmann::ordered_json;

std::vector<int64_t> sizes_of(const CollectiveOptions& options, Device device) {
  std::vector<std::string> texts = options.sizes;
  if (texts.empty()) texts = {"1MiB", "4MiB", "16MiB"};
  if (options.sizes.empty() && device == Device::Cuda)
    texts = {"1MiB", "4MiB", "16MiB", "32MiB", "64MiB", "256MiB", "1GiB", "4GiB"};
  std::vector<int64_t> sizes;
  for (const std::string& text : texts) {
    const uint64_t bytes = parse_bytes(text);
    require(bytes >= 1 << 10 && bytes <= uint64_t{1} << 40, "--sizes {}: a gradient has 1KiB to 1TiB", text);
    sizes.push_back(static_cast<int64_t>(bytes));
  }
  return sizes;
}

// What changes how NCCL works.
Json nccl_variables() {
  Json variables = Json::object();
  for (char** variable = environ; *variable; ++variable) {
    const std::string_view text = *variable;
    const size_t equals = text.find('=');
    if (text.starts_with("NCCL_") && equals != text.npos)
      variables[std::string(text.substr(0, equals))] = text.substr(equals + 1);
  }
  return variables;
}

std::string nccl_version() {
  if constexpr (comm::kNcclBuild) return text(comm::nccl_version().loaded);
  return "";
}

// How many times as fast as a rival; 0 without one.
double speedup(const SumTimes& all, const SumTime& time, Codec rival_wire) {
  const SumTime* rival = all.rival_of(time, rival_wire);
  return rival && time.median > 0 ? rival->median / time.median : 0;
}

Json json_of(const SumTimes& all) {
  Json list = Json::array();
  for (const SumTime& t : all.times) {
    Json json = {{"bytes", all.bytes},
                 {"sum", bench::name_of(t.name.form)},
                 {"by", t.name.by},
                 {"wire", codec::name_of(t.name.wire)},
                 {"ms", t.median * 1e3},
                 {"least_ms", t.least * 1e3},
                 {"samples", t.samples},
                 {"algorithm_bytes_per_second", static_cast<double>(all.bytes) / t.median},
                 {"bus_bytes_per_second", t.sent_bytes / t.median},
                 {"error", t.error}};
    if (const double times = speedup(all, t, Codec::Fp32); times > 0) json["speedup_over_fp32"] = times;
    if (const double times = speedup(all, t, Codec::Bf16); times > 0) json["speedup_over_bf16"] = times;
    list.push_back(std::move(json));
  }
  return list;
}

void print(const SumTimes& all) {
  fmt::print("a gradient of {} in fp32\n", human_bytes(static_cast<uint64_t>(all.bytes)));
  if (!all.skipped.empty()) {
    fmt::print("skipped: {}\n\n", all.skipped);
    return;
  }
  const auto times = [](double speedup) { return speedup > 0 ? fmt::format("{:.2f}x", speedup) : ""; };
  Table table({"sum", "by", "wire", "ms", "least", "GB/s", "bus GB/s", "over fp32", "over bf16", "error"});
  for (const bench::SumForm form : {bench::SumForm::Exchange, bench::SumForm::Reduce, bench::SumForm::AllReduce})
    for (const SumTime& t : all.times)
      if (t.name.form == form)
        table.add_row({std::string(bench::name_of(form)), t.name.by, std::string(codec::name_of(t.name.wire)),
                       fmt::format("{:.4f}", t.median * 1e3), fmt::format("{:.4f}", t.least * 1e3),
                       fmt::format("{:.1f}", static_cast<double>(all.bytes) / t.median / 1e9),
                       fmt::format("{:.1f}", t.sent_bytes / t.median / 1e9), times(speedup(all, t, Codec::Fp32)),
                       times(speedup(all, t, Codec::Bf16)), fmt::format("{:.2e}", t.error)});
  fmt::print("{}\n", table.text());
}

void print_conditions(const Json& json) {
  std::string variables;
  for (const auto& [name, value] : json["nccl_variables"].items())
    variables += fmt::format(" {}={}", name, value.get<std::string>());
  fmt::print("{} ranks, {}\n", json["ranks"].get<int>(), json["device"].get<std::string>());
  const std::string version = json["nccl"];
  fmt::print("NCCL {}{}; its own sums {}\n\n", version.empty() ? "is not in this build" : version, variables,
             json["nccl_sums"].get<bool>() ? "beside ours" : "cannot run here: ours in fp32 and bf16 in their place");
}

}  // namespace

std::optional<Json> bench_collective(const train::TrainConfig& config, const CollectiveOptions& options) {
  const comm::GroupOptions links = train::links_of(config);
  const Device device = train::resolve_device(config.device);
  const std::vector<int64_t> sizes = sizes_of(options, device);
  use_threads(config);
  const RunProcesses processes(config);
  std::optional<Json> result;
  processes.run([&] {
    const train::Processes own = processes.for_trainer();
    DeviceMemory memory(device, own.local_rank);
    comm::ProcessGroup group;
    if (own.transport) {
      std::vector<int> ranks(static_cast<size_t>(own.transport->size()));
      std::iota(ranks.begin(), ranks.end(), 0);
      group = comm::ProcessGroup(*own.transport, ranks, 0, links);
    }
    bench::CollectiveBench bench(memory, group, {links, options.seconds, config.seed});
    Json json = {{"what", "collective"},          {"device", memory.gpu() ? memory.gpu()->name() : "cpu"},
                 {"ranks", group.size()},         {"nccl", nccl_version()},
                 {"nccl_sums", bench.has_nccl()}, {"nccl_variables", nccl_variables()},
                 {"sums", Json::array()},         {"skipped", Json::array()}};
    if (processes.is_rank0()) print_conditions(json);
    for (const int64_t size : sizes) {
      const SumTimes times = bench.measure(size);
      if (processes.is_rank0()) print(times);
      std::fflush(stdout);
      for (const Json& sum : json_of(times)) json["sums"].push_back(sum);
      if (!times.skipped.empty()) json["skipped"].push_back({{"bytes", times.bytes}, {"why", times.skipped}});
    }
    json["link"] = group.alone() ? "nothing" : memory.gpu() ? group.gpu_link() : "sockets";  // known by now
    if (!processes.is_rank0()) return;
    fmt::print("between the ranks: {}\n", json["link"].get<std::string>());
    result = std::move(json);
  });
  return result;
}

}  // namespace agoq::cli
