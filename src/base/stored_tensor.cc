#include "base/stored_tensor.h"

#include <utility>

namespace agoq {

StoredTensor::StoredTensor(std::string logical_name, const Tensor& whole)
    : StoredTensor(std::move(logical_name), whole.dtype, whole.shape, {{whole_of(whole.shape.dims()), whole}}) {}

StoredTensor::StoredTensor(std::string logical_name, DType type, const Shape& logical, std::vector<StoredPiece> held)
    : name(std::move(logical_name)), dtype(type), dims(logical.dims()), pieces(std::move(held)) {}

void StoredTensor::check(Device device) const {
  for (const StoredPiece& piece : pieces) {
    const Tensor& data = piece.data;
    require(data && data.device == device, "tensor '{}' is on {}, not on {}", name, name_of(data.device),
            name_of(device));
    require(whole().contains(piece.at) && piece.at.rows() >= 0 && piece.at.cols() >= 0,
            "tensor '{}': the piece {} lies outside the whole {}", name, piece.at.text(), whole().text());
    require(data.dtype == dtype && data.count() == piece.at.count(),
            "tensor '{}': the piece {} needs {} numbers of {}, its memory has {} of {}", name, piece.at.text(),
            piece.at.count(), name_of(dtype), data.count(), name_of(data.dtype));
  }
}

}  // namespace agoq
