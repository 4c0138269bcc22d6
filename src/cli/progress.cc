#include "cli/progress.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>

#include "base/text.h"

namespace agoq::cli {
namespace {

constexpr double kSecondsBetweenDraws = 0.1;
constexpr double kMemory = 0.9;  // of the running mean over steps

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

size_t terminal_width() {
  winsize size{};
  return ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 120;
}

// The log line where it fits, otherwise what matters most.
std::string line_for_terminal(const train::StepMetrics& m, int64_t total, double eta) {
  const size_t width = terminal_width() - 1;
  std::string full = train::log_line(m, total, eta);
  if (full.size() <= width) return full;
  const auto seconds = static_cast<int64_t>(eta);
  return fmt::format("{}/{} | loss {:.4f} | lr {:.1e} | gnorm {:.2f} | {:.0f} ms | {:.0f} tok/s | ETA {}:{:02}", m.step,
                     total, m.loss, m.lr, m.grad_norm, m.step_ms, m.tokens_per_second, seconds / 60, seconds % 60)
      .substr(0, width);
}

}  // namespace

Progress::Progress(int64_t log_interval, bool draws)
    : interval_(std::max<int64_t>(log_interval, 1)), terminal_(draws && isatty(STDOUT_FILENO) == 1) {}

Progress::~Progress() {
  finish();
}

double Progress::eta_seconds(const train::StepMetrics& metrics, int64_t total) {
  mean_step_ms_ = mean_step_ms_ == 0 ? metrics.step_ms : kMemory * mean_step_ms_ + (1 - kMemory) * metrics.step_ms;
  return mean_step_ms_ * 1e-3 * static_cast<double>(total - metrics.step);
}

void Progress::step(const train::StepMetrics& metrics, int64_t total) {
  const double eta = eta_seconds(metrics, total);
  const bool last = metrics.step == total;
  const bool logged = metrics.step % interval_ == 0 || last;
  if (!terminal_) {
    if (logged) say(train::log_line(metrics, total, eta));
  } else if (last || now() - last_drawn_ >= kSecondsBetweenDraws) {
    draw(line_for_terminal(metrics, total, eta));
  }
}

void Progress::draw(const std::string& line) {
  fmt::print("\r{}\x1b[K", line);
  std::fflush(stdout);
  drawn_ = true;
  last_drawn_ = now();
}

void Progress::say(const std::string& line) {
  if (drawn_) fmt::print("\r\x1b[K");
  drawn_ = false;
  fmt::print("{}\n", printable(line));
  std::fflush(stdout);
}

void Progress::finish() {
  if (drawn_) fmt::print("\n");
  drawn_ = false;
  std::fflush(stdout);
}

}  // namespace agoq::cli
