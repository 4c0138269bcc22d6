#include "cli/stage_tables.h"

#include <fmt/format.h>

#include "base/text.h"

namespace agoq::cli {
namespace {

// "0-3, 16-19"
std::string layers_text(std::span<const parallel::LayerRange> chunks) {
  std::string text;
  for (const parallel::LayerRange& chunk : chunks) {
    text += text.empty() ? "" : ", ";
    text += chunk.count() == 1 ? fmt::format("{}", chunk.begin) : fmt::format("{}-{}", chunk.begin, chunk.end - 1);
  }
  return text;
}

}  // namespace

std::string stage_memory_table(std::span<const plan::RankPlan> stages) {
  Table table({"stage", "layers", "parameters", "weights", "gradients", "moments", "saved", "other", "total"});
  for (const plan::RankPlan& stage : stages) {
    const plan::Layout& layout = stage.layout;
    const size_t gradients = layout.of(Owner::MainGradients), moments = layout.of(Owner::Moments);
    const size_t weights = layout.model_state() - gradients - moments, saved = layout.saved();
    const size_t other = layout.total - layout.model_state() - saved;
    table.add_row({fmt::format("{}", stage.stage), layers_text(stage.chunks),
                   human_count(static_cast<uint64_t>(stage.parameters)), human_bytes(weights), human_bytes(gradients),
                   human_bytes(moments), human_bytes(saved), human_bytes(other), human_bytes(layout.total)});
  }
  return table.text();
}

std::string stage_traffic_table(std::span<const plan::RankPlan> stages) {
  Table table({"stage", "in flight", "sends: tensor", "data", "pipeline", "keeps layers' inputs in"});
  for (const plan::RankPlan& stage : stages) {
    const parallel::Traffic& sent = stage.sent;
    table.add_row({fmt::format("{}", stage.stage), fmt::format("{}", stage.in_flight), human_bytes(sent.tensor),
                   human_bytes(sent.data), human_bytes(sent.pipeline), stage.widths});
  }
  return table.text();
}

}  // namespace agoq::cli
