#include "base/build_id.h"

#include <elf.h>
#include <fmt/format.h>
#include <link.h>

#include <cstdint>
#include <cstring>

namespace agoq {
namespace {

// A note is a header, a name and a description, each padded to 4 bytes.
size_t padded(size_t bytes) {
  return (bytes + 3) / 4 * 4;
}

std::string id_in_notes(const uint8_t* notes, size_t bytes) {
  constexpr char kOwner[] = "GNU";
  for (size_t at = 0; at + sizeof(ElfW(Nhdr)) <= bytes;) {
    ElfW(Nhdr) note;
    std::memcpy(&note, notes + at, sizeof note);
    const size_t name = at + sizeof note, description = name + padded(note.n_namesz);
    at = description + padded(note.n_descsz);
    if (at > bytes || note.n_type != NT_GNU_BUILD_ID || note.n_namesz != sizeof kOwner ||
        std::memcmp(notes + name, kOwner, sizeof kOwner) != 0)
      continue;
    std::string digits;
    for (size_t i = 0; i < note.n_descsz; ++i) digits += fmt::format("{:02x}", notes[description + i]);
    return digits;
  }
  return "";
}

// Of the program or the shared library that holds this very function.
int take_id(dl_phdr_info* object, size_t, void* found) {
  const auto here = reinterpret_cast<uintptr_t>(&take_id);
  bool ours = false;
  std::string id;
  for (int i = 0; i < object->dlpi_phnum; ++i) {
    const ElfW(Phdr)& part = object->dlpi_phdr[i];
    const uintptr_t begin = object->dlpi_addr + part.p_vaddr;
    if (part.p_type == PT_LOAD) ours = ours || (here >= begin && here < begin + part.p_memsz);
    if (part.p_type == PT_NOTE && id.empty())
      id = id_in_notes(reinterpret_cast<const uint8_t*>(begin), part.p_memsz);  // NOLINT(performance-no-int-to-ptr)
  }
  if (ours) *static_cast<std::string*>(found) = id;
  return ours ? 1 : 0;
}

}  // namespace

std::string build_id() {
  std::string id;
  dl_iterate_phdr(&take_id, &id);
  return id.empty() ? "unknown" : id;
}

}  // namespace agoq
