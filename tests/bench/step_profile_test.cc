#include "bench/step_profile.h"

#include <gmock/gmock.h>

#include "base/text.h"

namespace agoq::bench {
namespace {

using testing::HasSubstr;
using testing::Not;

TEST(StepProfile, NamesOfKernelsAreShort) {
  // As g++ and nvcc mangle them: a template, one in an anonymous namespace of either, a plain function, cuBLAS's.
  for (const auto& [mangled, name] : {
           std::pair{"_ZN4agoq3ops4cuda8add_runsIfEEvPKT_", "agoq::ops::cuda::add_runs"},
           std::pair{"_ZN4agoq3ops4cuda12_GLOBAL__N_18add_runsIfEEvPKT_", "agoq::ops::cuda::add_runs"},
           std::pair{
               "_ZN4agoq3ops4cuda47_GLOBAL__N__c5ea83f7_14_weight_cuda_cu_1ed8b3439fill_rowsENS_4cuda7PdlArgsINS2_"
               "10NormalFillEEE",
               "agoq::ops::cuda::fill_rows"},
           std::pair{"_ZN3cub6detail10radix_sort10onesweep_kINS1_6policyIiEELb1EEEvPi",
                     "cub::detail::radix_sort::onesweep_k"},
           std::pair{"_Z6squarePfi", "square"},
           std::pair{"nvjet_hsh_128x256_64x4_2x1_v_bz_coopA_NTN", "nvjet_hsh_128x256_64x4_2x1_v_bz_coopA_NTN"},
           std::pair{"copy, device to device", "copy, device to device"},
       })
    EXPECT_EQ(short_kernel_name(mangled), name) << mangled;
}

// Two steps of 50 us. `square` runs on two types and twice in each step; the copy runs beside it for 2 us.
const std::vector<KernelRun> kRuns = {
    {"_Z6squareIfEvPT_", 1000, 11000},  {"_Z6squareIdEvPT_", 11000, 21000}, {"copy, host to device", 19000, 24000},
    {"_Z6squareIfEvPT_", 51000, 61000}, {"_Z6squareIdEvPT_", 61000, 71000}, {"copy, host to device", 69000, 74000},
    {"_Z4lastv", 80000, 81000},
};

TEST(StepProfile, OfKernelsAddsUpRunsOfOneName) {
  const StepProfile profile = profile_of(kRuns, 100e-6, 2);
  ASSERT_EQ(profile.entries.size(), 3u);
  EXPECT_EQ(profile.entries[0].name, "square");
  EXPECT_NEAR(profile.entries[0].seconds, 20e-6, 1e-12);
  EXPECT_NEAR(profile.entries[0].runs, 2, 1e-12);
  EXPECT_EQ(profile.entries[1].name, "copy, host to device");
  EXPECT_NEAR(profile.entries[1].seconds, 5e-6, 1e-12);
  EXPECT_EQ(profile.entries[2].name, "last");
  EXPECT_NEAR(profile.entries[2].seconds, 0.5e-6, 1e-12);
  EXPECT_NEAR(profile.entries[2].runs, 0.5, 1e-12);
  EXPECT_NEAR(profile.step_seconds, 50e-6, 1e-12);
  EXPECT_NEAR(profile.busy_seconds, 23.5e-6, 1e-12) << "what runs at once counts once";
  // 27 us before the second step's first `square`, 6 us before `last`; none before the trace.
  EXPECT_NEAR(profile.entries[0].idle_before, 13.5e-6, 1e-12);
  EXPECT_EQ(profile.entries[1].idle_before, 0);
  EXPECT_NEAR(profile.entries[2].idle_before, 3e-6, 1e-12);
}

TEST(StepProfile, OfNothingIsIdle) {
  const StepProfile profile = profile_of(std::span<const KernelRun>{}, 1, 1);
  EXPECT_TRUE(profile.entries.empty());
  EXPECT_EQ(profile.busy_seconds, 0);
  EXPECT_THAT(table_of(profile, 5), HasSubstr("100.0%"));
}

TEST(StepProfile, OfACpuIsByKindOfWork) {
  Profile work;
  work[Work::Gemm] = 6, work[Work::Codec] = 2;
  const StepProfile profile = profile_of(work, 10, 2);
  ASSERT_EQ(profile.entries.size(), static_cast<size_t>(Work::Count));
  EXPECT_EQ(profile.entries[0].name, "GEMM");
  EXPECT_EQ(profile.entries[0].seconds, 3);
  EXPECT_EQ(profile.entries[1].name, "codec");
  EXPECT_EQ(profile.busy_seconds, 4);
  EXPECT_EQ(profile.step_seconds, 5);
}

std::vector<std::string> lines_with(const std::string& text, const std::string& part) {
  std::vector<std::string> lines;
  for (const std::string& line : split(text, '\n'))
    if (line.find(part) != std::string::npos) lines.push_back(line);
  return lines;
}

TEST(StepProfile, TableListsTheLongestAndSumsTheOthers) {
  const StepProfile profile = profile_of(kRuns, 100e-6, 2);
  const std::string all = table_of(profile, 3), one = table_of(profile, 1);
  EXPECT_THAT(all, Not(HasSubstr("other")));
  ASSERT_EQ(lines_with(all, "square").size(), 1u) << all;
  EXPECT_THAT(lines_with(all, "square")[0], testing::ContainsRegex("0\\.020 +40\\.0% +2 +0\\.01[34]"));
  ASSERT_EQ(lines_with(one, "other (2)").size(), 1u) << one;
  EXPECT_THAT(lines_with(one, "other (2)")[0],
              testing::ContainsRegex("0\\.006 +11\\.0% +1\\.5|0\\.005 +11\\.0% +1\\.5"));
  EXPECT_THAT(one, Not(HasSubstr("copy")));
  EXPECT_THAT(lines_with(one, "none of them")[0], HasSubstr("53.0%"));
}

TEST(StepProfile, TableCutsLongNames) {
  const std::string name(200, 'x');
  const std::string table = table_of(profile_of(std::vector<KernelRun>{{name, 0, 10}}, 1e-8, 1), 5);
  EXPECT_THAT(table, HasSubstr(std::string(61, 'x') + "..."));
  EXPECT_THAT(table, Not(HasSubstr(std::string(62, 'x'))));
}

}  // namespace
}  // namespace agoq::bench
