// A run from its first step to the exported model, by the commands that a user types.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "cli/program.h"
#include "train/checkpoint/checkpoint.h"
#include "train/config/settings.h"
#include "train/data_files.h"

namespace agoq {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using test::losses_of;
using test::Ran;
using test::run_agoq;
using test::TinyRun;
using testing::HasSubstr;

constexpr const char* kTokenizer =
    R"({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"}})";

TEST(Run, TrainsAndTellsWhatItHolds) {
  const TinyRun tiny;
  const Ran ran = tiny.train(
      12, "run", {"--eval-interval", "6", "--log-interval", "4", "--sample-tokens", "8", "--sample-prompt", "the c"});
  ASSERT_EQ(ran.status, 0) << ran.err;
  EXPECT_EQ(ran.err, "");
  for (const char* what :
       {"device  cpu, 2 threads", "saved gate_up", "main gradients", " 4/12 | ", "12/12 | ", "step 6: held-out loss",
        "step 12: held-out loss", "sample of what the model writes", "the c", "bytes per parameter", "total"})
    EXPECT_THAT(ran.out, HasSubstr(what));
  const size_t table = ran.out.find("saved gate_up");
  EXPECT_LT(table, ran.out.find(" 4/12 | ")) << "the table of memory stands before the first step, once";
  EXPECT_EQ(ran.out.find("saved gate_up", table + 1), std::string::npos);
  EXPECT_THAT(ran.out, testing::Not(HasSubstr("\r"))) << "no terminal, no redrawn lines";
  for (const char* name : {"config.toml", "recipe.json", "metrics.jsonl", "memory.json", "summary.json", "checkpoints"})
    EXPECT_TRUE(fs::exists(tiny.file("run") + "/" + name)) << name;

  const auto losses = losses_of(tiny.file("run"));
  ASSERT_EQ(losses.size(), 12u);
  EXPECT_LT(losses.at(12), losses.at(1) - 0.5) << "it learns";
  const json memory = json::parse(read_plainly(tiny.file("run") + "/memory.json"));
  EXPECT_EQ(memory["predicted"], memory["allocated"]);

  // The written config is complete and repeats the run.
  train::TrainConfig config;
  train::read_toml_file(config, tiny.file("run") + "/config.toml");
  EXPECT_EQ(config.seq_length, 32);
  ASSERT_EQ(run_agoq({"train", "--config", tiny.file("run") + "/config.toml", "--save", tiny.file("again")}).status, 0);
  EXPECT_EQ(losses_of(tiny.file("again")), losses);
}

TEST(Run, TellsAtItsStartThatLayersMultiplyIn8BitFloats) {
  const TinyRun tiny;
  EXPECT_THAT(tiny.train(1, "plain").out, testing::Not(HasSubstr("8-bit floats")));
  const Ran ran =
      tiny.train(1, "run", {"--fp8-format", "e4m3", "--first-last-layers-bf16", "--num-layers-at-end-in-bf16", "0"});
  ASSERT_EQ(ran.status, 0) << ran.err;
  EXPECT_THAT(ran.out, HasSubstr("\nlayers  products in 8-bit floats (e4m3, rowwise); those of layer 0 in fp32\n"));
}

TEST(Run, CountsWhat8BitFloatsDoNotHoldOncePerTenSteps) {
  const TinyRun tiny;
  const std::vector<std::string> fp8 = {"--fp8-format", "hybrid"};
  ASSERT_EQ(tiny.train(23, "all", fp8).status, 0);
  ASSERT_EQ(tiny.train(23, "some", {"--fp8-format", "hybrid", "--log-interval", "4"}).status, 0);
  ASSERT_EQ(tiny.train(1, "plain").status, 0);
  EXPECT_EQ(losses_of(tiny.file("all")), losses_of(tiny.file("some"))) << "counting changes nothing";
  const auto counted = [&](const std::string& run) {
    std::vector<int64_t> steps;
    std::ifstream file(tiny.file(run) + "/metrics.jsonl");
    for (std::string line; std::getline(file, line);) {
      const json fields = json::parse(line);
      if (!fields.contains("fp8_flushed")) continue;
      steps.push_back(fields["step"].get<int64_t>());
      for (const char* role : {"x", "w", "dy", "dw_dy", "dw_x"}) {
        EXPECT_EQ(fields["fp8_saturated"].at(role), 0) << "every scale is found from its numbers";
        EXPECT_GE(fields["fp8_flushed"].at(role), 0);
        EXPECT_LT(fields["fp8_flushed"].at(role), 0.05) << role;
      }
    }
    return steps;
  };
  EXPECT_EQ(counted("all"), (std::vector<int64_t>{10, 20, 23}));
  EXPECT_EQ(counted("some"), (std::vector<int64_t>{12, 20, 23}));
  EXPECT_EQ(counted("plain"), std::vector<int64_t>{});
}

