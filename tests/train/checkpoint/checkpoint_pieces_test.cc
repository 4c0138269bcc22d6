// Checkpoints that many ranks write together, and that ranks of another mesh read.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>

#include <barrier>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <random>
#include <thread>

#include "base/log.h"
#include "base/scratch_folder.h"
#include "parallel/parallelism.h"
#include "train/checkpoint/checkpoint.h"
#include "train/checkpoint/checkpoint_save.h"
#include "train/checkpoint/checkpoint_writer.h"
#include "train/data_files.h"
#include "train/file_size_limit.h"

namespace agoq::train {
namespace {

namespace fs = std::filesystem;

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

enum class Cut : uint8_t { None, Rows, Columns };

// A logical array, and how ranks hold it.
struct Logical {
  std::string name;
  DType dtype = DType::F32;
  Shape shape;
  Cut cut = Cut::None;
  std::vector<int64_t> parts;  // along the cut: each is cut over the tensor axis
  bool sharded = false;        // over the data axis: others hold nothing of a slice, instead of a replica
  int64_t layer = 0;           // of kLayers
  std::vector<uint8_t> bytes;

  Rectangle whole() const { return whole_of(shape.dims()); }
};

constexpr int64_t kLayers = 4;

// Shapes like those of a model: codes with bytes in a row that are no multiple of anything, scales, weights, vectors.
std::vector<Logical> logical_arrays(uint32_t seed) {
  std::vector<Logical> all;
  const auto add = [&](Logical array) { all.push_back(std::move(array)); };
  for (int64_t layer = 0; layer < kLayers; ++layer) {
    const auto name = [&](const char* kind, const char* param) {
      return fmt::format("{}/layers.{}.{}", kind, layer, param);
    };
    add({name("weights", "qkv"), DType::BF16, {32, 6}, Cut::Rows, {16, 8, 8}, false, layer, {}});
    add({name("corrections", "qkv"), DType::I16, {32, 6}, Cut::Rows, {16, 8, 8}, true, layer, {}});
    add({name("exp_avg.codes", "qkv"), DType::U8, {32, 7}, Cut::Rows, {16, 8, 8}, true, layer, {}});
    add({name("exp_avg.scales", "gate_up"), DType::BF16, {24, 1}, Cut::Rows, {12, 12}, true, layer, {}});
    add({name("exp_avg.codes", "out"), DType::U8, {5, 40}, Cut::Columns, {40}, true, layer, {}});
    add({name("exp_avg.scales", "out"), DType::BF16, {5, 8}, Cut::Columns, {8}, true, layer, {}});
    add({name("weights", "down"), DType::F32, {9, 8}, Cut::Columns, {8}, false, layer, {}});
    add({name("weights", "qkv_bias"), DType::F32, {32}, Cut::Columns, {16, 8, 8}, false, layer, {}});
    add({name("weights", "mlp_norm"), DType::F32, {6}, Cut::None, {}, false, layer, {}});
  }
  std::mt19937 random(seed);
  for (Logical& array : all) {
    array.bytes.resize(static_cast<size_t>(array.shape.count()) * size_of(array.dtype));
    for (uint8_t& byte : array.bytes) byte = static_cast<uint8_t>(random());
  }
  return all;
}

// The rectangles that a tensor rank holds, in the order of its memory.
std::vector<Rectangle> tensor_rank_parts(const Logical& array, int rank, int ranks) {
  if (array.cut == Cut::None) return {array.whole()};
  std::vector<Rectangle> held;
  int64_t begin = 0;
  for (const int64_t part : array.parts) {
    Rectangle at = array.whole();
    const int64_t first = begin + part * rank / ranks, last = begin + part * (rank + 1) / ranks;
    (array.cut == Cut::Rows ? at.row_begin : at.col_begin) = first;
    (array.cut == Cut::Rows ? at.row_end : at.col_end) = last;
    held.push_back(at);
    begin += part;
  }
  return held;
}

// One rank's tensors, in memory of its own.
class Rank {
 public:
  Rank(const std::vector<Logical>& arrays, const comm::Mesh& mesh, int rank) {
    const auto on = [&](std::string_view axis) { return mesh.at(rank, axis); };
    for (const Logical& array : arrays) {
      if (array.layer * mesh.size(parallel::kPipeline) / kLayers != on(parallel::kPipeline)) continue;
      const bool first_of_tensor = array.cut != Cut::None || on(parallel::kTensor) == 0;
      hold(array, tensor_rank_parts(array, on(parallel::kTensor), mesh.size(parallel::kTensor)), on(parallel::kData),
           mesh.size(parallel::kData), first_of_tensor);
    }
  }

