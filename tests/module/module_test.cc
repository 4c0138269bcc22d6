// The library works as part of a shared object that a program loads, without a word of it in the program.
#include <dlfcn.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "base/scratch_folder.h"
#include "sanitized.h"

#if defined(AGOQ_TEST_SANITIZED)
// clang 14's leak checker crashes at the end of a program that has loaded a module with thread-local variables. Leaks
// of the library are found by the other tests.
extern "C" const char* __asan_default_options() {
  return "detect_leaks=0";
}
#endif

namespace agoq::test {
namespace {

class Module : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_NE(module_, nullptr) << dlerror();
    first_loss_ = reinterpret_cast<double (*)(const char*)>(dlsym(module_, "agoq_module_first_loss"));
    ASSERT_NE(first_loss_, nullptr) << dlerror();
  }

  void* module_ = dlopen(AGOQ_TEST_MODULE, RTLD_NOW | RTLD_LOCAL);
  double (*first_loss_)(const char*) = nullptr;
};

// A model without training gives every byte and the end of the text the same likelihood.
TEST_F(Module, TrainsAStep) {
  const ScratchFolder folder;
  std::string text;
  for (int i = 0; i < 200; ++i) text += "line " + std::to_string(i * i) + "\n";
  write_plainly(folder.file("text.txt"), text);
  EXPECT_NEAR(first_loss_(folder.file("text.txt").c_str()), std::log(257.0), 0.5);
}

TEST_F(Module, ItsErrorsAreCaughtInside) {
  EXPECT_LT(first_loss_("/no/such/text"), 0);
}

}  // namespace
}  // namespace agoq::test