// Codes that serve all micro-batches of a step are those that each would make. A run may change its mind.
TEST(Run, WeightsCachedIn8BitFloatsGiveTheSameBits) {
  const TinyRun tiny;
  for (const char* name : {"rowwise", "tensorwise", "blockwise"}) {
    const std::string recipe = name;
    const auto losses = [&](const char* run, int steps, const char* cache) {
      const Ran ran = tiny.train(steps, recipe + run,
                                 {"--fp8-format", "e4m3", "--fp8-recipe", recipe, "--fp8-weight-cache", cache,
                                  "--micro-batch-size", "1", "--global-batch-size", "3"});
      EXPECT_EQ(ran.status, 0) << ran.err;
      return losses_of(tiny.file(recipe + run));
    };
    const auto cast = losses("cast", 4, "off");
    EXPECT_EQ(losses("cached", 4, "on"), cast) << recipe;
    losses("both", 2, "on");
    EXPECT_EQ(losses("both", 4, "off"), cast) << recipe;
  }
}

TEST(Run, ContinuesBitForBit) {
  const TinyRun tiny;
  ASSERT_EQ(tiny.train(8, "whole").status, 0);
  ASSERT_EQ(tiny.train(5, "parts").status, 0);
  const Ran rest = tiny.train(8, "parts");
  ASSERT_EQ(rest.status, 0) << rest.err;
  EXPECT_THAT(rest.out, HasSubstr("at step 5"));
  EXPECT_EQ(losses_of(tiny.file("parts")), losses_of(tiny.file("whole")));
  EXPECT_THAT(rest.out, HasSubstr("changed since: train-iters 5 -> 8\n"));
  EXPECT_THAT(tiny.train(8, "parts").out, testing::Not(HasSubstr("changed since")));
  EXPECT_THAT(tiny.train(8, "parts").out, HasSubstr("nothing to do: all 8 steps are done"));

  const Ran changed = tiny.train(8, "parts", {"--seed", "7"});
  EXPECT_EQ(changed.status, 1);
  EXPECT_THAT(changed.err, HasSubstr("seed: saved 1234, now 7"));
}

// The stored master is exact, so a run may change its compute type; then both forms of master go the same way.
TEST(Run, ContinuesInAnotherComputeType) {
  const TinyRun tiny;
  for (const auto& [first, then] : {std::pair("fp32", "bf16"), std::pair("bf16", "fp32")}) {
    std::vector<std::map<int64_t, double>> losses;
    for (const char* form : {"split", "fp32"}) {
      const std::string run = std::string(first) + "-" + form;
      const std::vector<std::string> master = {"--main-params-dtype", form};
      ASSERT_EQ(tiny.train(4, run, {"--compute-dtype", first, master[0], master[1]}).status, 0);
      const Ran rest = tiny.train(8, run, {"--compute-dtype", then, master[0], master[1]});
      ASSERT_EQ(rest.status, 0) << rest.err;
      EXPECT_THAT(rest.out, HasSubstr("at step 4"));
      losses.push_back(losses_of(tiny.file(run)));

      const std::string exported = tiny.file(run + "-exported");
      ASSERT_EQ(run_agoq({"export", tiny.file(run), exported, "--dtype", "fp32"}).status, 0);
      for (const char* compute : {"fp32", "bf16"}) {
        const auto evaluated = [&](const std::string& source) {
          return run_agoq({"eval", source, "--data-path", tiny.text_path(), "--seq-length", "32", "--compute-dtype",
                           compute, "--json"})
              .out;
        };
        EXPECT_EQ(evaluated(tiny.file(run)), evaluated(exported)) << run << " in " << compute;
      }
    }
    EXPECT_EQ(losses[0], losses[1]);
  }
}