  std::vector<StoredTensor>& tensors() { return tensors_; }
  // Numbers of the logical arrays -> the memory of the pieces.
  void fill(const std::vector<Logical>& arrays) {
    for_numbers(arrays, [](uint8_t* piece, const uint8_t* logical, size_t size) { std::copy_n(logical, size, piece); });
  }
  void expect_equal(const std::vector<Logical>& arrays) {
    for_numbers(arrays, [](const uint8_t* piece, const uint8_t* logical, size_t size) {
      ASSERT_TRUE(std::equal(piece, piece + size, logical));
    });
  }

 private:
  // Rows of a matrix are divided over the data ranks; of a vector the first rank has all.
  void hold(const Logical& array, const std::vector<Rectangle>& parts, int data, int ranks, bool first_of_tensor) {
    StoredTensor& tensor = tensors_.emplace_back(array.name, array.dtype, array.shape, std::vector<StoredPiece>{});
    const bool stacked = array.cut == Cut::Rows;
    int64_t rows = 0;
    for (const Rectangle& part : parts) rows = stacked ? rows + part.rows() : part.rows();
    const int64_t slice = array.shape.rank() == 1 ? rows : (rows + ranks - 1) / ranks;
    for (int owner = 0; owner < ranks; ++owner) {
      if (array.sharded && owner != data) continue;
      int64_t row = 0;  // in the stack
      for (const Rectangle& part : parts) {
        Rectangle at = part;
        at.row_begin = part.row_begin + std::clamp(owner * slice - row, int64_t{0}, part.rows());
        at.row_end = part.row_begin + std::clamp((owner + 1) * slice - row, int64_t{0}, part.rows());
        if (stacked) row += part.rows();
        if (!at.empty()) add_piece(tensor, at, owner != data || !first_of_tensor);
      }
    }
  }

  void add_piece(StoredTensor& tensor, const Rectangle& at, bool replica) {
    auto& memory = memory_.emplace_back(static_cast<size_t>(at.count()) * size_of(tensor.dtype));
    tensor.pieces.push_back({at, Tensor{memory.data(), tensor.dtype, Device::Cpu, {at.rows(), at.cols()}}, replica});
  }

  template <class Body>
  void for_numbers(const std::vector<Logical>& arrays, Body&& body) {
    for (StoredTensor& tensor : tensors_) {
      const auto array = std::find_if(arrays.begin(), arrays.end(), [&](auto& a) { return a.name == tensor.name; });
      const size_t size = size_of(tensor.dtype);
      for (StoredPiece& piece : tensor.pieces) {
        uint8_t* number = piece.data.raw();
        for (int64_t row = piece.at.row_begin; row < piece.at.row_end; ++row)
          for (int64_t col = piece.at.col_begin; col < piece.at.col_end; ++col, number += size)
            body(number, array->bytes.data() + static_cast<size_t>(row * array->whole().cols() + col) * size, size);
      }
    }
  }

  std::vector<StoredTensor> tensors_;
  std::vector<std::vector<uint8_t>> memory_;
};

// All ranks of a mesh.
struct World {
  World(const std::vector<Logical>& arrays, const comm::Mesh& mesh) {
    for (int rank = 0; rank < mesh.ranks(); ++rank) ranks.emplace_back(arrays, mesh, rank);
  }
  SaveOptions options(int rank, SaveOptions options = {.shard_bytes = 200}) const {
    options.rank = rank;
    options.ranks = static_cast<int>(ranks.size());
    return options;
  }
  std::vector<std::string> write(const std::string& folder, const std::string& draft) {
    std::vector<std::string> fragments;
    for (int rank = 0; rank < std::ssize(ranks); ++rank)
      fragments.push_back(write_fragment(folder, draft, ranks[static_cast<size_t>(rank)].tensors(), options(rank)));
    return fragments;
  }
  std::string save(const std::string& folder, int64_t step, const SaveOptions& wanted = {.shard_bytes = 200}) {
    const std::string draft = draft_checkpoint(folder, step);
    return commit_checkpoint(folder, draft, write(folder, draft), "{}", options(0, wanted));
  }
  void load(const Checkpoint& checkpoint) {
    for (Rank& rank : ranks) load_checkpoint(checkpoint, rank.tensors(), {.subset = true});
  }
  std::vector<Rank> ranks;
};

comm::Mesh mesh_of(int tensor, int data, int pipeline) {
  return parallel::training_mesh({tensor, data, pipeline});
}

class PiecesTest : public ::testing::Test {
 protected:
  PiecesTest() { set_log_level(LogLevel::Error); }
  ~PiecesTest() override { set_log_level(LogLevel::Info); }

