// `agoq bench` at tiny sizes: that it runs, and that its JSON is what bench/README.md says.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>

#include "cli/program.h"

namespace agoq {
namespace {

using nlohmann::json;
using test::Ran;
using test::run_agoq;
using test::TinyRun;
using testing::HasSubstr;

json bench(const std::string& what, const std::vector<std::string>& more = {}) {
  const TinyRun run;
  std::vector<std::string> arguments = {"bench",        what,  "--model-config", run.model_path(),
                                        "--seq-length", "32",  "--seconds",      "0.01",
                                        "--device",     "cpu", "--json",         run.file("out.json")};
  arguments.insert(arguments.end(), more.begin(), more.end());
  const Ran ran = run_agoq(arguments);
  EXPECT_EQ(ran.status, 0) << ran.err;
  EXPECT_THAT(ran.out, testing::Not(HasSubstr("nan")));
  const json j = json::parse(read_plainly(run.file("out.json")));
  EXPECT_EQ(j["what"], what);
  EXPECT_EQ(j["device"], "cpu");
  EXPECT_EQ(j["hidden_size"], 64);
  EXPECT_EQ(j["seq_length"], 32);
  return j;
}

std::set<std::string> parts_of(const json& ops) {
  std::set<std::string> parts;
  for (const json& op : ops) {
    parts.insert(op["part"]);
    EXPECT_GT(op["ms"], 0) << op;
    EXPECT_GT(op["floor_ms"], 0) << op;
    EXPECT_GT(op["bytes"].get<double>() + op["flops"].get<double>(), 0) << op;
    EXPECT_NEAR(op["share"], op["floor_ms"].get<double>() / op["ms"].get<double>(), 1e-9) << op;
  }
  return parts;
}

TEST(BenchCommand, MeasuresCodecs) {
  const json j = bench("codec");
  EXPECT_GT(j["ceilings"]["copy_bytes_per_second"], 0);
  EXPECT_FALSE(j["ceilings"].contains("flops_per_second"));
  std::set<std::string> names;
  for (const json& op : j["ops"]) names.insert(op["name"]);
  for (const char* codec : {"fp8", "int8", "fp6", "fp5", "fp4", "nf4", "int4", "dyn8", "dyn8_unsigned"})
    for (const std::string& name : {std::string("encode ") + codec, std::string("encode ") + codec + ", stochastic",
                                    std::string("decode ") + codec})
      EXPECT_TRUE(names.contains(name)) << name;
}

TEST(BenchCommand, MeasuresOps) {
  const json j = bench("op");
  EXPECT_GT(j["ceilings"]["flops_per_second"], 0);
  EXPECT_EQ(parts_of(j["ops"]), (std::set<std::string>{"alone", "backward", "ends", "forward", "optimizer"}));
}

const std::vector<std::string> fp8_format = {"--fp8-format", "e4m3"};

TEST(BenchCommand, MeasuresOpsOf8BitFloats) {
  const json j = bench("op", fp8_format);
  EXPECT_EQ(j["products"], "products in 8-bit floats (e4m3, rowwise)");
  std::set<std::string> names;
  for (const json& op : j["ops"]) names.insert(op["name"]);
  for (const char* name : {"to_fp8 w qkv", "to_fp8_transposed w down", "to_fp8_transposed dy gate_up", "to_fp8 dx"})
    EXPECT_TRUE(names.contains(name)) << name;
}

TEST(BenchCommand, ShowsTheCeilingOfTheProductsThatRun) {
  const TinyRun run;
  std::vector<std::string> arguments = {"bench", "step",      "--model-config", run.model_path(), "--seq-length",
                                        "32",    "--seconds", "0.01",           "--device",       "cpu"};
  EXPECT_THAT(run_agoq(arguments).out, HasSubstr("ceiling, measured now: matrix products and attention of a layer "));
  arguments.insert(arguments.end(), fp8_format.begin(), fp8_format.end());
  const Ran ran = run_agoq(arguments);
  EXPECT_EQ(ran.status, 0) << ran.err;
  EXPECT_THAT(ran.out, HasSubstr("ceiling, measured now: products in 8-bit floats and attention of a layer "));
}

TEST(BenchCommand, MeasuresALayer) {
  const json j = bench("layer", {"--activation-policy", "paper"});
  EXPECT_EQ(parts_of(j["ops"]), (std::set<std::string>{"alone", "backward", "forward", "optimizer"}));
  for (const char* part : {"forward", "backward", "optimizer"}) {
    double ops_ms = 0;
    for (const json& op : j["ops"]) ops_ms += op["part"] == part ? op["ms"].get<double>() : 0;
    EXPECT_GT(j["layer"][part]["ms"], 0);
    EXPECT_GT(j["layer"][part]["floor_ms"], 0);
    EXPECT_NEAR(j["layer"][part]["ops_ms"], ops_ms, 1e-6 * ops_ms);
  }
}

TEST(BenchCommand, MeasuresStepsAndWhatOneMoreLayerCosts) {
  const json j = bench("step", {"--num-layers", "1,3", "--global-batch-size", "2"});
  ASSERT_EQ(j["steps"].size(), 2u);
  for (const json& t : j["steps"]) {
    EXPECT_NEAR(t["loss"], std::log(257.0), 0.3) << "random tokens";
    EXPECT_GT(t["tokens_per_second"], 0);
    EXPECT_GE(t["steps"], 3);
  }
  EXPECT_EQ(j["steps"][0]["layers"], 1);
  EXPECT_EQ(j["steps"][1]["layers"], 3);
  const double more = j["steps"][1]["planned_bytes"].get<double>() - j["steps"][0]["planned_bytes"].get<double>();
  EXPECT_EQ(j["one_more_layer"]["planned_bytes"], more / 2);
  EXPECT_TRUE(j["one_more_layer"].contains("ms"));
}

TEST(BenchCommand, ProfilesAStepByKindOfWork) {
  const json j = bench("step", {"--profile"});
  const json& profile = j["steps"][0]["profile"];
  std::set<std::string> names;
  double ms = 0;
  for (const json& entry : profile["entries"]) {
    names.insert(entry["name"]);
    ms += entry["ms"].get<double>();
    EXPECT_NEAR(entry["share"], entry["ms"].get<double>() / profile["step_ms"].get<double>(), 1e-9);
  }
  EXPECT_EQ(names, (std::set<std::string>{"GEMM", "attention", "codec", "elementwise", "optimizer"}));
  EXPECT_NEAR(profile["busy_ms"], ms, 1e-9 * ms);
  EXPECT_GT(ms, 0);
  EXPECT_LE(ms, profile["step_ms"]) << "no work counts twice";
}

TEST(BenchCommand, ProfilesOnlyWhenAsked) {
  EXPECT_FALSE(bench("step")["steps"][0].contains("profile"));
}

TEST(BenchCommand, RefusesWhatItCannotMeasure) {
  const TinyRun run;
  const Ran profile = run_agoq({"bench", "op", "--model-config", run.model_path(), "--profile"});
  EXPECT_EQ(profile.status, 1);
  EXPECT_THAT(profile.err, HasSubstr("--profile"));
  const Ran what = run_agoq({"bench", "everything", "--model-config", run.model_path()});
  EXPECT_EQ(what.status, 2);
  EXPECT_THAT(what.err, HasSubstr("everything"));
  const Ran layers = run_agoq({"bench", "step", "--model-config", run.model_path(), "--num-layers", "3,1"});
  EXPECT_EQ(layers.status, 1);
  EXPECT_THAT(layers.err, HasSubstr("--num-layers"));
}

}  // namespace
}  // namespace agoq