TEST(Run, KilledRunContinuesBitForBit) {
  const TinyRun tiny;
  const std::vector<std::string> saving = {"--save-interval", "10", "--log-interval", "1000"};
  ASSERT_EQ(tiny.train(120, "whole", saving).status, 0);
  std::vector<std::string> arguments = tiny.train_arguments(120, "killed");
  arguments.insert(arguments.end(), saving.begin(), saving.end());
  test::run_and_signal(arguments, "KILL", tiny.file("killed") + "/metrics.jsonl", 15);
  const Ran rest = run_agoq(arguments);
  ASSERT_EQ(rest.status, 0) << rest.err;
  EXPECT_EQ(losses_of(tiny.file("killed")), losses_of(tiny.file("whole")));
}

TEST(Run, SignalSavesAndExitsWithZero) {
  std::vector<std::string> signals = {"TERM", "INT"};
  if (std::signal(SIGHUP, SIG_DFL) != SIG_IGN) signals.emplace_back("HUP");  // under nohup it stays ignored
  for (const std::string& signal : signals) {
    const TinyRun tiny;
    const std::vector<std::string> arguments = tiny.train_arguments(1000000, "run");
    const Ran ran = test::run_and_signal(arguments, signal, tiny.file("run") + "/metrics.jsonl", 3);
    EXPECT_EQ(ran.status, 0) << ran.err;
    EXPECT_THAT(ran.out, testing::ContainsRegex("stopped by a signal at step [1-9][0-9]*; the same command"));
    EXPECT_TRUE(fs::exists(tiny.file("run") + "/checkpoints/latest"));
  }
}

// As `agoq train | tee log`: at Ctrl-C the reader goes first.
TEST(Run, IsSavedWhenTheReaderOfItsOutputGoes) {
  const TinyRun tiny;
  const std::string pipe = tiny.file("pipe");
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  std::vector<std::string> arguments = tiny.train_arguments(40, "run");
  const Ran ran = run_agoq(arguments, {.before = "head -n 3 " + test::quoted(pipe) + " >/dev/null & ", .output = pipe});
  EXPECT_EQ(ran.status, 0) << ran.err;
  EXPECT_EQ(losses_of(tiny.file("run")).size(), 40u);
  EXPECT_TRUE(fs::exists(tiny.file("run") + "/checkpoints/step-00000040/manifest.json"));
}

class TrainedRun : public testing::Test {
 public:
  static void SetUpTestSuite() {
    tiny_ = new TinyRun;
    ASSERT_EQ(tiny_->train(12, "run").status, 0);
  }
  static void TearDownTestSuite() { delete tiny_; }

 protected:
  static std::string run() { return tiny_->file("run"); }
  static double loss_of(const std::string& source) {
    const Ran ran = run_agoq({"eval", source, "--data-path", tiny_->text_path(), "--seq-length", "32", "--json"});
    EXPECT_EQ(ran.status, 0) << ran.err;
    return json::parse(ran.out)["loss"];
  }
  static inline TinyRun* tiny_ = nullptr;
};

TEST_F(TrainedRun, EvaluatesExportsAndEvaluatesTheSame) {
  const std::string exported = tiny_->file("exported");
  const Ran ran = run_agoq({"export", run(), exported, "--dtype", "fp32"});
  ASSERT_EQ(ran.status, 0) << ran.err;
  EXPECT_TRUE(fs::exists(exported + "/config.json"));
  EXPECT_THAT(run_agoq({"export", run(), tiny_->text_path() + "/below"}).err,
              HasSubstr("cannot export to " + tiny_->text_path() + "/below: Not a directory"));
  EXPECT_THAT(run_agoq({"export", exported, exported + "/"}).err, HasSubstr("name another folder"));
  EXPECT_DOUBLE_EQ(loss_of(exported), loss_of(run()));
  EXPECT_LT(loss_of(run()), 5.0) << "untrained: ln 257 = 5.55";
  const Ran text = run_agoq({"eval", run(), "--data-path", tiny_->text_path(), "--max-samples", "3"});
  EXPECT_THAT(text.out, testing::MatchesRegex(
                            "loss [0-9.]+ nats a token, perplexity [0-9.]+, [0-9.]+ bits a byte, over 96 tokens\n"));
}