  // A world of 2 x 3 x 2 ranks, filled.
  World filled_world() const {
    World world(arrays_, mesh_of(2, 3, 2));
    for (Rank& rank : world.ranks) rank.fill(arrays_);
    return world;
  }
  std::string folder() const { return scratch_.file("checkpoints"); }
  std::vector<std::string> listing() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder())) names.push_back(entry.path().filename().string());
    std::sort(names.begin(), names.end());
    return names;
  }
  // What committing these fragments says; the checkpoint of step 1 must stay alone.
  std::string refusal(const std::string& draft, const std::vector<std::string>& fragments, const SaveOptions& options) {
    const std::string error = error_of([&] { commit_checkpoint(folder(), draft, fragments, "{}", options); });
    EXPECT_THAT(error, HasSubstr("the checkpoint of step 2 was not saved"));
    EXPECT_EQ(listing(), (std::vector<std::string>{"latest", "step-00000001"}));
    return error;
  }

  ScratchFolder scratch_;
  std::vector<Logical> arrays_ = logical_arrays(1);
};

TEST_F(PiecesTest, EveryMeshLoadsWhatEveryOtherSaved) {
  std::string path;
  int64_t step = 0;
  for (const comm::Mesh& mesh : {mesh_of(4, 1, 2), mesh_of(1, 2, 1), mesh_of(1, 1, 1), mesh_of(2, 3, 2),
                                 mesh_of(8, 1, 4), mesh_of(1, 40, 1), mesh_of(4, 2, 1), mesh_of(4, 1, 2)}) {
    World world(arrays_, mesh);
    if (path.empty())
      for (Rank& rank : world.ranks) rank.fill(arrays_);
    else
      world.load(Checkpoint(path));
    for (Rank& rank : world.ranks) rank.expect_equal(arrays_);
    path = world.save(folder(), ++step);
    const Checkpoint checkpoint(path);
    checkpoint.verify();
    ASSERT_EQ(checkpoint.manifest().tensors.size(), arrays_.size());
    for (const Logical& array : arrays_) {
      std::vector<uint8_t> whole(array.bytes.size());
      checkpoint.read(*checkpoint.find(array.name), array.whole(), whole.data());
      EXPECT_EQ(whole, array.bytes) << array.name << " of " << mesh.text();
    }
  }
}

TEST_F(PiecesTest, EachRankHasFilesOfItsOwn) {
  World world = filled_world();
  const std::string path = world.save(folder(), 1);
  const Manifest manifest = read_checkpoint_manifest(path);
  size_t files = 0;
  for (int rank = 0; rank < std::ssize(world.ranks); ++rank)
    files += static_cast<size_t>(std::count_if(manifest.files.begin(), manifest.files.end(), [&](const auto& file) {
      return file.name.starts_with(fmt::format("shard-{:05}-", rank));
    }));
  EXPECT_EQ(files, manifest.files.size());
  EXPECT_GT(files, world.ranks.size());
  const SafetensorsFile first(path + "/shard-00000-00000.safetensors");
  EXPECT_NE(first.find("weights/layers.0.qkv@0:6,0:6"), nullptr);
  EXPECT_THAT(read_plainly(path + "/manifest.json"), HasSubstr("\"format\": 2"));
}

TEST_F(PiecesTest, AGapIsNamed) {
  World world = filled_world();
  world.save(folder(), 1);
  const std::string draft = draft_checkpoint(folder(), 2);
  world.ranks[0].tensors()[2].pieces.pop_back();
  const auto fragments = world.write(folder(), draft);
  EXPECT_THAT(refusal(draft, fragments, world.options(0)),
              AllOf(HasSubstr("'exp_avg.codes/layers.0.qkv'"), HasSubstr("row 0, column 0"), HasSubstr("in no piece")));
}

