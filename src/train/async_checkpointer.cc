#include "train/async_checkpointer.h"

#include <nlohmann/json.hpp>

namespace agoq::train {
namespace {

using Json = nlohmann::ordered_json;

std::string as_text(const SavedCheckpoint& saved) {
  return Json{{"step", saved.step}, {"path", saved.path}, {"error", saved.error}}.dump(-1, ' ', false,
                                                                                       Json::error_handler_t::replace);
}

SavedCheckpoint from_text(const std::string& text) {
  const Json json = Json::parse(text);
  return {json.at("step"), json.at("path"), json.at("error")};
}

}  // namespace

AsyncCheckpointer::AsyncCheckpointer(const Coordinator& coordinator, std::string folder, int64_t keep_last)
    : coordinator_(coordinator),
      writer_(std::move(folder), {.keep_last = keep_last, .rank = coordinator.rank(), .ranks = coordinator.size()}) {}

void AsyncCheckpointer::begin(const Context& ctx, int64_t step, const std::vector<StoredTensor>& tensors,
                              std::string metadata) {
  require(phase_ == Phase::Idle, "a checkpoint is begun while the outcome of the last one was not asked for");
  writer_.begin(ctx, coordinator_.broadcast(coordinator_.is_rank0() ? writer_.draft(step) : ""), tensors,
                std::move(metadata));
  phase_ = Phase::Writing;
}

std::optional<SavedCheckpoint> AsyncCheckpointer::advance(bool wait) {
  if (phase_ == Phase::Writing && all_written(wait)) {
    std::vector<std::string> fragments = coordinator_.gather(*fragment_);
    fragment_.reset();
    if (coordinator_.is_rank0()) writer_.commit(std::move(fragments));
    phase_ = Phase::Committing;
  }
  if (phase_ != Phase::Committing) return std::nullopt;
  const std::string text = coordinator_.broadcast(coordinator_.is_rank0() ? outcome(wait) : "");
  if (text.empty()) return std::nullopt;
  phase_ = Phase::Idle;
  return from_text(text);
}

bool AsyncCheckpointer::all_written(bool wait) {
  if (!fragment_) fragment_ = wait ? writer_.finish_fragment() : writer_.poll_fragment();
  return coordinator_.all(fragment_.has_value());
}

std::string AsyncCheckpointer::outcome(bool wait) {
  const auto saved = wait ? writer_.finish() : writer_.poll();
  return saved ? as_text(*saved) : "";
}

}  // namespace agoq::train