TEST_F(TrainedRun, GeneratesFromRunAndExportAlike) {
  const std::string exported = tiny_->file("exported-for-text");
  ASSERT_EQ(run_agoq({"export", run(), exported, "--dtype", "fp32"}).status, 0);
  const auto generate = [](const std::string& source) {
    return run_agoq({"generate", source, "--prompt", "the cat", "--max-new-tokens", "12", "--temperature", "0"});
  };
  const Ran ran = generate(run());
  ASSERT_EQ(ran.status, 0) << ran.err;
  EXPECT_THAT(ran.out, testing::StartsWith("the cat"));
  EXPECT_GT(ran.out.size(), std::string("the cat\n").size());
  EXPECT_EQ(generate(exported).out, ran.out);
}

TEST_F(TrainedRun, TextOfAnotherTokenizerIsRefused) {
  const std::string prefix = tiny_->file("words");
  write_plainly(prefix + ".idx", "");
  write_plainly(prefix + ".bin", "");
  write_plainly(prefix + ".json", R"({"tokenizer": "/some/words", "vocab_size": 200, "eod_id": 3})");
  const Ran ran = run_agoq({"eval", run(), "--data-path", prefix});
  EXPECT_EQ(ran.status, 1);
  EXPECT_THAT(ran.err, HasSubstr("words holds tokens of /some/words, and the model knows bytes"));
  const std::string bare = tiny_->file("bare");
  fs::create_directory(bare);
  fs::copy(tiny_->model_path(), bare + "/config.json");
  EXPECT_THAT(run_agoq({"generate", bare}).err, HasSubstr("nothing says which tokenizer"));
}

TEST_F(TrainedRun, InspectSaysWhatIsThere) {
  const Ran ran = run_agoq({"inspect", run(), "--verify"});
  ASSERT_EQ(ran.status, 0) << ran.err;
  for (const char* what : {"step 12", "weights/layers.0.qkv", "checksums of all", "query / key-value heads"})
    EXPECT_THAT(ran.out, HasSubstr(what));
  EXPECT_THAT(run_agoq({"inspect", tiny_->text_path(), "--verify"}).out, HasSubstr("text, "));
  EXPECT_THAT(run_agoq({"inspect", tiny_->model_path()}).out, HasSubstr("vocabulary"));
}

// Changes one bit in the middle of a checkpoint's first file.
std::string damage(const fs::path& checkpoint) {
  const std::string shard = (checkpoint / "shard-00000.safetensors").string();
  std::string bytes = read_plainly(shard);
  bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 1);
  write_plainly(shard, bytes);
  return shard;
}

TEST_F(TrainedRun, DamagedCheckpointIsFoundAndNamed) {
  const std::string copy = tiny_->file("damaged");
  fs::copy(run(), copy, fs::copy_options::recursive);
  const fs::path checkpoint = fs::path(copy) / "checkpoints/step-00000012";
  const std::string shard = damage(checkpoint);
  for (const std::vector<std::string>& arguments : {std::vector<std::string>{"inspect", copy, "--verify"},
                                                    {"eval", copy, "--data-path", tiny_->text_path()},
                                                    {"generate", copy},
                                                    {"export", checkpoint.string(), tiny_->file("never")}}) {
    const Ran ran = run_agoq(arguments);
    EXPECT_EQ(ran.status, 1) << arguments[0];
    EXPECT_THAT(ran.err, HasSubstr(shard));
  }
  fs::resize_file(shard, fs::file_size(shard) / 2);
  EXPECT_EQ(run_agoq({"inspect", copy}).status, 1);
}

