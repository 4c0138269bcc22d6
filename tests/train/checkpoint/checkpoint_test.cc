#include "train/checkpoint/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/log.h"
#include "base/scratch_folder.h"
#include "train/checkpoint/checkpoint_save.h"
#include "train/data_files.h"
#include "train/file_size_limit.h"

namespace agoq::train {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;

// One tensor of every type that a run saves, filled with a pattern.
struct State {
  std::vector<uint8_t> codes = std::vector<uint8_t>(1000);
  std::vector<Bf16> scales = std::vector<Bf16>(24);
  std::vector<float> moments = std::vector<float>(15);
  std::vector<int16_t> corrections = std::vector<int16_t>(77);
  std::vector<int64_t> counters = std::vector<int64_t>(1);

  explicit State(int64_t pattern = -1) {
    for (const auto& bytes : all_bytes())
      for (size_t i = 0; i < bytes.size(); ++i)
        bytes[i] = static_cast<uint8_t>((pattern * 37 + static_cast<int64_t>(i) * 11) >> 1);
  }
  State(const State&) = delete;

  std::vector<StoredTensor> tensors() {
    return {{"layers.0.qkv.grad.codes", host_tensor(codes.data(), {10, 100})},
            {"layers.0.qkv.grad.scales", host_tensor(scales.data(), {2, 3, 4})},
            {"norm.exp_avg", host_tensor(moments.data(), {15})},
            {"layers.0.qkv.correction", host_tensor(corrections.data(), {7, 11})},
            {"counters", host_tensor(counters.data(), {1})},
            {"none", host_tensor(moments.data(), {0, 4})}};
  }
  bool operator==(State& other) {
    const auto a = all_bytes(), b = other.all_bytes();
    return std::equal(a.begin(), a.end(), b.begin(), [](auto x, auto y) { return std::ranges::equal(x, y); });
  }

 private:
  std::vector<std::span<uint8_t>> all_bytes() {
    const auto bytes = [](auto& v) { return std::span(reinterpret_cast<uint8_t*>(v.data()), v.size() * sizeof(v[0])); };
    return {bytes(codes), bytes(scales), bytes(moments), bytes(corrections), bytes(counters)};
  }
};

class CheckpointTest : public ::testing::Test {
 protected:
  CheckpointTest() { set_log_level(LogLevel::Error); }
  ~CheckpointTest() override { set_log_level(LogLevel::Info); }

  std::string save(int64_t step, const SaveOptions& options = {}) {
    State state(step);
    return save_checkpoint(folder(), step, state.tensors(), "{\"seed\": 7}", options);
  }
  std::string folder() const { return scratch_.file("checkpoints"); }
  std::vector<std::string> listing() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder())) names.push_back(entry.path().filename().string());
    std::sort(names.begin(), names.end());
    return names;
  }
  std::string latest() const { return fs::path(find_latest_checkpoint(folder()).value()).filename().string(); }

  ScratchFolder scratch_;
};

void expect_step(const std::string& checkpoint, int64_t step) {
  State expected(step), loaded;
  const Manifest manifest = load_checkpoint(checkpoint, loaded.tensors());
  EXPECT_EQ(manifest.step, step);
  EXPECT_TRUE(loaded == expected);
}

TEST_F(CheckpointTest, LoadsWhatWasSaved) {
  EXPECT_EQ(find_latest_checkpoint(folder()), std::nullopt);
  const std::string path = save(100);
  EXPECT_EQ(path, folder() + "/step-00000100");
  EXPECT_EQ(find_latest_checkpoint(folder()), path);
  expect_step(path, 100);
  EXPECT_EQ(read_checkpoint_manifest(path).metadata, "{\"seed\":7}");
  EXPECT_EQ(read_plainly(folder() + "/latest"), "step-00000100\n");
  Checkpoint(path).verify();
}

