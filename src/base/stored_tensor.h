// What this process holds of a logical tensor, as checkpoints see it.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "base/rectangle.h"
#include "base/tensor.h"

namespace agoq {

// A rectangle of a logical tensor and the memory of its numbers, row by row without holes, in any shape.
struct StoredPiece {
  Rectangle at;
  Tensor data;
  // Filled on loading, but never saved: another rank saves the same numbers, or they follow from others.
  bool replica = false;
};

// A logical tensor is an array as it is stored: codes uint8 [rows, row_bytes], scales bf16 [rows, blocks], weights
// [rows, cols], vectors [n]. Rows and columns of pieces are counted in it: columns of codes are bytes, of scales
// blocks, and a vector is one row.
//   a slice of a sharded optimizer    one piece: a range of rows
//   qkv, gate_up of a tensor rank     three, two pieces: ranges of rows that lie behind one another in memory
//   out, down of a tensor rank        one piece: a range of columns
//   a norm                            one piece, the whole: a replica on all ranks but one
// A rank that holds nothing of a tensor does not list it.
struct StoredTensor {
  std::string name;  // "exp_avg.codes/layers.0.qkv"
  DType dtype = DType::F32;
  std::vector<int64_t> dims;  // of the logical tensor
  std::vector<StoredPiece> pieces;

  StoredTensor() = default;
  // One that this process holds as a whole.
  StoredTensor(std::string logical_name, const Tensor& whole);
  StoredTensor(std::string logical_name, DType type, const Shape& logical, std::vector<StoredPiece> held);

  Rectangle whole() const { return whole_of(dims); }
  // Pieces lie inside the tensor, have its type, the numbers that they should, and are there.
  void check(Device device) const;
};

// body(at, data) for ranges of rows of a piece with about `limit` numbers each (at least one row).
template <class Body>
void for_row_ranges(const StoredPiece& piece, int64_t limit, Body&& body) {
  if (piece.at.empty()) return;
  const int64_t rows = piece.at.rows(), step = std::max<int64_t>(limit / piece.at.cols(), 1);
  const Tensor matrix = piece.data.view({rows, piece.at.cols()});
  for (int64_t row = 0; row < rows; row += step) {
    const int64_t end = std::min(row + step, rows);
    Rectangle at = piece.at;
    at.row_begin += row;
    at.row_end = piece.at.row_begin + end;
    body(at, matrix.row_range(row, end));
  }
}

}  // namespace agoq