// A run by relative paths, looked at from elsewhere, and once more after its project was moved.
TEST(Run, KnowsItsModelFolderFromEverywhere) {
  const TinyRun tiny;
  ASSERT_EQ(tiny.train(1, "seed").status, 0);
  fs::create_directories(tiny.file("project/sub"));
  const std::string model = tiny.file("project/model");
  ASSERT_EQ(run_agoq({"export", tiny.file("seed"), model, "--dtype", "fp32"}).status, 0);
  write_plainly(model + "/chat_template.jinja", "of the model");
  write_plainly(model + "/tokenizer.json", kTokenizer);
  fs::remove(model + "/tokenizer_config.json");
  nlohmann::json config = json::parse(read_plainly(model + "/config.json"));
  config.erase("agoq_tokenizer");
  write_plainly(model + "/config.json", config.dump());
  train::write_megatron(tiny.file("tokens"), {std::vector<int64_t>(400, 1)});
  const std::string there = "cd " + test::quoted(tiny.file("project/sub")) + "; ";
  const std::vector<std::string> train = {"train",        "--model", "../model", "--data-path", tiny.file("tokens"),
                                          "--seq-length", "32",      "--save",   "../runs/one", "--train-iters"};
  const auto train_to = [&](const char* steps) {
    std::vector<std::string> arguments = train;
    arguments.emplace_back(steps);
    return run_agoq(arguments, {.before = there});
  };
  const Ran ran = train_to("1");
  ASSERT_EQ(ran.status, 0) << ran.err;
  int exports = 0;
  const auto expect_alone = [&](const std::string& run) {
    const std::string to = tiny.file("exported-" + std::to_string(++exports));
    const Ran exported = run_agoq({"export", run, to}, {.before = "cd /; "});
    EXPECT_EQ(exported.status, 0) << exported.err;
    EXPECT_EQ(exported.err, "");
    EXPECT_THAT(exported.out, HasSubstr("beside the weights: tokenizer.json, chat_template.jinja\n"));
    EXPECT_EQ(read_plainly(to + "/chat_template.jinja"), "of the model");
    EXPECT_EQ(read_plainly(to + "/tokenizer.json"), kTokenizer);
    const Ran inspected = run_agoq({"inspect", run});
    EXPECT_THAT(inspected.out, HasSubstr("/runs/one/tokenizer")) << "an absolute path";
  };
  const std::string one = tiny.file("project/runs/one");
  EXPECT_EQ(read_plainly(one + "/tokenizer/tokenizer.json"), kTokenizer);
  expect_alone(one);
  // The model folder is gone: the run goes on, and is moved.
  fs::rename(model, tiny.file("away"));
  const Ran rest = train_to("2");
  EXPECT_EQ(rest.status, 0) << rest.err;
  EXPECT_THAT(rest.out, testing::AllOf(HasSubstr("project/model is gone; the run goes on without it"),
                                       HasSubstr("changed since: train-iters 1 -> 2\n")));
  expect_alone(one);
  fs::rename(tiny.file("project"), tiny.file("moved"));
  expect_alone(tiny.file("moved/runs/one"));
  // A copy does not look at what it was copied from.
  fs::copy(tiny.file("moved"), tiny.file("project"), fs::copy_options::recursive);
  write_plainly(one + "/tokenizer/chat_template.jinja", "of another");
  expect_alone(tiny.file("moved/runs/one"));
}