// Format 1, as programs that knew no pieces wrote and read it: whole tensors are still written so, to the byte.
TEST_F(CheckpointTest, WholeTensorsAreWrittenAsEver) {
  std::vector<uint8_t> codes(12);
  for (size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<uint8_t>(7 * i);
  std::vector<Bf16> scales = {to_bf16(2.0f), to_bf16(-1.0f)};
  std::vector<float> norm = {0.5f, 1.5f, 2.5f};
  const std::vector<StoredTensor> tensors = {{"exp_avg.codes/layers.0.qkv", host_tensor(codes.data(), {3, 4})},
                                             {"exp_avg.scales/layers.0.qkv", host_tensor(scales.data(), {2, 1})},
                                             {"weights/final_norm", host_tensor(norm.data(), {3})}};
  const std::string path = save_checkpoint(folder(), 4, tensors, "{\"seed\": 7}", {.shard_bytes = 16});
  EXPECT_EQ(read_plainly(path + "/manifest.json"), R"({"checksum":"8c16f42005dafde0",

 "format": 1,
 "step": 4,
 "metadata": {
  "seed": 7
 },
 "files": [
  {
   "name": "shard-00000.safetensors",
   "bytes": 192
  },
  {
   "name": "shard-00001.safetensors",
   "bytes": 92
  }
 ],
 "tensors": [
  {
   "name": "exp_avg.scales/layers.0.qkv",
   "dtype": "bf16",
   "shape": [
    2,
    1
   ],
   "file": "shard-00000.safetensors",
   "checksum": "a3234306bd070b61"
  },
  {
   "name": "exp_avg.codes/layers.0.qkv",
   "dtype": "uint8",
   "shape": [
    3,
    4
   ],
   "file": "shard-00000.safetensors",
   "checksum": "305c5bae3681d0e0"
  },
  {
   "name": "weights/final_norm",
   "dtype": "fp32",
   "shape": [
    3
   ],
   "file": "shard-00001.safetensors",
   "checksum": "55439dcb8e2b6e20"
  }
 ]
}
)");
  const std::string header = R"({"weights/final_norm":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}})";
  const std::string shard = read_plainly(path + "/shard-00001.safetensors");
  EXPECT_EQ(std::string_view(shard).substr(8, header.size()), header);
  EXPECT_EQ(std::string_view(shard).substr(shard.size() - 12), std::string_view("\0\0\0?\0\0\xC0?\0\0 @", 12));
}

TEST_F(CheckpointTest, SplitsIntoFilesOfTheGivenSize) {
  const std::string path = save(1, {.shard_bytes = 150});
  const Manifest manifest = read_checkpoint_manifest(path);
  EXPECT_EQ(manifest.files.size(), 4u);  // 1000 | 48 + 60 | 154 | 8
  for (const ManifestFile& file : manifest.files) EXPECT_EQ(fs::file_size(path + "/" + file.name), file.bytes);
  EXPECT_EQ(manifest.tensors.size(), 6u);
  expect_step(path, 1);
}

TEST_F(CheckpointTest, KeepsTheLastOnesAndRemovesLeftovers) {
  fs::create_directories(folder() + "/step-00000007.tmp-99");
  write_plainly(folder() + "/step-00000007.tmp-99/shard-00000.safetensors", "half");
  write_plainly(folder() + "/latest.tmp-99", "half");
  write_plainly(folder() + "/notes.txt", "of the user");
  for (const int64_t step : {10, 20, 30, 40}) save(step, {.keep_last = 2});
  EXPECT_EQ(listing(), (std::vector<std::string>{"latest", "notes.txt", "step-00000030", "step-00000040"}));
  expect_step(folder() + "/step-00000030", 30);
}

TEST_F(CheckpointTest, ReplacesAStepThatExists) {
  save(10);
  State other(999);
  save_checkpoint(folder(), 10, other.tensors(), "{}");
  State loaded;
  load_checkpoint(latest().insert(0, folder() + "/"), loaded.tensors());
  EXPECT_TRUE(loaded == other);
  EXPECT_EQ(listing(), (std::vector<std::string>{"latest", "step-00000010"}));
}

