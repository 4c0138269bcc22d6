// OpenBLAS runs kernels that use this CPU's vectors, whichever it would choose by itself.
#include "cli/blas_core.h"

#include <gmock/gmock.h>

#include "cli/program.h"

namespace agoq::cli {
namespace {

using test::Ran;
using test::run_agoq;
using testing::HasSubstr;
using testing::Not;

TEST(BlasCore, IsReplacedWhereItUsesLessThanTheCpuHas) {
  struct Case {
    Vectors cpu;
    const char* core;
    const char* faster;
  };
  for (const auto& [cpu, core, faster] : {
           Case{Vectors::Avx512, "Prescott", "SkylakeX"},  // what unknown Intel CPUs get
           Case{Vectors::Avx512, "Nehalem", "SkylakeX"},
           Case{Vectors::Avx512, "Sandybridge", "SkylakeX"},
           Case{Vectors::Avx512, "Haswell", "SkylakeX"},
           Case{Vectors::Avx512, "Zen", "SkylakeX"},
           Case{Vectors::Avx512, "SkylakeX", ""},
           Case{Vectors::Avx512, "Cooperlake", ""},
           Case{Vectors::Avx512, "SapphireRapids", ""},
           Case{Vectors::Avx2, "Prescott", "Haswell"},
           Case{Vectors::Avx2, "Barcelona", "Haswell"},
           Case{Vectors::Avx2, "Piledriver", "Haswell"},
           Case{Vectors::Avx2, "Zen", ""},
           Case{Vectors::Avx2, "Excavator", ""},
           Case{Vectors::Avx, "Core2", "Sandybridge"},
           Case{Vectors::Avx, "Bulldozer", ""},
           Case{Vectors::Sse, "Prescott", ""},
           // More than this CPU has, or unknown to us: OpenBLAS, or the user, knows better.
           Case{Vectors::Avx2, "SkylakeX", ""},
           Case{Vectors::Avx512, "GraniteRapids", ""},
           Case{Vectors::Sse, "neoversen1", ""},
       })
    EXPECT_EQ(faster_blas_core(cpu, core), faster) << core;
}

TEST(BlasCore, OfTheProgramUsesTheCpusVectors) {
  const Ran ran = run_agoq({"doctor"}, {.before = "unset OPENBLAS_CORETYPE; "});
  EXPECT_EQ(ran.status, 0);
  EXPECT_THAT(ran.out, Not(HasSubstr("slow  ")));
}

// What the user asks for is never overridden, and is told to be slow.
TEST(BlasCore, OfTheUserStands) {
  if (cpu_vectors() < Vectors::Avx2) GTEST_SKIP() << "no kernels here are faster than Prescott's";
  const Ran ran = run_agoq({"doctor"}, {.before = "export OPENBLAS_CORETYPE=Prescott; "});
  EXPECT_EQ(ran.status, 0);
  EXPECT_THAT(ran.out, HasSubstr("kernels for Prescott"));
  EXPECT_THAT(ran.out, HasSubstr("slow"));
  EXPECT_THAT(ran.out, HasSubstr("unset OPENBLAS_CORETYPE, which asks for Prescott"));
}

}  // namespace
}  // namespace agoq::cli
