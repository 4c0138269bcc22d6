// Which version of a library this program was compiled with, and which one it runs with.
#pragma once

#include <array>
#include <string>

namespace agoq {

struct LibraryVersion {
  using Number = std::array<int, 3>;  // major, minor, patch

  std::string name;  // "cuDNN"
  Number built{};    // of the headers
  Number loaded{};   // of the library in memory
  Number oldest{};   // the first one whose results passed our tests; zeros: any

  // The same major version, no older minor version than the headers, and not older than `oldest`. An older library may
  // not know what newer headers ask for, and compute something else without an error.
  bool fits() const { return misfit().empty(); }
  // "cuDNN 9.14.0 is loaded, but this program was built against 9.19.0 ..."; empty if it fits.
  std::string misfit() const;
  // "9.20.0, built against 9.19.0"; one number if they are equal.
  std::string text() const;
};

std::string text(const LibraryVersion::Number& number);  // "9.19.0"
// Of a version as NVIDIA's libraries encode it: 91900, 22809 or 130100.
LibraryVersion::Number decode_version(size_t code);

// Error with its remedy if the library does not fit.
void require_fit(const LibraryVersion& library);

}  // namespace agoq