TEST_F(CheckpointTest, AFolderInThePlaceOfLatestLosesNoCheckpoint) {
  fs::create_directories(folder() + "/latest");
  for (const int64_t step : {10, 20}) save(step);
  EXPECT_EQ(latest(), "step-00000020");
}

// A name with a line end is refused for new runs, and what such a folder holds is still found.
TEST_F(CheckpointTest, ALineEndInAPathIsPartOfIt) {
  const std::string odd = scratch_.file("a\nb/checkpoints");
  State state(3);
  save_checkpoint(odd, 3, state.tensors(), "{}");
  EXPECT_EQ(open_latest_checkpoint(odd).value().path(), odd + "/step-00000003");
  EXPECT_EQ(open_checkpoint(odd + "/step-00000003").value().path(), odd + "/step-00000003");
}

TEST_F(CheckpointTest, FallsBackToTheHighestCompleteStep) {
  for (const int64_t step : {10, 20, 30}) save(step);
  fs::create_directories(folder() + "/step-00000040.tmp-1");
  fs::remove(folder() + "/latest");
  EXPECT_EQ(latest(), "step-00000030");
  write_plainly(folder() + "/latest", "step-00000099\n");
  EXPECT_EQ(latest(), "step-00000030");
  write_plainly(folder() + "/latest", "../../elsewhere\n");
  EXPECT_EQ(latest(), "step-00000030");
  const std::string name = folder() + "/latest";
  fs::remove(name);
  ASSERT_EQ(mkfifo(name.c_str(), 0600), 0);  // opening it would wait for a writer
  EXPECT_EQ(latest(), "step-00000030");
  fs::remove(name);
  fs::create_directory_symlink("step-00000020", name);
  EXPECT_EQ(latest(), "step-00000030");
  fs::remove(name);
  fs::create_directory(name);
  EXPECT_EQ(latest(), "step-00000030");
  fs::remove(name);
  write_plainly(folder() + "/latest", "step-00000020\n");
  EXPECT_EQ(latest(), "step-00000020");  // set back by hand
  fs::remove(folder() + "/step-00000020/manifest.json");
  EXPECT_EQ(latest(), "step-00000030");
  fs::resize_file(folder() + "/step-00000030/shard-00000.safetensors", 100);
  EXPECT_EQ(latest(), "step-00000010");
  fs::remove(folder() + "/step-00000010/shard-00000.safetensors");
  EXPECT_THAT(error_of([&] { find_latest_checkpoint(folder()); }), HasSubstr("none is complete"));
}

// Changes the last byte of a checkpoint's first file, which belongs to a tensor.
void flip_a_bit(const std::string& checkpoint) {
  const std::string file = checkpoint + "/shard-00000.safetensors";
  std::string content = read_plainly(file);
  content.back() = static_cast<char>(content.back() ^ 4);
  write_plainly(file, content);
}

TEST_F(CheckpointTest, DamagedOnesArePassedOverForTheLastIntactOne) {
  EXPECT_EQ(open_latest_checkpoint(folder()), std::nullopt);
  for (const int64_t step : {10, 20, 30}) save(step);
  const auto opened = [&] { return fs::path(open_latest_checkpoint(folder()).value().path()).filename().string(); };
  EXPECT_EQ(opened(), "step-00000030");
  flip_a_bit(folder() + "/step-00000030");
  EXPECT_EQ(latest(), "step-00000030") << "complete by its sizes";
  EXPECT_EQ(opened(), "step-00000020");
  testing::internal::CaptureStderr();
  set_log_level(LogLevel::Warning);
  opened();
  set_log_level(LogLevel::Error);
  EXPECT_THAT(testing::internal::GetCapturedStderr(),
              AllOf(HasSubstr("PASSING OVER"), HasSubstr("step-00000030"), HasSubstr("'layers.0.qkv.grad.codes'")));
  fs::remove(folder() + "/step-00000020/manifest.json");
  EXPECT_EQ(opened(), "step-00000010");
  flip_a_bit(folder() + "/step-00000010");
  EXPECT_THAT(error_of([&] { open_latest_checkpoint(folder()); }),
              AllOf(HasSubstr("none is intact"), HasSubstr("step-00000030: "), HasSubstr("step-00000020: "),
                    HasSubstr("step-00000010: "), HasSubstr("'layers.0.qkv.grad.codes'"), HasSubstr("manifest.json")));
}

