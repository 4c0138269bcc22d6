#include "parallel/stored_state.h"

#include <algorithm>

namespace agoq::parallel {
namespace {

using codec::RowBlocks;
using model::Range;

// How many of an array's columns `cols` numbers of a row take: themselves, bytes of codes, or scales.
struct ColumnUnits {
  enum class Unit : uint8_t { Numbers, CodeBytes, Scales } unit = Unit::Numbers;
  codec::Codec codec = codec::Codec::None;

  int64_t of(int64_t cols, int64_t segment) const {
    if (cols == 0 || unit == Unit::Numbers) return cols;
    const RowBlocks row(cols, segment);
    return unit == Unit::Scales ? row.blocks() : codec::row_bytes(codec, row);
  }
};

// An array of which this process holds rows `held` of its shard (a vector: all), one behind the other in `data`.
struct Array {
  Tensor data;
  Range held;
  ColumnUnits columns;
  bool vector_shape = false;  // [n] and not [1, n]
};

// The part of `rows` in `within`.
Range common(const Range& rows, const Range& within) {
  const int64_t begin = std::max(rows.begin, within.begin);
  return {begin, std::max(begin, std::min(rows.end, within.end))};
}

void add_rows(StoredTensor& tensor, const model::ParamRow& row, const Array& array, const Range& rows, bool replica) {
  if (rows.count() <= 0) return;
  const int64_t col = array.columns.of(row.first_col, row.segment), cols = array.columns.of(row.cols, row.segment);
  const Tensor matrix = array.data.view({array.held.count(), cols});
  for (const model::RowPiece& piece : row.pieces) {
    const Range part = common(rows, {piece.local_begin, piece.local_begin + piece.count});
    if (part.count() == 0) continue;
    const int64_t shift = piece.global_begin - piece.local_begin;
    tensor.pieces.push_back({{part.begin + shift, part.end + shift, col, col + cols},
                             matrix.row_range(part.begin - array.held.begin, part.end - array.held.begin),
                             replica});
  }
}

// Elements of a vector count as its rows; in the array they are columns.
void add_elements(StoredTensor& tensor, const model::ParamRow& row, const Array& array, bool replica) {
  const Tensor column = array.data.view({array.data.count(), 1});
  for (const model::RowPiece& piece : row.pieces) {
    const auto of = [&](int64_t elements) { return array.columns.of(elements, elements); };
    const int64_t local = of(piece.local_begin), global = of(piece.global_begin), count = of(piece.count);
    tensor.pieces.push_back({{0, 1, global, global + count}, column.row_range(local, local + count), replica});
  }
}

void add(std::vector<StoredTensor>& all, std::string name, const model::ParamRow& row, const Array& array,
         const Range& saved) {
  if (!array.data || array.held.count() == 0) return;
  StoredTensor& tensor = all.emplace_back();
  tensor.name = std::move(name);
  tensor.dtype = array.data.dtype;
  const int64_t cols = array.columns.of(row.logical_cols, row.one_dimensional() ? row.logical_cols : row.segment);
  tensor.dims = array.vector_shape ? std::vector{cols} : std::vector{row.logical_rows, cols};
  if (row.one_dimensional()) return add_elements(tensor, row, array, saved.count() == 0);
  const Range own = common(array.held, saved);
  add_rows(tensor, row, array, {array.held.begin, std::min(own.begin, array.held.end)}, true);
  add_rows(tensor, row, array, own, false);
  add_rows(tensor, row, array, {std::max(own.end, array.held.begin), array.held.end}, true);
}

constexpr std::string_view kCodes = ".codes/", kScales = ".scales/";

void add_quantized(std::vector<StoredTensor>& all, std::string_view kind, const std::string& name,
                   const model::ParamRow& row, const codec::Quantized& q, const HeldParameter& held) {
  using Unit = ColumnUnits::Unit;
  add(all, fmt::format("{}{}{}", kind, kCodes, name), row, {q.codes, held.updated, {Unit::CodeBytes, q.codec}},
      held.saved);
  if (q.scales)
    add(all, fmt::format("{}{}{}", kind, kScales, name), row, {q.scales, held.updated, {Unit::Scales, q.codec}},
        held.saved);
}

}  // namespace

std::string_view stored_param(std::string_view tensor) {
  for (const std::string_view kind : {kStoredWeights, kStoredCorrections})
    if (tensor.starts_with(kind)) return tensor.substr(kind.size());
  return "";
}

bool is_stored_moment(std::string_view tensor) {
  return std::ranges::any_of(kStoredMoments, [&](std::string_view kind) {
    const std::string_view rest = tensor.substr(std::min(kind.size(), tensor.size()));
    return tensor.starts_with(kind) && (rest.starts_with(kCodes) || rest.starts_with(kScales));
  });
}

void add_stored(std::vector<StoredTensor>& all, const std::string& name, const model::ParamRow& row,
                const HeldParameter& held) {
  const bool vector = row.one_dimensional();
  const ops::Weight& exact = held.exact.weight;
  const std::string weights = fmt::format("{}{}", kStoredWeights, name);
  // bf16 beside an fp32 master follows from it.
  add(all, weights, row, {held.weight.value, held.rows, {}, vector}, exact.master ? Range{} : held.saved);
  if (exact.master) add(all, weights, row, {exact.master, held.exact.rows, {}, vector}, held.saved);
  if (exact.correction)
    add(all, fmt::format("{}{}", kStoredCorrections, name), row, {exact.correction, held.exact.rows, {}, vector},
        held.saved);
  if (!held.state) return;
  add_quantized(all, kStoredMoments[0], name, row, held.state->m, held);
  add_quantized(all, kStoredMoments[1], name, row, held.state->v, held);
}

void add_stored(std::vector<StoredTensor>& all, const model::DelayedScales& scales, bool replica) {
  for (const int64_t layer : scales.layers()) {
    const Tensor history = scales.history(layer);
    all.emplace_back(fmt::format("{}layers.{}", kStoredAmaxes, layer), history.dtype, history.shape,
                     std::vector{StoredPiece{{0, history.shape[0], 0, history.cols()}, history, replica}});
  }
}

}  // namespace agoq::parallel