TEST_F(PiecesTest, AnOverlapIsNamedWithBothFiles) {
  World world = filled_world();
  world.save(folder(), 1);
  const std::string draft = draft_checkpoint(folder(), 2);
  for (StoredTensor& tensor : world.ranks[1].tensors())
    if (tensor.name == "weights/layers.0.mlp_norm") tensor.pieces[0].replica = false;
  const auto fragments = world.write(folder(), draft);
  EXPECT_THAT(refusal(draft, fragments, world.options(0)),
              AllOf(HasSubstr("'weights/layers.0.mlp_norm'"), HasSubstr("shard-00000-"), HasSubstr("shard-00001-"),
                    HasSubstr("overlap")));
}

TEST_F(PiecesTest, RanksMustAgreeAboutATensor) {
  World world = filled_world();
  world.save(folder(), 1);
  const std::string draft = draft_checkpoint(folder(), 2);
  world.ranks[3].tensors()[0].dims = {48, 6};
  const auto fragments = world.write(folder(), draft);
  EXPECT_THAT(refusal(draft, fragments, world.options(0)),
              AllOf(HasSubstr("'weights/layers.0.qkv' is bf16 [48, 6] to rank 3"), HasSubstr("bf16 [32, 6]")));
}

TEST_F(PiecesTest, EveryRankMustTellWhatItWrote) {
  World world = filled_world();
  world.save(folder(), 1);
  for (const bool swapped : {false, true}) {
    const std::string draft = draft_checkpoint(folder(), 2);
    auto fragments = world.write(folder(), draft);
    if (swapped)
      std::swap(fragments[0], fragments[1]);
    else
      fragments.pop_back();
    EXPECT_THAT(refusal(draft, fragments, world.options(0)),
                HasSubstr(swapped ? "of rank 1 stands at place 0" : "11 parts of the manifest, of 12 ranks"));
  }
  const std::string draft = draft_checkpoint(folder(), 2);
  auto fragments = world.write(folder(), draft);
  fragments[4] = "damaged";
  EXPECT_THAT(refusal(draft, fragments, world.options(0)), HasSubstr("a rank's part of the manifest"));
}

TEST_F(PiecesTest, AFullDiskOnOneRankFailsTheSaveAndNamesIt) {
  World world = filled_world();
  world.save(folder(), 1);
  const std::string draft = draft_checkpoint(folder(), 2);
  auto fragments = world.write(folder(), draft);
  {
    const FileSizeLimit full(100);
    fragments[7] = write_fragment(folder(), draft, world.ranks[7].tensors(), world.options(7));
  }
  EXPECT_THAT(refusal(draft, fragments, world.options(0)),
              AllOf(HasSubstr("rank 7: cannot write"), HasSubstr("shard-00007-00000"), Not(HasSubstr("rank 6"))));
  World loaded(arrays_, mesh_of(1, 1, 1));
  loaded.load(open_latest_checkpoint(folder()).value());
  loaded.ranks[0].expect_equal(arrays_);
  EXPECT_EQ(world.save(folder(), 3), folder() + "/step-00000003");
}

TEST_F(PiecesTest, AFolderThatIsNotSharedIsToldSo) {
  World world = filled_world();
  world.save(folder(), 1);
  const std::string draft = draft_checkpoint(folder(), 2);
  auto fragments = world.write(folder(), draft);
  const std::string of_another_host = scratch_.file("elsewhere");
  fragments[5] = write_fragment(of_another_host, draft, world.ranks[5].tensors(), world.options(5));
  EXPECT_FALSE(fs::exists(of_another_host));
  EXPECT_THAT(refusal(draft, fragments, world.options(0)),
              AllOf(HasSubstr("rank 5: the folder " + of_another_host), HasSubstr("that all ranks share")));
  const std::string again = draft_checkpoint(folder(), 2);
  fragments = world.write(folder(), again);
  for (const auto& entry : fs::recursive_directory_iterator(folder()))
    if (entry.path().filename() == "shard-00005-00000.safetensors" &&
        entry.path().string().find(".tmp-") != std::string::npos) {
      fs::remove(entry.path());
      break;
    }
  EXPECT_THAT(refusal(again, fragments, world.options(0)),
              AllOf(HasSubstr("rank 5 has written shard-00005-00000"), HasSubstr("that all ranks share")));
}

TEST_F(PiecesTest, AFolderThatCannotBeMadeIsToldOnce) {
  World world = filled_world();
  write_plainly(folder(), "a file is in the way");
  const std::string draft = draft_checkpoint(folder(), 2);
  const auto fragments = world.write(folder(), draft);
  EXPECT_THAT(error_of([&] { commit_checkpoint(folder(), draft, fragments, "{}", world.options(0)); }),
              AllOf(HasSubstr("step 2 was not saved"), HasSubstr(folder()), Not(HasSubstr("rank"))));
  EXPECT_EQ(read_plainly(folder()), "a file is in the way");
}