TEST_F(CheckpointTest, ACheckpointThatIsNamedIsNeverReplaced) {
  for (const int64_t step : {10, 20}) save(step);
  const std::string newest = folder() + "/step-00000020";
  for (const std::string& source : {scratch_.path(), folder(), newest, newest + "/"})
    EXPECT_EQ(open_checkpoint(source).value().manifest().step, 20) << source;
  EXPECT_EQ(find_checkpoint(folder()), newest);
  EXPECT_EQ(find_checkpoint(newest + "/"), newest);
  EXPECT_EQ(find_checkpoint(""), std::nullopt);
  EXPECT_EQ(open_checkpoint(fs::temp_directory_path().string() + "/no-such-run"), std::nullopt);
  flip_a_bit(newest);
  EXPECT_EQ(open_checkpoint(folder()).value().manifest().step, 10);
  EXPECT_THAT(error_of([&] { open_checkpoint(newest); }), HasSubstr("'layers.0.qkv.grad.codes'"));
  fs::remove(newest + "/manifest.json");
  EXPECT_THAT(error_of([&] { open_checkpoint(newest + "/"); }), HasSubstr("step-00000020/manifest.json"));
}

TEST_F(CheckpointTest, ARunSetBackKeepsItsOwnHistory) {
  for (const int64_t step : {10, 20, 30, 40}) save(step);
  write_plainly(folder() + "/latest", "step-00000010\n");
  save(20, {.keep_last = 1});
  EXPECT_EQ(latest(), "step-00000020");
  EXPECT_EQ(listing(), (std::vector<std::string>{"latest", "step-00000020", "step-00000030", "step-00000040"}));
}

TEST_F(CheckpointTest, MismatchesAreListedAndNothingIsLoaded) {
  const std::string path = save(5);
  State state(77), untouched(77);
  std::vector<StoredTensor> tensors = state.tensors();
  tensors[0] = {tensors[0].name, host_tensor(state.codes.data(), {100, 10})};
  tensors[1].name = "renamed";
  std::vector<int32_t> integers(15);
  tensors[2] = {tensors[2].name, host_tensor(integers.data(), {15})};
  EXPECT_THAT(error_of([&] { load_checkpoint(path, tensors); }),
              AllOf(HasSubstr("'layers.0.qkv.grad.codes': saved uint8 [10, 100], expected uint8 [100, 10]"),
                    HasSubstr("missing: 'renamed'"), HasSubstr("unexpected: 'layers.0.qkv.grad.scales'"),
                    HasSubstr("'norm.exp_avg': saved fp32 [15], expected int32 [15]")));
  EXPECT_TRUE(state == untouched);
}

TEST_F(CheckpointTest, ASubsetLoadsWeightsOnly) {
  const std::string path = save(5);
  State state(77), saved(5), untouched(77);
  const StoredTensor wanted = state.tensors()[3];
  EXPECT_THAT(error_of([&] { load_checkpoint(path, std::span(&wanted, 1)); }), HasSubstr("unexpected"));
  load_checkpoint(path, std::span(&wanted, 1), {.subset = true});
  EXPECT_EQ(state.corrections, saved.corrections);
  EXPECT_EQ(state.codes, untouched.codes);
}