// Whoever writes a checkpoint may name any folder as its model's.
TEST(Run, AnExportTakesNothingButWhatBelongsToAModel) {
  const TinyRun tiny;
  ASSERT_EQ(tiny.train(1, "run").status, 0);
  const fs::path secrets = tiny.file("secrets");
  fs::create_directory(secrets);
  for (const char* name : {"passwd", "shadow", "notes.txt", "id_rsa", "credentials.json"})
    write_plainly(secrets / name, "secret");
  write_plainly(tiny.file("outside"), "secret");
  for (const char* name : {"tokenizer.json", "LICENSE", "chat_template.jinja"})
    fs::create_symlink(tiny.file("outside"), secrets / name);
  write_plainly(secrets / "NOTICE", "of the model");

  const std::string checkpoint = tiny.file("run") + "/checkpoints/step-00000001";
  train::Manifest manifest = train::read_checkpoint_manifest(checkpoint);
  json metadata = json::parse(manifest.metadata);
  for (const std::string& tokenizer : {secrets.string(), (secrets / "passwd").string(), std::string()}) {
    metadata["model_folder"] = secrets;
    metadata["settings"]["tokenizer"] = tokenizer;
    manifest.metadata = metadata.dump();
    write_plainly(checkpoint + "/manifest.json", train::manifest_text(manifest));
    const std::string to = tiny.file("exported");
    const Ran ran = run_agoq({"export", tiny.file("run"), to});
    ASSERT_EQ(ran.status, 0) << ran.err;
    EXPECT_THAT(ran.out, HasSubstr("beside the weights: NOTICE\n"));
    std::set<std::string> found;
    for (const auto& entry : fs::recursive_directory_iterator(to)) found.insert(entry.path().filename().string());
    EXPECT_EQ(found, (std::set<std::string>{"config.json", "model.safetensors", "NOTICE"})) << tokenizer;
  }
}

TEST(Run, ASampleThatFailsEndsNothing) {
  const TinyRun tiny;
  train::write_megatron(tiny.file("tokens"), {std::vector<int64_t>(4000, 1)});
  fs::create_directory(tiny.file("words"));
  std::string tokenizer = kTokenizer;
  tokenizer.replace(tokenizer.find("Whitespace"), 10, "NoSuchThing");
  write_plainly(tiny.file("words") + "/tokenizer.json", tokenizer);
  std::vector<std::string> arguments = tiny.train_arguments(2, "run");
  arguments[6] = tiny.file("tokens");
  for (const std::string more : {"--sample-tokens", "4", "--tokenizer"}) arguments.push_back(more);
  arguments.push_back(tiny.file("words"));
  const Ran ran = run_agoq(arguments);
  EXPECT_EQ(ran.status, 0);
  EXPECT_THAT(ran.err, HasSubstr("no sample of what the model writes"));
  EXPECT_TRUE(fs::exists(tiny.file("run") + "/summary.json"));
}

TEST(Run, TextThatCannotBeRecordedIsRefusedAtOnce) {
  const TinyRun tiny;
  for (const std::string save : {"caf\xe9", "a\nb"}) {
    const Ran ran = tiny.train(1, save);
    EXPECT_EQ(ran.status, 1);
    EXPECT_EQ(ran.out, "");
    EXPECT_THAT(ran.err, testing::ContainsRegex("--save '.*(not UTF-8|control byte 0x0a)"));
    EXPECT_FALSE(fs::exists(tiny.file(save)));
  }
  EXPECT_THAT(run_agoq({"generate", tiny.file("none"), "--prompt", "\xff"}).err,
              HasSubstr("the prompt is not UTF-8: '\\xff'"));
}

TEST(Run, ABaselineBesideAFlagThatContradictsItIsRefused) {
  const TinyRun tiny;
  const Ran ran = tiny.train(1, "run", {"--baseline", "fp32", "--main-grads-dtype", "int8"});
  EXPECT_EQ(ran.status, 1);
  EXPECT_THAT(ran.err, HasSubstr("--baseline fp32 sets --main-grads-dtype to fp32, and --main-grads-dtype int8 is "
                                 "given: leave one of them out"));
  write_plainly(tiny.file("f.toml"), "main-grads-dtype = \"int8\"\nactivation-policy = \"agoq\"\n");
  EXPECT_EQ(tiny.train(1, "run", {"--config", tiny.file("f.toml"), "--baseline", "fp32"}).status, 0);
  EXPECT_THAT(read_plainly(tiny.file("run") + "/config.toml"), HasSubstr("main-grads-dtype = \"fp32\""));
}

TEST(Run, EndsWithStatusZeroWhenItsTimeIsUp) {
  const TinyRun tiny;
  const Ran ran = tiny.train(1000000, "run", {"--exit-duration-in-mins", "0.005"});
  EXPECT_EQ(ran.status, 0) << ran.err;
  EXPECT_THAT(ran.out, testing::ContainsRegex(
                           "stopped at the end of --exit-duration-in-mins, at step [1-9][0-9]*; the same command"));
}

