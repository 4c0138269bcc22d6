#include "model/hf_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "base/error_of.h"
#include "base/safetensors.h"
#include "base/scratch_folder.h"

namespace agoq::model {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;

const fs::path kGoldens = AGOQ_GOLDENS;

struct World {
  explicit World(const ModelConfig& c, MasterForm form = MasterForm::Split, DType compute = DType::F32,
                 TensorShard shard = {})
      : config(c),
        spec(config, shard),
        arena(Device::Cpu, static_cast<size_t>(config.parameters()) * 8 + (size_t{1} << 20)),
        ctx(arena, Device::Cpu, compute),
        params(arena, config, spec, {all_params(config, spec), form, compute, {}}) {}

  void import_from(const fs::path& folder) const { import_weights(ctx, folder, config, spec, params); }
  void export_to(const fs::path& folder, DType dtype, int64_t max_bytes = 1 << 30,
                 const Companions& companions = {}) const {
    export_folder(ctx, folder, config, spec, params, dtype, companions, max_bytes);
  }
  std::vector<float> values(const ParamId& id) const {
    std::vector<float> numbers(static_cast<size_t>(spec[id.param].count()));
    ops::load_fp32(ctx, params.at(id), numbers.data());
    return numbers;
  }

  ModelConfig config;
  LayerSpec spec;
  Arena arena;
  Context ctx;
  Parameters params;
};

struct FileTensor {
  std::string dtype;
  std::vector<int64_t> shape;
  std::vector<uint8_t> bytes;
  bool operator==(const FileTensor&) const = default;
};
using FileTensors = std::map<std::string, FileTensor>;

std::vector<fs::path> weight_files(const fs::path& folder) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(folder))
    if (entry.path().extension() == ".safetensors") files.push_back(entry.path());
  return files;
}

FileTensors read_all(const fs::path& folder) {
  FileTensors tensors;
  for (const fs::path& path : weight_files(folder)) {
    const SafetensorsFile file(path.string());
    for (const TensorEntry& entry : file.entries()) {
      const auto bytes = file.bytes(entry);
      tensors[entry.name] = {entry.format_dtype, entry.shape, {bytes.begin(), bytes.end()}};
    }
  }
  return tensors;
}

// Writes tensors as one file; `halves` are the bits of a 16-bit type.
void write_all(const fs::path& folder, const FileTensors& tensors, const std::string& file = "model.safetensors") {
  std::vector<TensorHeader> headers;
  for (const auto& [name, t] : tensors)
    headers.push_back({name,
                       t.dtype == "F32"    ? DType::F32
                       : t.dtype == "BF16" ? DType::BF16
                       : t.dtype == "F16"  ? DType::F16
                                           : DType::I32,
                       t.shape});
  SafetensorsWriter writer((folder / file).string(), headers);
  for (const auto& [name, t] : tensors) writer.write(name, t.bytes);
  writer.commit();
}

// The same model with every element replaced by arbitrary finite 16-bit numbers, denormals and both zeros among them.
FileTensors in_16_bits(FileTensors tensors, const std::string& dtype) {
  const uint16_t exponent = dtype == "BF16" ? 0x7f80 : 0x7c00;
  uint32_t state = 12345;
  for (auto& [name, t] : tensors) {
    std::vector<uint16_t> bits(t.bytes.size() / 4);
    for (uint16_t& b : bits) {
      state = state * 1664525u + 1013904223u;
      b = static_cast<uint16_t>(state >> 16);
      if ((b & exponent) == exponent) b &= static_cast<uint16_t>(~exponent);
    }
    t.dtype = dtype;
    t.bytes.resize(bits.size() * 2);
    std::memcpy(t.bytes.data(), bits.data(), t.bytes.size());
  }
  return tensors;
}

ScratchFolder& with_config(ScratchFolder& folder, const fs::path& source) {
  fs::copy_file(source / "config.json", folder.file("config.json"));
  return folder;
}

class HfFolder : public testing::TestWithParam<const char*> {
 protected:
  fs::path model() const { return kGoldens / GetParam() / "model"; }
};