// In place: some file systems flush a file that is truncated and written again, which thousands of times takes minutes.
void overwrite(const std::string& path, std::string_view content) {
  std::fstream(path, std::ios::in | std::ios::out | std::ios::binary)
      .write(content.data(), static_cast<std::streamsize>(content.size()));
  fs::resize_file(path, content.size());
}

// Damages a file, expects an error that names it and destinations that are untouched, and repairs the file.
void expect_detected(const std::string& checkpoint, const std::string& file, const std::string& intact,
                     std::string_view damaged, const std::string& what) {
  overwrite(checkpoint + "/" + file, damaged);
  State state(77), untouched(77);
  EXPECT_THAT(error_of([&] { load_checkpoint(checkpoint, state.tensors()); }), HasSubstr(file)) << what;
  EXPECT_TRUE(state == untouched) << what;
  overwrite(checkpoint + "/" + file, intact);
}

TEST_F(CheckpointTest, EveryFlippedBitIsFound) {
  const std::string path = save(3, {.shard_bytes = 150});
  const std::vector<ManifestFile> files = read_checkpoint_manifest(path).files;
  for (const std::string& file : {std::string("manifest.json"), files[0].name, files[1].name}) {
    const std::string content = read_plainly(path + "/" + file);
    for (size_t i = 0; i < content.size(); ++i) {
      std::string damaged = content;
      damaged[i] = static_cast<char>(damaged[i] ^ (1 << (i * 5 % 8)));
      expect_detected(path, file, content, damaged, fmt::format("byte {} of {}", i, file));
    }
  }
  expect_step(path, 3);
}

// The text in front of the data is short enough to try all of its bits.
TEST_F(CheckpointTest, EveryFlippedBitOfAHeaderIsFound) {
  const std::string path = save(3, {.shard_bytes = 150});
  const std::string file = read_checkpoint_manifest(path).files[1].name;
  const std::string content = read_plainly(path + "/" + file);
  const size_t header = 8 + static_cast<uint8_t>(content[0]);
  for (size_t bit = 0; bit < 8 * header; ++bit) {
    std::string damaged = content;
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << (bit % 8)));
    expect_detected(path, file, content, damaged, fmt::format("bit {}", bit));
  }
}

TEST_F(CheckpointTest, EveryTruncationIsFound) {
  const std::string path = save(3, {.shard_bytes = 150});
  for (const std::string& file : {std::string("manifest.json"), read_checkpoint_manifest(path).files[1].name}) {
    const std::string content = read_plainly(path + "/" + file);
    for (size_t length = 0; length < content.size(); ++length)
      expect_detected(path, file, content, std::string_view(content).substr(0, length),
                      fmt::format("{} cut to {}", file, length));
    expect_detected(path, file, content, content + '\0', file + " with one more byte");
  }
  fs::remove(path + "/shard-00001.safetensors");
  State state;
  EXPECT_THAT(error_of([&] { load_checkpoint(path, state.tensors()); }),
              HasSubstr("shard-00001.safetensors is missing"));
}

TEST_F(CheckpointTest, NamesTheDamagedTensor) {
  const std::string path = save(3);
  flip_a_bit(path);
  EXPECT_THAT(error_of([&] { Checkpoint(path).verify(); }),
              AllOf(HasSubstr("shard-00000.safetensors is damaged"), HasSubstr("'layers.0.qkv.grad.codes'")));
}

TEST_F(CheckpointTest, AFullDiskFailsTheSaveAndLeavesThePreviousCheckpoint) {
  const SaveOptions options = {.keep_last = 1, .shard_bytes = 100};
  const std::string path = save(10, options);
  const uint64_t shard = fs::file_size(path + "/shard-00000.safetensors");
  const uint64_t manifest = fs::file_size(path + "/manifest.json");
  ASSERT_LT(shard, manifest);  // the last limit lets all shards pass
  for (const uint64_t limit : {uint64_t{0}, uint64_t{100}, shard - 1, manifest - 1}) {
    const FileSizeLimit full(limit);
    EXPECT_THAT(error_of([&] { save(20, options); }), HasSubstr("step 20 was not saved"));
    EXPECT_EQ(listing(), (std::vector<std::string>{"latest", "step-00000010"}));
  }
  expect_step(folder() + "/" + latest(), 10);
  save(30, options);
  EXPECT_EQ(listing(), (std::vector<std::string>{"latest", "step-00000030"}));
}

