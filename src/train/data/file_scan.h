// One pass over a whole file of numbers: a hash of its bytes, and the range of its numbers. Several threads read at the
// speed of the disk, or of memory.
//
// What was found is remembered in a small JSON file, beside the data as NAME.agoq-scan or, where that folder cannot be
// written, in $XDG_CACHE_HOME/agoq (~/.cache/agoq). It counts as long as size, inode and times of the file stay.
#pragma once

#include <chrono>
#include <cstdint>

#include "base/dtype.h"
#include "base/positioned_file.h"

namespace agoq::train {

struct FileScan {
  uint64_t hash = 0;                  // XXH3 over the XXH3 of each MiB
  int64_t smallest = 0, largest = 0;  // number; both 0 in an empty file
  bool operator==(const FileScan&) const = default;
};

// `dtype`: U8, U16, I32 or I64. Bytes behind the last whole number are hashed and are no number.
FileScan scan_file(const PositionedFile& file, DType dtype);

struct ScanMemory {
  uint64_t from_bytes = 64 << 20;  // smaller files are scanned again: that takes a few milliseconds
  // A file that was changed so shortly before may change again within the same tick of its clock.
  std::chrono::nanoseconds settled = std::chrono::seconds(2);
};
// The same, from memory where the file is as it was.
FileScan remembered_scan(const PositionedFile& file, DType dtype, const ScanMemory& memory = {});

}  // namespace agoq::train
