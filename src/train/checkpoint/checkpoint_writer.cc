#include "train/checkpoint/checkpoint_writer.h"

#include <chrono>
#include <utility>

#include "device/transfer.h"

namespace agoq::train {
namespace {

template <class T>
bool ended(const std::future<T>& running) {
  return running.valid() && running.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
}

}  // namespace

CheckpointWriter::~CheckpointWriter() {
  if (fragment_.valid()) fragment_.wait();
  if (saved_.valid()) saved_.wait();
}

void CheckpointWriter::begin(const Context& ctx, std::string draft, const std::vector<StoredTensor>& tensors,
                             std::string metadata) {
  require(!fragment_.valid() && !saved_.valid(),
          "a checkpoint is begun while the outcome of the last one was not asked for");
  at_once_ = ctx.device() == Device::Cpu;
  draft_ = std::move(draft);
  metadata_ = std::move(metadata);
  const auto write = [this](const std::vector<StoredTensor>& on_host) {
    return write_fragment(folder_, draft_, on_host, options_);
  };
  fragment_ = std::async(std::launch::async, write, at_once_ ? tensors : copy_to_host(ctx, tensors));
  if (at_once_) fragment_.wait();
}

std::optional<std::string> CheckpointWriter::poll_fragment() {
  return ended(fragment_) ? finish_fragment() : std::nullopt;
}

std::optional<std::string> CheckpointWriter::finish_fragment() {
  if (!fragment_.valid()) return std::nullopt;
  return fragment_.get();
}

void CheckpointWriter::commit(std::vector<std::string> fragments) {
  require(!fragment_.valid() && !saved_.valid(), "a checkpoint is committed before its parts are written, or twice");
  const auto complete = [this](const std::vector<std::string>& parts) -> SavedCheckpoint {
    const int64_t step = step_of_draft(draft_);
    try {
      return {step, commit_checkpoint(folder_, draft_, parts, metadata_, options_), ""};
    } catch (const std::exception& error) {
      return {step, "", error.what()};
    }
  };
  saved_ = std::async(std::launch::async, complete, std::move(fragments));
  if (at_once_) saved_.wait();
}

std::optional<SavedCheckpoint> CheckpointWriter::poll() {
  return ended(saved_) ? finish() : std::nullopt;
}

std::optional<SavedCheckpoint> CheckpointWriter::finish() {
  if (!saved_.valid()) return std::nullopt;
  return saved_.get();
}

std::vector<StoredTensor> CheckpointWriter::copy_to_host(const Context& ctx, std::vector<StoredTensor> tensors) {
  size_t next = 0;
  for (StoredTensor& tensor : tensors) {
    std::erase_if(tensor.pieces, [](const StoredPiece& piece) { return piece.replica; });
    for (StoredPiece& piece : tensor.pieces) {
      if (next == copies_.size()) copies_.push_back(std::make_unique_for_overwrite<uint8_t[]>(piece.data.bytes()));
      uint8_t* copy = copies_[next++].get();
      download(ctx, piece.data, copy);
      piece.data.data = copy;
      piece.data.device = Device::Cpu;
    }
  }
  return tensors;
}

}  // namespace agoq::train