TEST_F(CheckpointTest, AFolderThatCannotBeMadeFailsTheSave) {
  write_plainly(folder(), "a file is in the way");
  EXPECT_THAT(error_of([&] { save(1); }), HasSubstr("was not saved"));
  EXPECT_EQ(read_plainly(folder()), "a file is in the way");
}

TEST_F(CheckpointTest, KilledAtAnyMomentTheLastCompleteOneRemains) {
  save(0);
  int64_t last = 0;
  for (int round = 0; round < 20; ++round) {
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      // The same three steps again and again: saves, replacements and removals, until the end comes.
      for (int64_t step = last;; step = step == last + 3 ? last : step + 1)
        save(step, {.keep_last = 2, .shard_bytes = 100});
    }
    std::this_thread::sleep_for(std::chrono::microseconds(2000 + 3700 * round));
    kill(child, SIGKILL);
    int status = 0;
    waitpid(child, &status, 0);
    ASSERT_TRUE(WIFSIGNALED(status));
    const std::string path = find_latest_checkpoint(folder()).value();
    last = read_checkpoint_manifest(path).step;
    expect_step(path, last);
  }
  save(last + 10, {.keep_last = 1});
  EXPECT_EQ(latest(), fmt::format("step-{:08}", last + 10));
  for (const std::string& name : listing()) EXPECT_EQ(name.find(".tmp-"), std::string::npos);
}

