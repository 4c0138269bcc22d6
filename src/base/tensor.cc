#include "base/tensor.h"

#include <fmt/ranges.h>

namespace agoq {

std::string_view name_of(Device device) {
  switch (device) {
    case Device::Cpu:
      return "cpu";
    case Device::Cuda:
      return "cuda";
    case Device::Meta:
      return "meta";
  }
  return "unknown";
}

Shape::Shape(std::initializer_list<int64_t> dims) {
  require(dims.size() <= dims_.size(), "a shape has at most {} dimensions, not {}", dims_.size(), dims.size());
  int64_t count = 1;
  for (int64_t dim : dims) {
    require(dim >= 0, "dimension {} of a shape is negative: {}", rank_, dim);
    require(!__builtin_mul_overflow(count, dim, &count), "a shape with dimension {} has more than 2^63 elements", dim);
    dims_[static_cast<size_t>(rank_++)] = dim;
  }
}

int64_t Shape::count() const {
  if (rank_ == 0) return 0;  // "none", not a scalar
  int64_t count = 1;
  for (int i = 0; i < rank_; ++i) count *= (*this)[i];
  return count;
}

std::vector<int64_t> Shape::dims() const {
  return {dims_.begin(), dims_.begin() + rank_};
}

std::string Shape::text() const {
  return fmt::format("[{}]", fmt::join(dims_.begin(), dims_.begin() + rank_, ", "));
}

Tensor Tensor::view(Shape other) const {
  require(other.count() == count(), "a tensor of shape {} ({} elements) cannot be viewed as {} ({} elements)",
          shape.text(), count(), other.text(), other.count());
  return Tensor{data, dtype, device, other};
}

Tensor Tensor::row_range(int64_t begin, int64_t end) const {
  require(shape.rank() == 2, "row_range needs a tensor of 2 dimensions, not of shape {}", shape.text());
  require(0 <= begin && begin <= end && end <= shape[0], "rows {} to {} lie outside a tensor of shape {}", begin, end,
          shape.text());
  void* first = data ? raw() + static_cast<size_t>(begin * shape[1]) * size_of(dtype) : nullptr;  // Meta has no memory
  return Tensor{first, dtype, device, {end - begin, shape[1]}};
}

}  // namespace agoq
