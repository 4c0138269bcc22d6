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
    VectorWidth cpu;
    const char* core;
    const char* faster;
  };
  for (const auto& [cpu, core, faster] : {
           Case{VectorWidth::Avx512, "Prescott", "SkylakeX"},  // what unknown Intel CPUs get
           Case{VectorWidth::Avx512, "Nehalem", "SkylakeX"},
           Case{VectorWidth::Avx512, "Sandybridge", "SkylakeX"},
           Case{VectorWidth::Avx512, "Haswell", "SkylakeX"},
           Case{VectorWidth::Avx512, "Zen", "SkylakeX"},
           Case{VectorWidth::Avx512, "SkylakeX", ""},
           Case{VectorWidth::Avx512, "Cooperlake", ""},
           Case{VectorWidth::Avx512, "SapphireRapids", ""},
           Case{VectorWidth::Avx2, "Prescott", "Haswell"},
           Case{VectorWidth::Avx2, "Barcelona", "Haswell"},
           Case{VectorWidth::Avx2, "Piledriver", "Haswell"},
           Case{VectorWidth::Avx2, "Zen", ""},
           Case{VectorWidth::Avx2, "Excavator", ""},
           Case{VectorWidth::Avx, "Core2", "Sandybridge"},
           Case{VectorWidth::Avx, "Bulldozer", ""},
           Case{VectorWidth::Sse, "Prescott", ""},
           // More than this CPU has, or unknown to us: OpenBLAS, or the user, knows better.
           Case{VectorWidth::Avx2, "SkylakeX", ""},
           Case{VectorWidth::Avx512, "GraniteRapids", ""},
           Case{VectorWidth::Sse, "neoversen1", ""},
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
  if (cpu_vectors() < VectorWidth::Avx2) GTEST_SKIP() << "no kernels here are faster than Prescott's";
  const Ran ran = run_agoq({"doctor"}, {.before = "export OPENBLAS_CORETYPE=Prescott; "});
  EXPECT_EQ(ran.status, 0);
  EXPECT_THAT(ran.out, HasSubstr("kernels for Prescott"));
  EXPECT_THAT(ran.out, HasSubstr("slow"));
  EXPECT_THAT(ran.out, HasSubstr("unset OPENBLAS_CORETYPE, which asks for Prescott"));
}

}  // namespace
}  // namespace agoq::cli