TEST_P(HfFolder, RoundTripInFp32IsBitExact) {
  const World world(find_config(model().string()));
  world.import_from(model());
  ScratchFolder folder;
  const fs::path out = folder.file("export");
  world.export_to(out, DType::F32, 1 << 30, generation_files(model()));
  EXPECT_EQ(read_all(out), read_all(model()));
  EXPECT_EQ(read_plainly(out / "generation_config.json"), read_plainly(model() / "generation_config.json"));
  EXPECT_EQ(nlohmann::json::parse(read_plainly(out / "config.json")),
            nlohmann::json::parse(read_plainly(model() / "config.json")));
}

TEST_P(HfFolder, EveryElementOfAFusedParameterComesFromItsPart) {
  const World world(find_config(model().string()));
  world.import_from(model());
  const FileTensors tensors = read_all(model());
  const auto& heads = world.config.heads;
  const std::vector<float> qkv = world.values({1, Param::Qkv});
  const auto expect_rows = [&](const char* name, int64_t begin) {
    const FileTensor& t = tensors.at(name);
    EXPECT_EQ(std::memcmp(qkv.data() + begin * world.config.hidden_size, t.bytes.data(), t.bytes.size()), 0) << name;
  };
  expect_rows("model.layers.1.self_attn.q_proj.weight", 0);
  expect_rows("model.layers.1.self_attn.k_proj.weight", heads.k_begin());
  expect_rows("model.layers.1.self_attn.v_proj.weight", heads.v_begin());
  if (!world.config.qkv_bias) return;
  const std::vector<float> bias = world.values({0, Param::QkvBias});
  const FileTensor& v = tensors.at("model.layers.0.self_attn.v_proj.bias");
  EXPECT_EQ(std::memcmp(bias.data() + heads.v_begin(), v.bytes.data(), v.bytes.size()), 0);
}

INSTANTIATE_TEST_SUITE_P(Goldens, HfFolder,
                         testing::Values("llama_gqa", "llama_tied", "llama3_rope", "mistral", "qwen2", "qwen3", "olmo",
                                         "olmo2"));

class HeldForm : public testing::TestWithParam<std::pair<MasterForm, DType>> {};

