#include "train/data/file_scan.h"

#include <algorithm>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

#include "base/atomic_file.h"
#include "base/checksum.h"
#include "base/error.h"
#include "base/mapped_file.h"

namespace agoq::train {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr uint64_t kPiece = 1 << 20;  // fits in a core's cache: it is read once and used twice
constexpr int kRemembered = 1;        // version of the remembered form
constexpr uint64_t kLongestRecord = 1 << 16;

struct IdRange {
  int64_t smallest = std::numeric_limits<int64_t>::max();
  int64_t largest = std::numeric_limits<int64_t>::min();
};

// Of numbers at an address that is aligned for them.
template <class T>
IdRange range_of(std::span<const uint8_t> bytes) {
  const auto* values = reinterpret_cast<const T*>(bytes.data());
  const uint64_t count = bytes.size() / sizeof(T);
  if (count == 0) return {};
  T low = values[0], high = values[0];
#pragma omp simd reduction(min : low) reduction(max : high)
  for (uint64_t i = 0; i < count; ++i) {
    low = std::min(low, values[i]);
    high = std::max(high, values[i]);
  }
  return {static_cast<int64_t>(low), static_cast<int64_t>(high)};
}

IdRange range_of(DType dtype, std::span<const uint8_t> bytes) {
  switch (dtype) {
    case DType::U8:
      return range_of<uint8_t>(bytes);
    case DType::U16:
      return range_of<uint16_t>(bytes);
    case DType::I32:
      return range_of<int32_t>(bytes);
    case DType::I64:
      return range_of<int64_t>(bytes);
    default:
      fail("numbers of type {} are not scanned", name_of(dtype));
  }
}

uint64_t hash_of(const std::vector<uint64_t>& hashes) {
  return xxh3({reinterpret_cast<const uint8_t*>(hashes.data()), hashes.size() * sizeof(uint64_t)});
}

// Where a scan may be remembered, best first.
std::vector<std::string> records_of(const std::string& path) {
  std::vector<std::string> records = {path + ".agoq-scan"};
  const char* cache = std::getenv("XDG_CACHE_HOME");
  const char* home = std::getenv("HOME");
  fs::path folder;
  if (cache && fs::path(cache).is_absolute())
    folder = cache;
  else if (home && fs::path(home).is_absolute())
    folder = fs::path(home) / ".cache";
  if (folder.empty()) return records;
  const std::string whole = fs::absolute(path).lexically_normal().string();
  const uint64_t name = xxh3({reinterpret_cast<const uint8_t*>(whole.data()), whole.size()});
  records.push_back((folder / "agoq" / fmt::format("{:016x}.agoq-scan", name)).string());
  return records;
}

Json record_of(const FileStamp& stamp, DType dtype) {
  return {{"agoq_scan", kRemembered},   {"bytes", stamp.size},        {"inode", stamp.inode},
          {"mtime_ns", stamp.mtime_ns}, {"ctime_ns", stamp.ctime_ns}, {"type", name_of(dtype)}};
}

std::optional<FileScan> recall(const std::string& record, const Json& wanted) {
  std::error_code error;
  if (!fs::is_regular_file(record, error) || fs::file_size(record, error) > kLongestRecord || error)
    return std::nullopt;
  try {
    const MappedFile file(record);
    const Json json = Json::parse(file.bytes().begin(), file.bytes().end());
    for (const auto& [key, value] : wanted.items())
      if (json.at(key) != value) return std::nullopt;
    return FileScan{json.at("hash"), json.at("smallest"), json.at("largest")};
  } catch (const std::exception&) {
    return std::nullopt;  // damaged, or no longer readable: as if there was none
  }
}

bool remember(const std::string& record, const Json& text) {
  try {
    std::error_code ignored;
    fs::create_directories(fs::path(record).parent_path(), ignored);
    write_file_atomically(record, text.dump() + "\n");
    return true;
  } catch (const Error&) {
    return false;
  }
}

std::chrono::nanoseconds age_of(const FileStamp& stamp) {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return now - std::chrono::nanoseconds(std::max(stamp.mtime_ns, stamp.ctime_ns));
}

}  // namespace

FileScan scan_file(const PositionedFile& file, DType dtype) {
  const uint64_t bytes = file.size();
  const auto pieces = static_cast<int64_t>((bytes + kPiece - 1) / kPiece);
  std::vector<uint64_t> hashes(static_cast<size_t>(pieces));
  int64_t smallest = IdRange{}.smallest, largest = IdRange{}.largest;
  std::exception_ptr problem;
#pragma omp parallel reduction(min : smallest) reduction(max : largest)
  {
    std::vector<uint8_t> memory(kPiece);
#pragma omp for schedule(dynamic, 4)
    for (int64_t piece = 0; piece < pieces; ++piece) {
      const uint64_t begin = static_cast<uint64_t>(piece) * kPiece;
      const auto buffer = std::span(memory).first(std::min(kPiece, bytes - begin));
      try {
        file.read(begin, buffer);
        hashes[static_cast<size_t>(piece)] = xxh3(buffer);
        const IdRange range = range_of(dtype, buffer);
        smallest = std::min(smallest, range.smallest);
        largest = std::max(largest, range.largest);
      } catch (...) {
#pragma omp critical
        problem = std::current_exception();
      }
    }
  }
  if (problem) std::rethrow_exception(problem);
  if (smallest > largest) smallest = largest = 0;
  return {hash_of(hashes), smallest, largest};
}

FileScan remembered_scan(const PositionedFile& file, DType dtype, const ScanMemory& memory) {
  const FileStamp stamp = file.stamp();
  require(stamp.size == file.size(), "{} had {} bytes when it was opened and has {} now; begin when it is whole",
          file.path(), file.size(), stamp.size);
  const bool worth_it = stamp.size >= memory.from_bytes;
  const Json record = record_of(stamp, dtype);
  const std::vector<std::string> places = worth_it ? records_of(file.path()) : std::vector<std::string>{};
  for (const std::string& place : places)
    if (const std::optional<FileScan> known = recall(place, record)) return *known;
  const bool settled = age_of(stamp) >= memory.settled;
  const FileScan scan = scan_file(file, dtype);
  require(file.stamp() == stamp, "{} was changed while it was read; begin when it is whole", file.path());
  if (!settled) return scan;
  Json found = record;
  found["hash"] = scan.hash;
  found["smallest"] = scan.smallest;
  found["largest"] = scan.largest;
  for (const std::string& place : places)
    if (remember(place, found)) break;
  return scan;
}

}  // namespace agoq::train