TEST_F(PiecesTest, NamesOfPiecesAreNotForTensors) {
  std::vector<float> numbers(2);
  const StoredTensor tensor("a@0:1,0:2", host_tensor(numbers.data(), {2}));
  EXPECT_THAT(error_of([&] { save_checkpoint(folder(), 1, {&tensor, 1}, "{}"); }), HasSubstr("must not hold '@'"));
}

// Flips a bit of a tensor's piece; returns the name of the file.
std::string damage(const Checkpoint& checkpoint, const std::string& tensor, size_t piece) {
  const ManifestTensor& listed = *checkpoint.find(tensor);
  const std::string name = listed.pieces.at(piece).file, path = checkpoint.path() + "/" + name;
  const SafetensorsFile file(path);
  const auto size_behind = [&](std::span<const uint8_t> bytes) {
    const auto last = file.bytes(file.entries().back());
    return last.data() + last.size() - bytes.data();
  };
  const auto bytes = file.bytes(file.at(listed.header(listed.pieces[piece].at).name));
  const auto flipped = static_cast<char>(bytes[0] ^ 16);
  std::fstream out(path, std::ios::in | std::ios::out | std::ios::binary);
  out.seekp(-size_behind(bytes), std::ios::end);
  out.put(flipped);
  return name;
}

TEST_F(PiecesTest, OnlyThoseWhoNeedADamagedPieceFail) {
  World world = filled_world();
  const std::string path = world.save(folder(), 1);
  const std::string tensor = "corrections/layers.1.qkv";
  const std::string file = damage(Checkpoint(path), tensor, 1);
  const auto message = AllOf(HasSubstr(file + " is damaged"), HasSubstr("'" + tensor + "@"));
  EXPECT_THAT(error_of([&] { Checkpoint(path).verify(); }), message);

  const Checkpoint checkpoint(path);
  const Rectangle bad = checkpoint.find(tensor)->pieces.at(1).at;
  World reader(arrays_, mesh_of(1, 4, 1));
  int failed = 0;
  for (Rank& rank : reader.ranks) {
    const std::string error = error_of([&] { load_checkpoint(checkpoint, rank.tensors(), {.subset = true}); });
    bool needed = false;
    for (const StoredTensor& t : rank.tensors())
      for (const StoredPiece& piece : t.pieces) needed |= t.name == tensor && !intersection(piece.at, bad).empty();
    if (needed)
      EXPECT_THAT(error, message);
    else
      EXPECT_EQ(error, "");
    if (!needed) rank.expect_equal(arrays_);
    failed += needed;
  }
  EXPECT_GT(failed, 0);
  EXPECT_LT(failed, 4);
}

TEST_F(PiecesTest, TheSharesOfAllRanksAreEveryPiece) {
  World world = filled_world();
  const std::string path = world.save(folder(), 1);
  const Manifest manifest = read_checkpoint_manifest(path);
  for (const ManifestTensor& tensor : manifest.tensors) {
    damage(Checkpoint(path), tensor.name, 0);
    int failed = 0;
    const Checkpoint checkpoint(path);
    for (int rank = 0; rank < 5; ++rank) failed += !error_of([&] { checkpoint.verify_share(rank, 5); }).empty();
    EXPECT_EQ(failed, 1) << tensor.name;
    damage(Checkpoint(path), tensor.name, 0);  // back
  }
  Checkpoint(path).verify();
}

TEST_F(PiecesTest, MissingFilesAreNamed) {
  World world = filled_world();
  const std::string path = world.save(folder(), 1);
  fs::remove(path + "/shard-00003-00001.safetensors");
  EXPECT_THAT(error_of([&] { Checkpoint{path}; }), HasSubstr("shard-00003-00001.safetensors is missing"));
}

// Threads that exchange texts.
class Meeting {
 public:
  explicit Meeting(int size) : texts_(static_cast<size_t>(size)), barrier_(size) {}
  Readers readers(int rank) {
    return {rank, static_cast<int>(texts_.size()), [this, rank](const std::string& mine) {
              texts_[static_cast<size_t>(rank)] = mine;
              barrier_.arrive_and_wait();
              std::vector<std::string> all = texts_;
              barrier_.arrive_and_wait();
              return all;
            }};
  }

 private:
  std::vector<std::string> texts_;
  std::barrier<> barrier_;
};

