#include "device/library_version.h"

#include <algorithm>

#include "base/error.h"

namespace agoq {
namespace {

// Patch releases of one minor version keep its interface.
std::array<int, 2> major_minor(const LibraryVersion::Number& number) {
  return {number[0], number[1]};
}

}  // namespace

std::string text(const LibraryVersion::Number& number) {
  return fmt::format("{}.{}.{}", number[0], number[1], number[2]);
}

LibraryVersion::Number decode_version(size_t code) {
  const auto n = static_cast<int>(code);
  return {n / 10000, n / 100 % 100, n % 100};
}

std::string LibraryVersion::misfit() const {
  if (loaded < oldest)
    return fmt::format("{} {} is loaded, but the oldest version that passes the tests of this program is {}", name,
                       agoq::text(loaded), agoq::text(oldest));
  if (loaded[0] != built[0] || major_minor(loaded) < major_minor(built))
    return fmt::format("{} {} is loaded, but this program was built against {}", name, agoq::text(loaded),
                       agoq::text(built));
  return "";
}

std::string LibraryVersion::text() const {
  if (loaded == built) return agoq::text(loaded);
  return fmt::format("{}, built against {}", agoq::text(loaded), agoq::text(built));
}

void require_fit(const LibraryVersion& library) {
  const std::string misfit = library.misfit();
  require(misfit.empty(),
          "{}, and an unfit library can compute wrong results without an error; put the folder of {} {} or newer (the "
          "same major version) first in LD_LIBRARY_PATH, or build this program again on this machine",
          misfit, library.name, text(std::max(library.built, library.oldest)));
}

}  // namespace agoq
