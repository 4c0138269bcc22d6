#include "base/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <memory>
#include <string>

#include "base/text.h"

namespace agoq {
namespace {

std::string pattern(std::string_view prefix) {
  return fmt::format("%H:%M:%S {}%^%l%$: %v", prefix);
}

// Our own logger, unregistered, so that a host program's spdlog settings stay untouched.
spdlog::logger& logger() {
  static const auto instance = [] {
    auto made = std::make_unique<spdlog::logger>("agoq", std::make_shared<spdlog::sinks::stderr_color_sink_mt>());
    made->set_pattern(pattern(""));
    made->flush_on(spdlog::level::info);
    return made;
  }();
  return *instance;
}

spdlog::level::level_enum spdlog_level(LogLevel level) {
  switch (level) {
    case LogLevel::Info:
      return spdlog::level::info;
    case LogLevel::Warning:
      return spdlog::level::warn;
    case LogLevel::Error:
      return spdlog::level::err;
  }
  return spdlog::level::err;
}

}  // namespace

void set_log_rank(int rank, int world) {
  logger().set_pattern(pattern(world > 1 ? fmt::format("[rank {}] ", rank) : ""));
}

void set_log_level(LogLevel lowest) {
  logger().set_level(spdlog_level(lowest));
}

void log_message(LogLevel level, std::string_view message) {
  const std::string text = printable(message);  // a message may quote what a damaged file holds
  logger().log(spdlog_level(level), spdlog::string_view_t(text.data(), text.size()));
}

}  // namespace agoq
