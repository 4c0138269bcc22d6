#include "train/checkpoint/state_io.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <iterator>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "device/transfer.h"
#include "ops/linear/weight.h"
#include "parallel/stored_state.h"

namespace agoq::train {
namespace {

constexpr int64_t kSlab = 1 << 20;  // numbers converted at a time

const ManifestTensor& find_tensor(const Checkpoint& checkpoint, const std::string& name, DType dtype,
                                  std::span<const int64_t> dims) {
  const ManifestTensor* tensor = checkpoint.find(name);
  require(tensor != nullptr, "the checkpoint {} does not fit the model: missing: '{}'", checkpoint.path(), name);
  require(tensor->dtype == dtype && std::ranges::equal(tensor->shape, dims),
          "the checkpoint {} does not fit the model: '{}': saved {} [{}], expected {} [{}]", checkpoint.path(), name,
          name_of(tensor->dtype), fmt::join(tensor->shape, ", "), name_of(dtype), fmt::join(dims, ", "));
  return *tensor;
}

// A weight as the checkpoint holds it: fp32, or bf16 and the int16 correction.
class SavedWeight {
 public:
  SavedWeight(const Checkpoint& checkpoint, std::string_view param, std::span<const int64_t> dims)
      : checkpoint_(checkpoint) {
    const std::string name = fmt::format("{}{}", parallel::kStoredWeights, param);
    const ManifestTensor* saved = checkpoint.find(name);
    const bool whole = saved && saved->dtype == DType::F32;
    value_ = &find_tensor(checkpoint, name, whole ? DType::F32 : DType::BF16, dims);
    if (whole) return;
    correction_ = &find_tensor(checkpoint, fmt::format("{}{}", parallel::kStoredCorrections, param), DType::I16, dims);
  }

  void verify(const Rectangle& at, DType wanted) const {
    if (wanted != DType::I16 || !correction_) checkpoint_.verify(*value_, at);
    if (wanted != DType::BF16 && correction_) checkpoint_.verify(*correction_, at);
  }

  // What the wanted type holds of the numbers of a rectangle.
  void read(const Rectangle& at, DType wanted, uint8_t* out) {
    if (wanted == value_->dtype) return checkpoint_.read(*value_, at, out);
    if (wanted == DType::I16 && correction_) return checkpoint_.read(*correction_, at, out);
    if (wanted == DType::F32) return read_joined(at, reinterpret_cast<float*>(out));
    read_half(at, wanted, out);
  }

 private:
  void read_joined(const Rectangle& at, float* out) {
    const std::span<const Bf16> high = read_into(high_, *value_, at);
    const std::span<const int16_t> low = read_into(low_, *correction_, at);
    for (size_t i = 0; i < high.size(); ++i) out[i] = ops::join_fp32(high[i], low[i]);
  }

  void read_half(const Rectangle& at, DType wanted, uint8_t* out) {
    for (const float x : read_into(whole_, *value_, at)) {
      Bf16 high;
      int16_t low;
      ops::split_fp32(x, high, low);
      require(std::isfinite(x) && std::isfinite(to_float(high)),
              "the checkpoint {}: tensor '{}' holds {}, which bf16 cannot (largest finite: 3.39e38); keep the weights "
              "in fp32",
              checkpoint_.path(), value_->name, x);
      out = wanted == DType::BF16 ? append(out, high) : append(out, low);
    }
  }

  template <class T>
  std::span<const T> read_into(std::vector<T>& numbers, const ManifestTensor& tensor, const Rectangle& at) const {
    numbers.resize(static_cast<size_t>(at.count()));
    checkpoint_.read(tensor, at, reinterpret_cast<uint8_t*>(numbers.data()));
    return numbers;
  }

  template <class T>
  static uint8_t* append(uint8_t* out, const T& number) {
    std::memcpy(out, &number, sizeof(number));
    return out + sizeof(number);
  }

  const Checkpoint& checkpoint_;
  const ManifestTensor* value_ = nullptr;
  const ManifestTensor* correction_ = nullptr;  // of a split weight
  std::vector<Bf16> high_;
  std::vector<int16_t> low_;
  std::vector<float> whole_;
};

// Amax histories, the newest of each tensor first. Returns whether the checkpoint has all of them.
bool load_amaxes(const Checkpoint& checkpoint, const Context& ctx, std::span<const StoredTensor> tensors) {
  bool complete = true;
  for (const StoredTensor& tensor : tensors) {
    if (!tensor.name.starts_with(parallel::kStoredAmaxes)) continue;
    const ManifestTensor* saved = checkpoint.find(tensor.name);
    complete &= saved != nullptr;
    if (!saved) continue;
    const int64_t sites = tensor.dims.front(), steps = tensor.dims.back();
    require(saved->shape.size() == 2, "the checkpoint {}: '{}' is no amax history", checkpoint.path(), tensor.name);
    const int64_t common = std::min(steps, saved->shape.back());
    find_tensor(checkpoint, tensor.name, DType::F32, std::array{sites, saved->shape.back()});
    std::vector<float> read(static_cast<size_t>(sites * common)), amaxes(static_cast<size_t>(sites * steps));
    checkpoint.read(*saved, {0, sites, 0, common}, reinterpret_cast<uint8_t*>(read.data()));
    for (int64_t site = 0; site < sites; ++site)
      std::copy_n(read.begin() + site * common, common, amaxes.begin() + site * steps);
    upload(ctx, amaxes.data(), tensor.pieces.front().data);
  }
  return complete;
}

}  // namespace

void load_weights(const Checkpoint& checkpoint, const Context& ctx, std::span<const StoredTensor> tensors) {
  std::vector<std::pair<SavedWeight, const StoredTensor*>> work;
  for (const StoredTensor& tensor : tensors) {
    const std::string_view param = parallel::stored_param(tensor.name);
    if (param.empty()) continue;
    tensor.check(ctx.device());
    const SavedWeight& saved = work.emplace_back(SavedWeight(checkpoint, param, tensor.dims), &tensor).first;
    for (const StoredPiece& piece : tensor.pieces) saved.verify(piece.at, tensor.dtype);
  }
  std::vector<uint8_t> slab;
  for (auto& [saved, tensor] : work)
    for (const StoredPiece& piece : tensor->pieces)
      for_row_ranges(piece, kSlab, [&, &weight = saved](const Rectangle& at, const Tensor& part) {
        slab.resize(part.bytes());
        weight.read(at, part.dtype, slab.data());
        upload(ctx, slab.data(), part);
      });
}

void load_weights(const Checkpoint& checkpoint, parallel::TrainingState& state) {
  load_weights(checkpoint, state.context(), state.named_tensors());
}

std::string load_state(const Checkpoint& checkpoint, parallel::TrainingState& state) {
  const std::vector<StoredTensor> tensors = state.named_tensors();
  std::vector<StoredTensor> moments;
  std::ranges::copy_if(tensors, std::back_inserter(moments), parallel::is_stored_moment, &StoredTensor::name);
  load_checkpoint(checkpoint, moments, {.subset = true, .device = &state.context()});
  load_weights(checkpoint, state.context(), tensors);
  const bool complete = load_amaxes(checkpoint, state.context(), tensors);
  state.reset_scales();
  if (complete) return "";
  return "the checkpoint has no amax history of some layers: where there is none, the first step finds its scales in "
         "the "
         "numbers themselves";
}

}  // namespace agoq::train
