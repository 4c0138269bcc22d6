#include "train/metrics.h"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>
#include <vector>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/log.h"
#include "base/mapped_file.h"
#include "base/text.h"

namespace agoq::train {
namespace {

using Json = nlohmann::ordered_json;

// The shortest decimal that reads back as the same double.
std::string exact(double value) {
  return std::isfinite(value) ? fmt::format("{}", value) : "null";
}

// A measurement, for which six digits are plenty.
std::string measured(double value) {
  return std::isfinite(value) ? fmt::format("{:.6g}", value) : "null";
}

// ,"exposed_ms":{"tensor":1.5, ...} or nothing.
std::string exposed_field(const StepMetrics& m) {
  if (!m.exposed) return "";
  std::vector<std::string> kinds;
  for (size_t kind = 0; kind < m.exposed->size(); ++kind)
    kinds.push_back(fmt::format("\"{}\":{}", name_of(static_cast<Exposed>(kind)), measured(1e3 * (*m.exposed)[kind])));
  return fmt::format(",\"exposed_ms\":{{{}}}", fmt::join(kinds, ","));
}

// ,"fp8_saturated":{"x":0, ...},"fp8_flushed":{...}: shares of the numbers of each operand that became 8-bit floats; or
// nothing.
std::string fp8_fields(const StepMetrics& m) {
  std::vector<std::string> saturated, flushed;
  const auto share = [](ops::Fp8Role role, int64_t part, int64_t all) {
    return fmt::format("\"{}\":{}", name_of(role), measured(static_cast<double>(part) / static_cast<double>(all)));
  };
  for (size_t i = 0; m.fp8 && i < m.fp8->size(); ++i) {
    const ops::Fp8Count& count = (*m.fp8)[i];
    if (count.encoded == 0) continue;
    saturated.push_back(share(static_cast<ops::Fp8Role>(i), count.saturated, count.encoded));
    flushed.push_back(share(static_cast<ops::Fp8Role>(i), count.flushed, count.encoded));
  }
  if (flushed.empty()) return "";
  return fmt::format(",\"fp8_saturated\":{{{}}},\"fp8_flushed\":{{{}}}", fmt::join(saturated, ","),
                     fmt::join(flushed, ","));
}

struct Line {
  int64_t step = 0;
  bool evaluation = false;
};

std::optional<Line> parse_line(std::string_view text) {
  const Json json = Json::parse(text, nullptr, false);
  if (!json.is_object() || !json.contains("step") || !json["step"].is_number_integer()) return std::nullopt;
  return Line{json["step"].get<int64_t>(), json.contains("valid_loss")};
}

// The complete lines of steps up to `steps_done`, and of which steps evaluations are among them, each once.
std::string kept_history(std::string_view text, int64_t steps_done, const std::string& path,
                         std::set<int64_t>& evaluated) {
  std::string kept;
  while (!text.empty()) {
    const size_t end = text.find('\n');
    if (end == std::string_view::npos) break;  // unfinished
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(end + 1);
    const std::optional<Line> parsed = parse_line(line);
    if (!parsed)
      log_warning("{}: dropping a line that is no metrics line: {}", path, printable_line(line.substr(0, 80)));
    if (!parsed || parsed->step > steps_done) continue;
    if (parsed->evaluation && !evaluated.insert(parsed->step).second) continue;
    kept.append(line).append("\n");
  }
  return kept;
}

void keep_history(const std::string& path, int64_t steps_done, std::set<int64_t>& evaluated) {
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) return;
  const std::string before = [&] {
    const MappedFile file(path);
    return std::string(reinterpret_cast<const char*>(file.bytes().data()), file.size());
  }();
  const std::string after = steps_done > 0 ? kept_history(before, steps_done, path, evaluated) : "";
  if (after != before) write_file_atomically(path, after);
}

std::string duration(double seconds) {
  if (!std::isfinite(seconds) || seconds < 0) return "-";
  const auto s = static_cast<int64_t>(std::llround(std::min(seconds, 1e12)));
  const std::string clock = fmt::format("{:02}:{:02}:{:02}", s / 3600 % 24, s / 60 % 60, s % 60);
  return s < 86400 ? clock : fmt::format("{}d {}", s / 86400, clock);
}

}  // namespace

MetricsWriter::MetricsWriter(std::string path, int64_t steps_done) : path_(std::move(path)) {
  keep_history(path_, steps_done, evaluated_);
  file_ = FileDescriptor(open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666));
  require(file_.valid(), "cannot open {}: {}", path_, std::strerror(errno));
}

void MetricsWriter::step(const StepMetrics& m) {
  append(fmt::format(
      "{{\"step\":{},\"loss\":{},\"lr\":{},\"grad_norm\":{},\"step_ms\":{},\"tokens_per_second\":{},"
      "\"tflops\":{}{},\"memory_bytes\":{},\"skipped\":{}{}{}{}}}\n",
      m.step, exact(m.loss), exact(m.lr), exact(m.grad_norm), measured(m.step_ms), measured(m.tokens_per_second),
      measured(m.tflops), m.mfu > 0 ? fmt::format(",\"mfu\":{}", measured(m.mfu)) : "", m.memory_bytes, m.skipped,
      m.without_targets > 0 ? fmt::format(",\"without_targets\":{}", m.without_targets) : "", exposed_field(m),
      fp8_fields(m)));
}

void MetricsWriter::valid(int64_t step, double valid_loss) {
  if (evaluated_.insert(step).second)
    append(fmt::format("{{\"step\":{},\"valid_loss\":{}}}\n", step, exact(valid_loss)));
}

// One write a line: a reader that follows the file sees whole lines, and a killed run loses none.
void MetricsWriter::append(std::string_view line) {
  while (!line.empty()) {
    const ssize_t n = ::write(file_.get(), line.data(), line.size());
    if (n < 0 && errno == EINTR) continue;
    require(n >= 0, "cannot write {}: {}", path_, std::strerror(errno));
    line.remove_prefix(static_cast<size_t>(n));
  }
}

std::string log_line(const StepMetrics& m, int64_t total_steps, double eta_seconds) {
  const size_t width = fmt::formatted_size("{}", total_steps);
  const std::string loss = m.counted ? fmt::format("{:7.4f}", m.loss) : fmt::format("{:>7}", "-");
  const std::string mfu = m.mfu > 0 ? fmt::format("MFU {:4.1f}% | ", 100 * m.mfu) : "";
  return fmt::format(
      "{:>{}}/{} | loss {} | lr {:.2e} | grad norm {:7.3f} | {:8.1f} ms/step | {:>7} tokens/s | {:8.3f} TFLOP/s | "
      "{}{:>10} | skipped {} | ETA {}",
      m.step, width, total_steps, loss, m.lr, m.grad_norm, m.step_ms,
      human_count(static_cast<uint64_t>(std::llround(std::max(m.tokens_per_second, 0.0)))), m.tflops, mfu,
      human_bytes(m.memory_bytes), m.skipped, duration(eta_seconds));
}

}  // namespace agoq::train
