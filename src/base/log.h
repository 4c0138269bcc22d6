// Messages for people, on stderr. Results that programs read go to stdout or into the run folder, never here.
#pragma once

#include <fmt/format.h>

#include <string_view>
#include <utility>

namespace agoq {

enum class LogLevel { Info, Warning, Error };

// Lines carry "[rank N]" once this is called with world > 1. Call it before threads log.
void set_log_rank(int rank, int world);

// Messages below this level are dropped (tests and `--quiet`).
void set_log_level(LogLevel lowest);

// Control characters and bytes that are not UTF-8 are shown as \xNN.
void log_message(LogLevel level, std::string_view message);

template <class... Args>
void log_info(fmt::format_string<Args...> text, Args&&... args) {
  log_message(LogLevel::Info, fmt::format(text, std::forward<Args>(args)...));
}

template <class... Args>
void log_warning(fmt::format_string<Args...> text, Args&&... args) {
  log_message(LogLevel::Warning, fmt::format(text, std::forward<Args>(args)...));
}

template <class... Args>
void log_error(fmt::format_string<Args...> text, Args&&... args) {
  log_message(LogLevel::Error, fmt::format(text, std::forward<Args>(args)...));
}

}  // namespace agoq