TEST_P(HeldForm, SixteenBitFilesSurviveExactly) {
  const fs::path source = kGoldens / "qwen2" / "model";
  const World world(find_config(source.string()), GetParam().first, GetParam().second);
  for (const std::string dtype : {"BF16", "F16"}) {
    SCOPED_TRACE(dtype);
    ScratchFolder folder;
    with_config(folder, source);
    const FileTensors tensors = in_16_bits(read_all(source), dtype);
    write_all(folder.path(), tensors);
    world.import_from(folder.path());

    world.export_to(folder.file("same"), dtype == "BF16" ? DType::BF16 : DType::F16);
    EXPECT_EQ(read_all(folder.file("same")), tensors);
    const auto config = nlohmann::json::parse(read_plainly(folder.file("same/config.json")));
    EXPECT_EQ(config["torch_dtype"], dtype == "BF16" ? "bfloat16" : "float16");

    // fp32 holds every 16-bit number exactly.
    world.export_to(folder.file("wide"), DType::F32);
    for (const auto& [name, wide] : read_all(folder.file("wide"))) {
      ASSERT_EQ(wide.dtype, "F32");
      const FileTensor& narrow = tensors.at(name);
      for (size_t i = 0; i < wide.bytes.size() / 4; ++i) {
        float value = 0;
        uint16_t bits = 0;
        std::memcpy(&value, wide.bytes.data() + 4 * i, 4);
        std::memcpy(&bits, narrow.bytes.data() + 2 * i, 2);
        const int fraction_bits = dtype == "BF16" ? 7 : 10, bias = dtype == "BF16" ? 127 : 15;
        const int exponent = (bits & 0x7fff) >> fraction_bits, fraction = bits & ((1 << fraction_bits) - 1);
        const double whole = exponent == 0 ? fraction : fraction + (1 << fraction_bits);
        const double magnitude = std::ldexp(whole, std::max(exponent, 1) - bias - fraction_bits);
        ASSERT_EQ(value, (bits & 0x8000) ? -magnitude : magnitude) << name << " " << i;
        ASSERT_EQ(std::signbit(value), (bits & 0x8000) != 0);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Forms, HeldForm,
                         testing::Values(std::pair{MasterForm::Split, DType::F32},
                                         std::pair{MasterForm::Fp32, DType::F32},
                                         std::pair{MasterForm::Fp32, DType::BF16}));

TEST(HfFolderExport, Bf16IsRoundedToNearestEven) {
  const World world(find_config((kGoldens / "llama_gqa" / "model").string()));
  // Exactly between two bf16 numbers, a bit below, a bit above; the split form alone would round the first one up.
  std::vector<float> norm(static_cast<size_t>(world.config.hidden_size), 1.0f);
  norm[0] = std::bit_cast<float>(0x3f808000u);
  norm[1] = std::bit_cast<float>(0x3f818000u);
  norm[2] = std::bit_cast<float>(0x3f807fffu);
  norm[3] = std::bit_cast<float>(0x3f808001u);
  ops::store_fp32(world.ctx, world.params.at({-1, Param::FinalNorm}), norm.data());
  ScratchFolder folder;
  world.export_to(folder.file("out"), DType::BF16);
  std::vector<uint16_t> bits(norm.size());
  const FileTensor t = read_all(folder.file("out")).at("model.norm.weight");
  ASSERT_EQ(t.bytes.size(), bits.size() * 2);
  std::memcpy(bits.data(), t.bytes.data(), t.bytes.size());
  EXPECT_THAT(std::vector(bits.begin(), bits.begin() + 5),
              testing::ElementsAre(0x3f80, 0x3f82, 0x3f80, 0x3f81, 0x3f80));
}

TEST(HfFolderExport, Fp16RefusesWhatItCannotHold) {
  const World world(find_config((kGoldens / "llama_gqa" / "model").string()));
  std::vector<float> norm(static_cast<size_t>(world.config.hidden_size), 70000.0f);
  ops::store_fp32(world.ctx, world.params.at({1, Param::MlpNorm}), norm.data());
  ScratchFolder folder;
  EXPECT_THAT(
      error_of([&] { world.export_to(folder.file("out"), DType::F16); }),
      AllOf(HasSubstr("model.layers.1.post_attention_layernorm.weight"), HasSubstr("70000"), HasSubstr("bf16")));
  EXPECT_EQ(folder.count(), 0u) << "nothing half written stays";
}

TEST(HfFolderExport, ShardsHoldAtMostTheirSizeAndReadBack) {
  const fs::path source = kGoldens / "llama_gqa" / "model";
  const World world(find_config(source.string()));
  world.import_from(source);
  ScratchFolder folder;
  const fs::path out = folder.file("out");
  world.export_to(out, DType::F32, 60'000);

  const auto index = nlohmann::json::parse(read_plainly(out / "model.safetensors.index.json"));
  std::map<std::string, std::set<std::string>> tensors_by_file;
  for (const auto& [tensor, file] : index["weight_map"].items()) tensors_by_file[file].insert(tensor);
  uint64_t total = 0;
  ASSERT_GT(tensors_by_file.size(), 2u);
  for (const auto& [name, tensors] : tensors_by_file) {
    EXPECT_THAT(name, testing::EndsWith(fmt::format("-of-{:05}.safetensors", tensors_by_file.size())));
    const SafetensorsFile file((out / name).string());
    EXPECT_EQ(file.metadata().at("format"), "pt");
    uint64_t size = 0;
    for (const TensorEntry& entry : file.entries()) {
      EXPECT_TRUE(tensors.contains(entry.name));
      size += entry.size;
    }
    EXPECT_TRUE(size <= 60'000 || file.entries().size() == 1) << name;
    total += size;
  }
  EXPECT_EQ(index["metadata"]["total_size"], total);
  EXPECT_FALSE(fs::exists(out / "model.safetensors"));
  EXPECT_EQ(read_all(out), read_all(source));
  const World again(find_config(out.string()));
  again.import_from(out);
  for (const ParamId& id : again.params.ids()) EXPECT_EQ(again.values(id), world.values(id));
}

TEST(HfFolderExport, ANewConfigReadsBack) {
  World world(preset("demo"));
  world.params.initialize(world.ctx, 7);
  ScratchFolder folder;
  world.export_to(folder.file("out"), DType::F32);
  const World again(find_config(folder.file("out")));
  again.import_from(folder.file("out"));
  for (const ParamId& id : again.params.ids()) EXPECT_EQ(again.values(id), world.values(id));
}

TEST(HfFolderExport, CarriesCompanions) {
  const World world(find_config((kGoldens / "llama_gqa" / "model").string()));
  const Companions companions = {{"tokenizer.json", "{\"a\": \"\xc3\xa9\"}\r\n"},
                                 {"additional_chat_templates/rag.jinja", "rag"}};
  ScratchFolder target;
  const fs::path out = target.path() + "/deep/er/out/";
  world.export_to(out, DType::BF16, 1 << 30, companions);
  std::set<std::string> found;
  for (const auto& entry : fs::recursive_directory_iterator(out))
    if (!entry.is_directory()) found.insert(fs::relative(entry.path(), out).string());
  EXPECT_EQ(found, (std::set<std::string>{"config.json", "model.safetensors", "tokenizer.json",
                                          "additional_chat_templates/rag.jinja"}));
  for (const auto& [name, content] : companions) EXPECT_EQ(read_plainly(out / name), content);
}

TEST(HfFolderExport, ReplacesOnlyItsOwnExports) {
  const fs::path source = kGoldens / "llama_gqa" / "model";
  const World world(find_config(source.string()));
  world.import_from(source);
  ScratchFolder folder;
  const fs::path out = folder.file("out");
  fs::create_directory(out);
  world.export_to(out, DType::F32, 60'000);  // empty: fine
  world.export_to(out, DType::BF16);         // an earlier export: replaced as a whole
  EXPECT_TRUE(fs::exists(out / "model.safetensors"));
  EXPECT_FALSE(fs::exists(out / "model.safetensors.index.json"));
  EXPECT_EQ(folder.count(), 1u) << "no temporary folders stay";

  const fs::path original = folder.file("original");
  fs::copy(source, original);
  EXPECT_THAT(error_of([&] { world.export_to(original, DType::F32); }), HasSubstr("holds other things"));
  EXPECT_EQ(read_all(original), read_all(source));
  const fs::path notes = folder.file("notes");
  fs::create_directory(notes);
  write_plainly(notes / "diary.txt", "dear");
  EXPECT_THAT(error_of([&] { world.export_to(notes, DType::F32); }), HasSubstr("holds other things"));
  EXPECT_THAT(error_of([&] { world.export_to(notes / "diary.txt", DType::F32); }), HasSubstr("is a file"));
  EXPECT_EQ(read_plainly(notes / "diary.txt"), "dear");
}

class HfFolderErrors : public testing::Test {
 protected:
  HfFolderErrors() { with_config(folder_, source_); }
  std::string error(const FileTensors& tensors) {
    write_all(folder_.path(), tensors);
    return error_of([&] { world_.import_from(folder_.path()); });
  }

  fs::path source_ = kGoldens / "llama_tied" / "model";
  World world_{find_config(source_.string())};
  ScratchFolder folder_;
  FileTensors tensors_ = read_all(source_);
};

TEST_F(HfFolderErrors, NameTensorAndFile) {
  const std::string norm = "model.layers.1.input_layernorm.weight", q = "model.layers.0.self_attn.q_proj.weight";
  FileTensors missing = tensors_;
  missing.erase(norm);
  EXPECT_THAT(error(missing), AllOf(HasSubstr(folder_.path()), HasSubstr(norm), HasSubstr("[40]")));
  missing["model.layers.1.input_layernom.weight"] = tensors_.at(norm);
  EXPECT_THAT(error(missing), HasSubstr("did you mean 'model.layers.1.input_layernom.weight'?"));

  FileTensors unexpected = tensors_;
  unexpected["model.layers.2.input_layernorm.weight"] = tensors_.at(norm);
  EXPECT_THAT(error(unexpected), AllOf(HasSubstr("model.layers.2.input_layernorm.weight"),
                                       HasSubstr("model.safetensors"), HasSubstr("(1 such tensors)")));

  FileTensors wrong_shape = tensors_;
  wrong_shape.at(q).shape = {20, 80};
  EXPECT_THAT(error(wrong_shape), AllOf(HasSubstr(q), HasSubstr("[20, 80]"), HasSubstr("[40, 40]")));

  FileTensors wrong_type = tensors_;
  wrong_type.at(q).dtype = "I32";
  EXPECT_THAT(error(wrong_type), AllOf(HasSubstr(q), HasSubstr("dtype I32")));

  for (const float x : world_.values({0, Param::AttentionNorm})) ASSERT_EQ(x, 0) << "refused before a weight changed";
}

TEST_F(HfFolderErrors, NotForBuffersAndCopiesThatSomeFilesHold) {
  FileTensors tensors = tensors_;
  tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = {"F32", {4}, std::vector<uint8_t>(16)};
  tensors["lm_head.weight"] = tensors.at("model.embed_tokens.weight");
  EXPECT_EQ(error(tensors), "");
}

TEST_F(HfFolderErrors, NameANumberThatIsNone) {
  const std::string norm = "model.layers.1.input_layernorm.weight", down = "model.layers.0.mlp.down_proj.weight";
  const auto error_with = [&](const std::string& name, size_t element, uint32_t bits) {
    FileTensors tensors = tensors_;
    std::memcpy(tensors.at(name).bytes.data() + 4 * element, &bits, 4);
    return error(tensors);
  };
  EXPECT_THAT(error_with(norm, 7, 0x7fc00000), AllOf(HasSubstr("'" + norm + "'"), HasSubstr("model.safetensors"),
                                                     HasSubstr("nan"), HasSubstr("element 7")));
  EXPECT_THAT(error_with(down, 123, 0xff800000), AllOf(HasSubstr(down), HasSubstr("-inf"), HasSubstr("element 123")));
  EXPECT_EQ(error_with(down, 123, 0x7f000000), "") << "large";
}

// As transformers 5.24 does: what is stored counts, not what tie_word_embeddings says.
TEST_F(HfFolderErrors, NoneForAHeadOfItsOwnUnderTiedEmbeddings) {
  const std::string embedding = "model.embed_tokens.weight", head = "lm_head.weight";
  FileTensors tensors = tensors_;
  tensors[head] = tensors.at(embedding);
  write_all(folder_.path(), tensors);
  EXPECT_TRUE(find_config(folder_.path()).tied_embeddings) << "an equal copy";

  tensors.at(head).bytes[2] ^= 1;
  write_all(folder_.path(), tensors);
  const ModelConfig untied = find_config(folder_.path());
  EXPECT_FALSE(untied.tied_embeddings);
  EXPECT_FALSE(nlohmann::json::parse(config_to_json(untied))["tie_word_embeddings"].get<bool>());
  const World world(untied);
  world.import_from(folder_.path());
  ScratchFolder out;
  world.export_to(out.file("out"), DType::F32);
  EXPECT_EQ(read_all(out.file("out")), tensors);
  EXPECT_FALSE(find_config(out.file("out")).tied_embeddings);

  tensors.erase(embedding);
  tensors.at(head) = tensors_.at(embedding);
  write_all(folder_.path(), tensors);
  EXPECT_TRUE(find_config(folder_.path()).tied_embeddings);
  EXPECT_EQ(error_of([&] { world_.import_from(folder_.path()); }), "") << "the head alone is stored";
  const World whole(world_.config);
  whole.import_from(source_);
  for (const ParamId& id : whole.params.ids()) EXPECT_EQ(world_.values(id), whole.values(id));
}

TEST_F(HfFolderErrors, OfTheIndexAndItsShards) {
  const auto error_with_index = [&](const std::string& index) {
    write_plainly(folder_.file("model.safetensors.index.json"), index);
    return error_of([&] { world_.import_from(folder_.path()); });
  };
  EXPECT_THAT(error_of([&] { world_.import_from(folder_.path()); }), HasSubstr("neither model.safetensors nor"));
  EXPECT_THAT(error_with_index("{"), HasSubstr("index.json is not JSON"));
  EXPECT_THAT(error_with_index("{\"weight_map\": [1]}"), HasSubstr("not an index"));
  EXPECT_THAT(error_with_index("{\"weight_map\": {\"a\": \"../b.safetensors\"}}"), HasSubstr("'../b.safetensors'"));
  EXPECT_THAT(error_with_index("{\"weight_map\": {\"a\": \"b.safetensors\"}}"), HasSubstr("b.safetensors"));

  FileTensors first = {*tensors_.begin()}, rest = tensors_;
  rest.erase(first.begin()->first);
  write_all(folder_.path(), first, "one.safetensors");
  write_all(folder_.path(), rest, "two.safetensors");
  nlohmann::json index;
  for (const auto& [name, tensor] : tensors_)
    index["weight_map"][name] = first.contains(name) ? "one.safetensors" : "two.safetensors";
  EXPECT_EQ(error_with_index(index.dump()), "");
  index["weight_map"]["phantom"] = "two.safetensors";
  EXPECT_THAT(error_with_index(index.dump()), AllOf(HasSubstr("'phantom'"), HasSubstr("two.safetensors")));
  index["weight_map"].erase("phantom");
  index["weight_map"][first.begin()->first] = "two.safetensors";
  EXPECT_THAT(error_with_index(index.dump()), HasSubstr(first.begin()->first));

  // The index decides: neither a stale copy in another shard nor a tensor that it does not list is looked at.
  FileTensors stale = tensors_;
  std::fill(stale.begin()->second.bytes.begin(), stale.begin()->second.bytes.end(), uint8_t{0});
  stale["not.listed"] = stale.begin()->second;
  write_all(folder_.path(), stale, "two.safetensors");
  index["weight_map"][first.begin()->first] = "one.safetensors";
  EXPECT_EQ(error_with_index(index.dump()), "");
  const World whole(world_.config);
  whole.import_from(source_);
  for (const ParamId& id : whole.params.ids()) EXPECT_EQ(world_.values(id), whole.values(id));
}

// A rank of the tensor axis reads its rows and columns: q, k, v, gate and up each cut by itself.
TEST(HfFolder, ARankReadsItsShard) {
  int models = 0;
  for (const auto& entry : fs::directory_iterator(kGoldens)) {
    SCOPED_TRACE(entry.path());
    const World whole(find_config((entry.path() / "model").string()));
    if (whole.config.heads.kv % 2 != 0) continue;
    ++models;
    whole.import_from(entry.path() / "model");
    for (int rank = 0; rank < 2; ++rank) {
      const World part(whole.config, MasterForm::Split, DType::F32, {2, rank});
      part.import_from(entry.path() / "model");
      for (const ParamId& id : part.params.ids()) {
        const ParamRow& row = part.spec[id.param];
        const std::vector<float> all = whole.values(id), own = part.values(id);
        const int64_t cols = row.one_dimensional() ? 1 : row.cols,
                      all_cols = row.one_dimensional() ? 1 : row.logical_cols;
        int64_t rows = 0;
        for (const RowPiece& piece : row.pieces) {
          rows += piece.count;
          for (int64_t r = 0; r < piece.count; ++r)
            for (int64_t c = 0; c < cols; ++c)
              ASSERT_EQ(own[static_cast<size_t>((piece.local_begin + r) * cols + c)],
                        all[static_cast<size_t>((piece.global_begin + r) * all_cols + row.first_col + c)])
                  << logical_name(part.spec, id) << " of rank " << rank;
        }
        EXPECT_EQ(static_cast<size_t>(rows * cols), own.size());
      }
    }
  }
  EXPECT_GE(models, 4);
}

}  // namespace
}  // namespace agoq::model
