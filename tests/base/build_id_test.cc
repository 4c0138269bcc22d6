#include "base/build_id.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <string>

namespace agoq {
namespace {

std::string output_of(const std::string& command) {
  std::string text;
  std::array<char, 4096> bytes{};
  FILE* const pipe = ::popen(command.c_str(), "r");
  for (size_t count = 0; pipe != nullptr && (count = std::fread(bytes.data(), 1, bytes.size(), pipe)) > 0;)
    text.append(bytes.data(), count);
  if (pipe != nullptr) ::pclose(pipe);
  return text;
}

// binutils read the same note of this very file.
TEST(BuildId, IsTheLinkersOfThisProgram) {
  const std::string notes = output_of("readelf -n /proc/" + std::to_string(::getpid()) + "/exe 2>/dev/null");
  if (notes.empty()) GTEST_SKIP() << "no readelf";
  const size_t at = notes.find("Build ID: ");
  ASSERT_NE(at, std::string::npos) << notes;
  EXPECT_EQ(build_id(), notes.substr(at + 10, notes.find('\n', at) - at - 10));
  EXPECT_EQ(build_id().size(), 40U);
}

}  // namespace
}  // namespace agoq
