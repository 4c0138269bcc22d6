#include "train/checkpoint_writer.h"

#include <chrono>

#include "device/transfer.h"

namespace agoq::train {
namespace {

SavedCheckpoint save(const std::string& folder, int64_t step, const std::vector<NamedTensor>& tensors,
                     const std::string& metadata, int64_t keep_last) {
  try {
    return {step, save_checkpoint(folder, step, tensors, metadata, {.keep_last = keep_last}), ""};
  } catch (const std::exception& error) {
    return {step, "", error.what()};
  }
}

}  // namespace

void CheckpointWriter::begin(const Context& ctx, int64_t step, const std::vector<NamedTensor>& tensors,
                             std::string metadata) {
  require(!running_.valid(), "a checkpoint is begun while the outcome of the last one was not asked for");
  if (ctx.device() == Device::Cpu) {
    std::promise<SavedCheckpoint> done;
    running_ = done.get_future();
    return done.set_value(save(folder_, step, tensors, metadata, keep_last_));
  }
  running_ =
      std::async(std::launch::async, save, folder_, step, copy_to_host(ctx, tensors), std::move(metadata), keep_last_);
}

std::optional<SavedCheckpoint> CheckpointWriter::poll() {
  const bool ended = running_.valid() && running_.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
  return ended ? finish() : std::nullopt;
}

std::optional<SavedCheckpoint> CheckpointWriter::finish() {
  if (!running_.valid()) return std::nullopt;
  return running_.get();
}

std::vector<NamedTensor> CheckpointWriter::copy_to_host(const Context& ctx, const std::vector<NamedTensor>& tensors) {
  std::vector<NamedTensor> on_host = tensors;
  if (copies_.empty())
    for (const NamedTensor& t : tensors) copies_.push_back(std::make_unique_for_overwrite<uint8_t[]>(t.tensor.bytes()));
  for (size_t i = 0; i < tensors.size(); ++i) {
    download(ctx, tensors[i].tensor, copies_[i].get());
    on_host[i].tensor.data = copies_[i].get();
    on_host[i].tensor.device = Device::Cpu;
  }
  return on_host;
}

}  // namespace agoq::train
