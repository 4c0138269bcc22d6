// States of one mesh saved, and loaded under another: moments in 8 bits are those of one process, cut again.
#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <map>
#include <mutex>

#include "base/scratch_folder.h"
#include "comm/thread_transport.h"
#include "parallel/tiny_state.h"
#include "train/checkpoint/checkpoint_save.h"
#include "train/checkpoint/state_io.h"

namespace agoq::train {
namespace {

using model::Param;
using model::ParamId;
using parallel::RunSpec;
using parallel::TrainingState;

constexpr int64_t kVocabulary = 264;  // of which every tensor axis here has equal parts

struct Shape {
  int tensor = 1, data = 1, pipeline = 1;
  parallel::Sharding sharding = parallel::Sharding::Optimizer;
  int ranks() const { return tensor * data * pipeline; }
  std::string text() const {
    return fmt::format("tp{}_dp{}_pp{}_{}", tensor, data, pipeline, static_cast<int>(sharding));
  }
};

RunSpec run_spec_of(const Shape& shape, int rank) {
  model::ModelConfig model = test::tiny_model();
  model.vocab_size = kVocabulary;
  RunSpec run_spec = test::tiny_run_spec(model);
  run_spec.parallelism.mesh = parallel::training_mesh({shape.tensor, shape.data, shape.pipeline});
  run_spec.parallelism.rank = rank;
  run_spec.parallelism.sharding = shape.sharding;
  return run_spec;
}

// A rank's moments of one parameter, as they lie in its memory.
struct Bytes {
  int64_t rows = 0;
  std::vector<uint8_t> codes, scales;
  bool operator==(const Bytes&) const = default;
};

std::vector<uint8_t> bytes_of(const Tensor& t) {
  return t ? std::vector<uint8_t>(t.raw(), t.raw() + t.bytes()) : std::vector<uint8_t>{};
}

using Moments = std::map<std::string, Bytes>;  // "m layers.0.qkv"

Moments moments_of(TrainingState& state) {
  Moments moments;
  for (const ParamId& id : state.stage_shard().ids)
    if (const ops::AdamWState* held = state.optimizer().state(id))
      for (const auto& [kind, q] : {std::pair{"m ", held->m}, std::pair{"v ", held->v}})
        moments[kind + model::logical_name(state.spec(), id)] = {q.rows, bytes_of(q.codes), bytes_of(q.scales)};
  return moments;
}

// --- The plain re-cut, which knows the shapes of the model alone
// ------------------------------------------------------

// The sizes of what is cut over the tensor axis each by itself, along rows: q, k and v; gate and up.
std::vector<int64_t> row_parts(const model::ModelConfig& m, Param param) {
  const int64_t q = m.heads.q_cols(), kv = m.heads.kv_cols();
  switch (param) {
    case Param::Qkv:
      return {q, kv, kv};
    case Param::GateUp:
      return {m.ffn_size, m.ffn_size};
    case Param::Embedding:
    case Param::Head:
      return {m.vocab_size};
    default:
      return {};
  }
}

// Rows of an array [rows, n] of bytes.
std::vector<uint8_t> rows_of(const std::vector<uint8_t>& array, int64_t rows, int64_t begin, int64_t end) {
  const int64_t n = static_cast<int64_t>(array.size()) / rows;
  return {array.begin() + begin * n, array.begin() + end * n};
}

// The columns of the `rank`th of `ranks` equal parts.
std::vector<uint8_t> columns_of(const std::vector<uint8_t>& array, int64_t rows, int rank, int ranks) {
  const int64_t n = static_cast<int64_t>(array.size()) / rows, part = n / ranks;
  std::vector<uint8_t> columns;
  for (int64_t row = 0; row < rows; ++row)
    columns.insert(columns.end(), array.begin() + row * n + rank * part, array.begin() + row * n + (rank + 1) * part);
  return columns;
}

// What a tensor rank has of a logical array.
std::vector<uint8_t> cut(const std::vector<uint8_t>& array, int64_t rows, const model::ModelConfig& m, Param param,
                         int rank, int ranks) {
  if (param == Param::Out || param == Param::Down) return columns_of(array, rows, rank, ranks);
  const std::vector<int64_t> parts = row_parts(m, param);
  if (parts.empty()) return array;
  std::vector<uint8_t> held;
  int64_t begin = 0;
  for (const int64_t part : parts) {
    const std::vector<uint8_t> piece =
        rows_of(array, rows, begin + part * rank / ranks, begin + part * (rank + 1) / ranks);
    held.insert(held.end(), piece.begin(), piece.end());
    begin += part;
  }
  return held;
}

// Of a rank's rows the slice of its data rank: equal ones, the last are shorter or empty. Vectors are held whole.
Bytes expected(const Bytes& logical, const model::ModelConfig& m, Param param, const Shape& shape,
               const parallel::Parallelism& place) {
  const int tensor = place.tensor().rank, data = place.data_rank();
  const bool divided = !row_parts(m, param).empty();
  const int64_t rows = divided ? logical.rows / shape.tensor : logical.rows;
  const int64_t slices = shape.sharding == parallel::Sharding::None ? 1 : shape.data,
                slice = (rows + slices - 1) / slices;
  const int64_t begin = logical.rows == 1 || slices == 1 ? 0 : std::min(rows, data * slice);
  const int64_t end = logical.rows == 1 || slices == 1 ? rows : std::min(rows, (data + 1) * slice);
  const auto own = [&](const std::vector<uint8_t>& array) {
    if (array.empty()) return array;
    return rows_of(cut(array, logical.rows, m, param, tensor, shape.tensor), rows, begin, end);
  };
  return {end - begin, own(logical.codes), own(logical.scales)};
}

// --- Worlds of threads
// ------------------------------------------------------------------------------------------------

// Calls body(rank's state, its place) on all ranks of a mesh.
template <class Body>
void with_states(const Shape& shape, const Body& body) {
  test::ThreadWorld(shape.ranks()).run([&](comm::Transport& transport) {
    omp_set_num_threads(1);
    const RunSpec run_spec = run_spec_of(shape, transport.rank());
    Arena arena(Device::Cpu, size_t{32} << 20);
    TrainingState state(arena, Device::Cpu, run_spec, &transport);
    body(state, run_spec.parallelism);
  });
}

// All ranks of a mesh load one checkpoint; their moments are compared with those of one process, and saved again.
void expect_recut(const std::string& source, const Moments& logical, const Shape& shape, const std::string& folder) {
  SCOPED_TRACE(shape.text());
  std::vector<std::string> fragments(static_cast<size_t>(shape.ranks()));
  const std::string draft = draft_checkpoint(folder, 1);
  std::mutex mutex;
  size_t compared = 0;
  with_states(shape, [&](TrainingState& state, const parallel::Parallelism& place) {
    load_state(Checkpoint(source), state);
    const Moments moments = moments_of(state);
    const std::lock_guard lock(mutex);  // Checkpoints are opened together; failures are told one after the other.
    for (const ParamId& id : state.stage_shard().ids)
      for (const char* kind : {"m ", "v "}) {
        const std::string name = kind + model::logical_name(state.spec(), id);
        const Bytes want = expected(logical.at(name), state.run_spec().model, id.param, shape, place);
        ASSERT_EQ(moments.contains(name), want.rows > 0) << name;
        if (want.rows == 0) continue;
        EXPECT_TRUE(moments.at(name) == want) << name << " on rank " << place.rank;
        ++compared;
      }
    fragments[static_cast<size_t>(place.rank)] =
        write_fragment(folder, draft, state.named_tensors(), {.rank = place.rank, .ranks = shape.ranks()});
  });
  EXPECT_GE(compared, logical.size());
  commit_checkpoint(folder, draft, fragments, "{}", {.ranks = shape.ranks()});
}

TEST(MeshState, MomentsInEightBitsAreCutAgainCodeByCode) {
  const ScratchFolder scratch;
  test::TinyState one(run_spec_of({}, 0));
  one->params().initialize(one->context(), 3);
  for (int i = 0; i < 3; ++i) one.step();
  const Moments logical = moments_of(*one);
  std::string path = save_checkpoint(scratch.file("one"), 1, one->named_tensors(), "{}");
  for (const auto& [name, bytes] : logical)  // or nothing is compared
    EXPECT_TRUE(std::any_of(bytes.codes.begin(), bytes.codes.end(), [](uint8_t code) { return code != 0; })) << name;
  int number = 0;
  using enum parallel::Sharding;
  for (const Shape& shape :
       {Shape{2, 1, 1}, Shape{1, 3, 1}, Shape{1, 1, 2}, Shape{2, 2, 2}, Shape{1, 4, 1, None}, Shape{1, 3, 2, Weights},
        Shape{2, 2, 1}, Shape{2, 2, 1, Gradients}, Shape{1, 5, 1, Weights}, Shape{1, 1, 1}}) {
    const std::string folder = scratch.file(std::to_string(++number));
    expect_recut(path, logical, shape, folder);
    path = folder + "/step-00000001";
  }
}

}  // namespace
}  // namespace agoq::train
