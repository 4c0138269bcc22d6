// `agoq bench collective` as a launcher starts it: what it says of errors is what the formats promise, and its JSON is
// what bench/README.md says.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "cli/ranks.h"

namespace agoq {
namespace {

using nlohmann::json;
using test::operator+;
using test::Ran;
using test::Ranks;
using test::run_agoq;
using test::Words;
using testing::HasSubstr;

const Words kCollective = {"bench", "collective", "--device", "cpu", "--threads", "1", "--seconds", "0.01"};

// The JSON of a run of so many processes.
json measured(int world, const Words& more) {
  const ScratchFolder folder;
  const std::vector<Ran> all = Ranks(world, kCollective + more + Words{"--json", folder.file("out.json")}).wait();
  for (size_t rank = 0; rank < all.size(); ++rank) {
    EXPECT_EQ(all[rank].status, 0) << "rank " << rank << ": " << all[rank].err;
    EXPECT_EQ(all[rank].out.empty(), rank > 0) << "rank 0 alone speaks";
  }
  EXPECT_THAT(all[0].out, testing::Not(HasSubstr("nan")));
  return json::parse(read_plainly(folder.file("out.json")));
}

const json& entry(const json& all, const std::string& sum, const std::string& by, const std::string& wire) {
  for (const json& s : all["sums"])
    if (s["sum"] == sum && s["by"] == by && s["wire"] == wire) return s;
  throw std::runtime_error("no " + sum + " by " + by + " in " + wire);
}

TEST(BenchCollective, TellsTimesAndErrors) {
  for (const int world : {2, 4}) {
    const json all = measured(world, {"--sizes", "256KiB"});
    EXPECT_EQ(all["ranks"], world);
    EXPECT_EQ(all["link"], "sockets");
    EXPECT_EQ(all["nccl_sums"], false);
    const double others = (world - 1.0) / world;
    for (const json& s : all["sums"]) {
      EXPECT_EQ(s["bytes"], 256 << 10) << s;
      EXPECT_GE(s["ms"], s["least_ms"]) << s;
      EXPECT_GT(s["least_ms"], 0) << s;
      EXPECT_NEAR(s["algorithm_bytes_per_second"].get<double>() * s["ms"].get<double>(), 1e3 * (256 << 10), 1e-3) << s;
      // A block of 128 codes has a scale of two bytes.
      const double bytes = s["wire"] == "fp32" ? 4 : s["wire"] == "bf16" ? 2 : 1 + 2.0 / 128;
      const double way = s["sum"] == "all-reduce" ? 2 : 1;
      EXPECT_NEAR(s["bus_bytes_per_second"].get<double>() * s["ms"].get<double>(),
                  1e3 * (64 << 10) * bytes * others * way, 1)
          << s;
      EXPECT_EQ(s.contains("speedup_over_fp32"), s["wire"] != "fp32") << s;
    }
    // Stochastic rounding of a Gaussian block in int8, whatever the number of ranks; once more where the sum is
    // encoded.
    const double once = entry(all, "exchange", "AGoQ", "int8")["error"];
    EXPECT_NEAR(once, 0.0092, 0.0003) << world;
    for (const char* sum : {"reduce", "all-reduce"})
      EXPECT_NEAR(entry(all, sum, "AGoQ", "int8")["error"], once * std::sqrt(2.0), 0.0005) << world;
    EXPECT_LT(entry(all, "reduce", "AGoQ", "fp32")["error"], 1e-7 * world);
    // To the nearest, but at every hop.
    EXPECT_GT(entry(all, "reduce", "ring", "fp8")["error"], 3 * once) << world;
  }
}

TEST(BenchCollective, ALoneProcessOnlyEncodes) {
  const json all = measured(1, {"--sizes", "64KiB,100KiB"});
  std::set<int64_t> sizes;
  for (const json& s : all["sums"]) sizes.insert(s["bytes"].get<int64_t>());
  EXPECT_EQ(sizes, (std::set<int64_t>{64 << 10, 96 << 10})) << "whole rows of 16 KiB";
  EXPECT_EQ(entry(all, "reduce", "AGoQ", "int8")["bus_bytes_per_second"], 0);
}

TEST(BenchCollective, RefusesWhatItCannotMeasure) {
  const auto refused = [](const Words& words, const std::string& why) {
    const Ran ran = run_agoq(words);
    EXPECT_EQ(ran.status, 1);
    EXPECT_THAT(ran.err, HasSubstr(why));
  };
  refused(kCollective + Words{"--sizes", "3"}, "--sizes 3");
  refused(kCollective + Words{"--sizes", "many"}, "many");
  refused(kCollective + Words{"--num-layers", "2"}, "--num-layers");
  refused({"bench", "op", "--sizes", "1MiB"}, "--sizes");
  refused(kCollective + Words{"--gpu-transport", "pigeon"}, "pigeon");
}

}  // namespace
}  // namespace agoq
