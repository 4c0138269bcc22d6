#include "train/state_io.h"

#include <algorithm>
#include <cstring>

namespace agoq::train {
namespace {

constexpr int64_t kSlab = 1 << 20;  // numbers converted at a time

// fp32, or bf16 and the int16 correction.
struct StoredWeight {
  std::span<const uint8_t> value, correction;
};

std::span<const uint8_t> stored_bytes(const Checkpoint& checkpoint, const std::string& name, DType dtype,
                                      const Shape& shape) {
  const ManifestTensor* tensor = checkpoint.find(name);
  require(tensor != nullptr, "the checkpoint {} does not fit the model: missing: '{}'", checkpoint.path(), name);
  std::vector<int64_t> dims;
  for (int i = 0; i < shape.rank(); ++i) dims.push_back(shape[i]);
  require(tensor->dtype == dtype && tensor->shape == dims,
          "the checkpoint {} does not fit the model: '{}': saved {} [{}], expected {} [{}]", checkpoint.path(), name,
          name_of(tensor->dtype), fmt::join(tensor->shape, ", "), name_of(dtype), fmt::join(dims, ", "));
  return checkpoint.verified_bytes(*tensor);
}

StoredWeight find_weight(const Checkpoint& checkpoint, const std::string& name, const Shape& shape) {
  const ManifestTensor* value = checkpoint.find("weights/" + name);
  if (value && value->dtype == DType::F32) return {stored_bytes(checkpoint, "weights/" + name, DType::F32, shape), {}};
  return {stored_bytes(checkpoint, "weights/" + name, DType::BF16, shape),
          stored_bytes(checkpoint, "corrections/" + name, DType::I16, shape)};
}

// Numbers [first, first + out.size()); the bytes may lie at any alignment.
void read_fp32(const StoredWeight& stored, int64_t first, std::span<float> out) {
  const auto at = static_cast<size_t>(first);
  if (stored.correction.empty()) {
    std::memcpy(out.data(), &stored.value[at * sizeof(float)], out.size_bytes());
    return;
  }
  for (size_t i = 0; i < out.size(); ++i) {
    Bf16 high;
    int16_t low;
    std::memcpy(&high, &stored.value[(at + i) * sizeof(high)], sizeof(high));
    std::memcpy(&low, &stored.correction[(at + i) * sizeof(low)], sizeof(low));
    out[i] = ops::join_fp32(high, low);
  }
}

void fill(const Context& ctx, const ops::Weight& weight, const StoredWeight& stored) {
  std::vector<float> values;
  const auto fill_part = [&](const ops::Weight& part, int64_t first) {
    values.resize(static_cast<size_t>(part.value.count()));
    read_fp32(stored, first, values);
    ops::store_fp32(ctx, part, values.data());
  };
  if (weight.value.shape.rank() == 1) return fill_part(weight, 0);
  const int64_t rows = weight.value.rows(), cols = weight.value.cols(), step = std::max<int64_t>(kSlab / cols, 1);
  for (int64_t row = 0; row < rows; row += step)
    fill_part(weight.row_range(row, std::min(row + step, rows)), row * cols);
}

bool is_moment(const NamedTensor& tensor) {
  return tensor.name.starts_with("exp_avg");
}

}  // namespace

std::vector<NamedTensor> tensors_of(parallel::TrainingState& state) {
  std::vector<NamedTensor> tensors;
  for (auto& [name, tensor] : state.named_tensors()) tensors.push_back({name, tensor});
  return tensors;
}

void load_weights(const Checkpoint& checkpoint, parallel::TrainingState& state) {
  const model::Parameters& params = state.params();
  std::vector<StoredWeight> stored;
  for (const model::ParamId& id : params.ids())
    stored.push_back(find_weight(checkpoint, model::logical_name(state.spec(), id), params.at(id).value.shape));
  for (size_t i = 0; i < stored.size(); ++i) fill(state.context(), params.at(params.ids()[i]), stored[i]);
}

void load_state(const Checkpoint& checkpoint, parallel::TrainingState& state) {
  std::vector<NamedTensor> moments = tensors_of(state);
  std::erase_if(moments, [](const NamedTensor& tensor) { return !is_moment(tensor); });
  load_checkpoint(checkpoint, moments, {.subset = true, .device = &state.context()});
  load_weights(checkpoint, state);
}

}  // namespace agoq::train