// What each of three ranks gets that open `source` together: a path, an error, or nothing.
std::vector<std::string> opened_together(const std::string& source) {
  Meeting meeting(3);
  std::vector<std::string> results(3);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < 3; ++rank)
    threads.emplace_back([&, rank] {
      std::string& result = results[static_cast<size_t>(rank)];
      const std::string error = error_of([&] {
        const auto checkpoint = open_checkpoint(source, meeting.readers(rank));
        result = checkpoint ? checkpoint->path() : "none";
      });
      if (!error.empty()) result = error;
    });
  for (std::thread& thread : threads) thread.join();
  return results;
}

TEST_F(PiecesTest, RanksThatOpenTogetherTakeTheSame) {
  EXPECT_THAT(opened_together(folder()), testing::Each("none"));
  World world = filled_world();
  const std::string first = world.save(folder(), 1), second = world.save(folder(), 2);
  EXPECT_THAT(opened_together(scratch_.path()), testing::Each(second));
  EXPECT_THAT(opened_together(first), testing::Each(first));
  const std::string file = damage(Checkpoint(second), "weights/layers.3.down", 2);
  EXPECT_THAT(opened_together(folder()), testing::Each(first));
  EXPECT_THAT(opened_together(second), testing::Each(HasSubstr(file + " is damaged")));
  damage(Checkpoint(first), "weights/layers.0.qkv", 0);
  EXPECT_THAT(opened_together(folder()), testing::Each(HasSubstr("none is intact")));
}

TEST_F(PiecesTest, KilledAtAnyMomentTheLastCompleteOneRemains) {
  World world = filled_world();
  world.save(folder(), 0);
  for (int round = 0; round < 10; ++round) {
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0)
      for (int64_t step = 1;; step = step % 3 + 1) world.save(folder(), step, {.keep_last = 2});
    std::this_thread::sleep_for(std::chrono::milliseconds(5 + 11 * round));
    kill(child, SIGKILL);
    int status = 0;
    waitpid(child, &status, 0);
    ASSERT_TRUE(WIFSIGNALED(status));
    World loaded(arrays_, mesh_of(1, 2, 1));
    loaded.load(Checkpoint(find_latest_checkpoint(folder()).value()));
    for (Rank& rank : loaded.ranks) rank.expect_equal(arrays_);
  }
  world.save(folder(), 10, {.keep_last = 1});
  EXPECT_EQ(listing(), (std::vector<std::string>{"latest", "step-00000010"}));
}

TEST_F(PiecesTest, WritersOfAllRanksSaveTogether) {
  World world = filled_world();
  Arena arena(Device::Cpu, 1 << 20);
  const Context ctx(arena, Device::Cpu, DType::F32);
  std::vector<std::unique_ptr<CheckpointWriter>> writers;
  for (int rank = 0; rank < std::ssize(world.ranks); ++rank)
    writers.push_back(std::make_unique<CheckpointWriter>(folder(), world.options(rank, {.keep_last = 1})));
  const auto save = [&](int64_t step) {
    const std::string draft = writers[0]->draft(step);
    std::vector<std::string> fragments;
    for (size_t rank = 0; rank < writers.size(); ++rank) {
      writers[rank]->begin(ctx, draft, world.ranks[rank].tensors(), "{}");
      fragments.push_back(writers[rank]->poll_fragment().value());
      EXPECT_EQ(writers[rank]->poll_fragment(), std::nullopt);
    }
    EXPECT_FALSE(writers[0]->poll());
    writers[0]->commit(fragments);
    return writers[0]->poll().value();
  };
  EXPECT_EQ(save(1).path, folder() + "/step-00000001");
  const SavedCheckpoint second = save(2);
  EXPECT_EQ(second.step, 2);
  EXPECT_EQ(second.error, "");
  EXPECT_EQ(listing(), (std::vector<std::string>{"latest", "step-00000002"}));
  world.ranks[4].tensors()[0].pieces.clear();
  const SavedCheckpoint failed = save(3);
  EXPECT_EQ(failed.step, 3);
  EXPECT_EQ(failed.path, "");
  EXPECT_THAT(failed.error, HasSubstr("is in no piece"));
  EXPECT_EQ(listing(), (std::vector<std::string>{"latest", "step-00000002"}));
  World loaded(arrays_, mesh_of(1, 1, 1));
  loaded.load(Checkpoint(second.path));
  loaded.ranks[0].expect_equal(arrays_);
}

}  // namespace
}  // namespace agoq::train
