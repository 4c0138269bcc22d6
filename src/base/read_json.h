// JSON that others wrote, read in one place: bounded, whole, unambiguous, and from regular files only.
#pragma once

#include <cstddef>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace agoq {

struct JsonLimits {
  size_t bytes = size_t{4} << 20;
  int depth = 32;
  size_t keys = 10'000;  // of one object: an ordered_json searches its keys one by one
};

// Throws an Error that begins with `what` if the text is longer, deeper or wider than `limits`, is not JSON, goes on
// behind its value, holds a zero byte (the library takes it for the end of the text), or names a key of an object twice
// (readers disagree about which counts). Json: nlohmann::ordered_json or nlohmann::json.
template <class Json = nlohmann::ordered_json>
Json parse_json(std::string_view text, std::string_view what, const JsonLimits& limits = {});

// Foreign text for a message: its first `most` bytes and "...".
std::string shortened(std::string_view text, size_t most);

// The text of a regular file of at most `most` bytes. A FIFO or a device is refused without waiting for it.
std::string read_text(const std::string& path, size_t most);

template <class Json = nlohmann::ordered_json>
Json read_json(const std::string& path, const JsonLimits& limits = {}) {
  return parse_json<Json>(read_text(path, limits.bytes), path, limits);
}

}  // namespace agoq