TEST(Manifest, RefusesWhatLeadsOutOfItsFolderOrContradictsItself) {
  const auto parse = [](const std::string& members) {
    return error_of([&] { parse_manifest(sealed_manifest(members), "m.json"); });
  };
  const std::string head = R"("format":1,"step":4,"metadata":{},)";
  const std::string file = R"("files":[{"name":"a","bytes":1}],)";
  const auto tensor = [](const std::string& change) {
    auto json =
        nlohmann::json::parse(R"({"name":"t","dtype":"fp32","shape":[2],"file":"a","checksum":"0123456789abcdef"})");
    if (!change.empty()) json.update(nlohmann::json::parse("{" + change.substr(1) + "}"));
    return json.dump();
  };
  EXPECT_EQ(parse(head + file + R"("tensors":[)" + tensor("") + "]}"), "");
  EXPECT_THAT(parse(head + R"("files":[{"name":"../a","bytes":1}],"tensors":[]})"), HasSubstr("no file name"));
  EXPECT_THAT(parse(head + R"("files":[{"name":"..","bytes":1}],"tensors":[]})"), HasSubstr("no file name"));
  EXPECT_THAT(parse(head + R"("files":[{"name":"a","bytes":-1}],"tensors":[]})"), HasSubstr("'bytes'"));
  EXPECT_THAT(parse(head + file + R"("tensors":[)" + tensor("") + "," + tensor("") + "]}"), HasSubstr("listed twice"));
  EXPECT_THAT(parse(head + file + R"("tensors":[)" + tensor(R"(,"dtype":"fp3")") + "]}"),
              HasSubstr("unknown type 'fp3'"));
  EXPECT_THAT(parse(head + file + R"("tensors":[)" + tensor(R"(,"file":"b")") + "]}"), HasSubstr("not listed"));
  EXPECT_THAT(parse(head + file + R"("tensors":[)" + tensor(R"(,"checksum":"0X23456789abcdef")") + "]}"),
              HasSubstr("checksum"));
  EXPECT_THAT(parse(head + file + R"("tensors":[)" + tensor(R"(,"shape":[-2])") + "]}"), HasSubstr("dimension"));
  EXPECT_THAT(parse(head + file + R"("tensors":[],"files":[]})"), HasSubstr("'files' appears twice"));
  const auto pieces = [&](const std::string& list) {
    return parse(head + file + R"("tensors":[{"name":"t","dtype":"fp32","shape":[2,3],"pieces":[)" + list + "]}]}");
  };
  const auto piece = [](const std::string& rows, const std::string& columns) {
    return fmt::format(R"({{"rows":{},"columns":{},"file":"a","checksum":"0123456789abcdef"}})", rows, columns);
  };
  EXPECT_EQ(pieces(piece("[0,1]", "[0,3]") + "," + piece("[1,2]", "[0,3]")), "");
  EXPECT_THAT(pieces(""), HasSubstr("row 0, column 0 of tensor 't' (0:2,0:3) is in no piece"));
  EXPECT_THAT(pieces(piece("[0,2]", "[0,1]") + "," + piece("[0,2]", "[2,3]")), HasSubstr("row 0, column 1"));
  EXPECT_THAT(pieces(piece("[0,2]", "[0,2]") + "," + piece("[1,2]", "[1,3]")), HasSubstr("row 0, column 2"));
  EXPECT_THAT(pieces(piece("[0,2]", "[0,3]") + "," + piece("[1,2]", "[1,3]")),
              HasSubstr("0:2,0:3 in a and 1:2,1:3 in a overlap at row 1, column 1"));
  EXPECT_THAT(pieces(piece("[0,3]", "[0,3]")), HasSubstr("lies outside its 0:2,0:3"));
  EXPECT_THAT(pieces(piece("[2,0]", "[0,3]")), HasSubstr("lies outside"));
  EXPECT_THAT(pieces(piece("[0,2]", "[0,3]") + "," + piece("[1,1]", "[0,3]")), HasSubstr("is empty"));
  EXPECT_THAT(pieces(piece("[0,2,1]", "[0,3]")), HasSubstr("'rows' is [0,2,1]"));
  EXPECT_THAT(pieces(piece("[0,-2]", "[0,3]")), HasSubstr("not two whole numbers"));
  EXPECT_THAT(pieces("7"), HasSubstr("no object"));
  EXPECT_THAT(parse(head + file + R"("tensors":[)" + tensor(R"(,"name":"t@0:1,0:1")") + "]}"),
              HasSubstr("name of a piece"));
  EXPECT_THAT(parse(head + file + R"("tensors":[)" + tensor(R"(,"shape":[4611686018427387904,4])") + "]}"),
              HasSubstr("2^63"));
  EXPECT_THAT(parse(R"("format":3,"step":4})"), HasSubstr("format 3"));
  EXPECT_THAT(parse(head + R"("files":[],"tensors":[]})" + "x"), HasSubstr("m.json"));
  EXPECT_THAT(parse(R"("metadata":)" + std::string(100, '[')), HasSubstr("nested"));
}

TEST(Differences, ListsChangedSettings) {
  EXPECT_TRUE(differences(R"({"a": 1, "b": [1, {"c": 2}]})", R"({"b": [1, {"c": 2}], "a": 1})").empty());
  EXPECT_EQ(differences(R"({"lr": 0.1, "model": {"layers": 2, "tied": true}, "old": 1, "w": [1, 2]})",
                        R"({"lr": 0.1, "model": {"layers": 3, "tied": true}, "new": "x", "w": [1, 5]})"),
            (std::vector<std::string>{"model.layers: saved 2, now 3", "old: saved 1, now absent",
                                      "w[1]: saved 2, now 5", "new: saved absent, now \"x\""}));
  EXPECT_EQ(differences(R"({"w": [1, 2]})", R"({"w": [1]})"), std::vector<std::string>{"w: saved [1,2], now [1]"});
  EXPECT_THROW(differences("{", "{}"), Error);
}

}  // namespace
}  // namespace agoq::train