// That tokens are bytes is recorded, not guessed from the size of the vocabulary.
TEST(Run, AByteModelMayHaveAnyVocabulary) {
  const TinyRun tiny;
  std::string model = read_plainly(tiny.model_path());
  model.replace(model.find("257"), 3, "264");
  write_plainly(tiny.model_path(), model);
  const Ran ran = tiny.train(2, "run", {"--sample-tokens", "4", "--sample-prompt", "the c"});
  ASSERT_EQ(ran.status, 0) << ran.err;
  EXPECT_THAT(ran.out, HasSubstr("sample of what the model writes now:\n\nthe c"));
  EXPECT_THAT(read_plainly(tiny.file("run") + "/config.toml"), HasSubstr("tokenizer = \"byte\"\n"));
  EXPECT_EQ(run_agoq({"generate", tiny.file("run"), "--prompt", "the", "--max-new-tokens", "3"}).status, 0);
  EXPECT_THAT(run_agoq({"eval", tiny.file("run"), "--data-path", tiny.text_path()}).out, HasSubstr("bits a byte"));
}

TEST(Run, ATokenizerLargerThanTheModelIsRefusedBeforeTheFirstStep) {
  const TinyRun tiny;
  write_plainly(tiny.file("words.idx"), "");
  write_plainly(tiny.file("words.bin"), "");
  write_plainly(tiny.file("words.json"), R"({"tokenizer": "/some/words", "vocab_size": 32000, "eod_id": 3})");
  const Ran ran = run_agoq({"train", "--model-config", tiny.model_path(), "--data-path", tiny.file("words")});
  EXPECT_EQ(ran.status, 1);
  EXPECT_EQ(ran.out, "");
  EXPECT_THAT(ran.err,
              HasSubstr("words holds tokens of /some/words, a vocabulary of 32000, and the model has one of 257"));
}

TEST(Run, DamagedLastCheckpointIsPassedOverAndTheRunEndsTheSame) {
  const TinyRun tiny;
  ASSERT_EQ(tiny.train(8, "whole").status, 0);
  ASSERT_EQ(tiny.train(6, "run", {"--save-interval", "3"}).status, 0);
  const fs::path last = fs::path(tiny.file("run")) / "checkpoints/step-00000006";
  damage(last);
  const Ran evaluated = run_agoq({"eval", tiny.file("run"), "--data-path", tiny.text_path()});
  EXPECT_EQ(evaluated.status, 0);
  EXPECT_THAT(evaluated.err, testing::AllOf(HasSubstr("PASSING OVER"), HasSubstr(last.string())));
  EXPECT_EQ(run_agoq({"eval", last.string(), "--data-path", tiny.text_path()}).status, 1) << "it was asked for by name";

  const Ran rest = tiny.train(8, "run");
  ASSERT_EQ(rest.status, 0) << rest.err;
  EXPECT_THAT(rest.err, testing::AllOf(HasSubstr("PASSING OVER"), HasSubstr(last.string())));
  EXPECT_THAT(rest.out, testing::ContainsRegex("resumed from .*step-00000003 at step 3"));
  EXPECT_EQ(losses_of(tiny.file("run")), losses_of(tiny.file("whole")));
}

TEST(Run, UnwritableFolderFailsBeforeTheFirstStep) {
  const TinyRun tiny;
  write_plainly(tiny.file("occupied"), "a file, not a folder");
  const Ran ran = tiny.train(5, "occupied");
  EXPECT_EQ(ran.status, 1);
  EXPECT_THAT(ran.err, HasSubstr("occupied"));
  EXPECT_THAT(ran.out, testing::Not(HasSubstr("1/5")));
  if (geteuid() == 0) return;  // root may write everywhere
  fs::create_directory(tiny.file("closed"));
  fs::permissions(tiny.file("closed"), fs::perms::owner_read | fs::perms::owner_exec);
  EXPECT_EQ(tiny.train(5, "closed").status, 1);
}

}  // namespace
}  // namespace agoq
