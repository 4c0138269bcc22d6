#include "bench/step_profile.h"

#include <cxxabi.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <memory>

#include "base/text.h"

namespace agoq::bench {
namespace {

constexpr size_t kLongestName = 64;  // that a table shows

// Empty of a name that is not C++'s.
std::string demangled(const std::string& name) {
  int status = 0;
  const std::unique_ptr<char, decltype(&std::free)> text(abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status),
                                                         &std::free);
  return status == 0 ? text.get() : "";
}

void erase_all(std::string& text, std::string_view part) {
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at)) text.erase(at, part.size());
}

// "void f<g<1>>(int)" -> "void f(int)"
std::string without_template_arguments(const std::string& text) {
  std::string outside;
  int depth = 0;
  for (const char c : text) {
    if (c == '<') ++depth;
    if (depth == 0) outside += c;
    if (c == '>') --depth;
  }
  return outside;
}

// Runs in the order of their beginning; each with how long nothing had run before it.
struct RunAndIdle {
  const KernelRun* run;
  uint64_t idle;
};
std::vector<RunAndIdle> with_idle_time(std::span<const KernelRun> runs) {
  std::vector<RunAndIdle> ordered;
  for (const KernelRun& run : runs) ordered.push_back({&run, 0});
  std::stable_sort(ordered.begin(), ordered.end(),
                   [](const RunAndIdle& a, const RunAndIdle& b) { return a.run->begin < b.run->begin; });
  uint64_t reached = ordered.empty() ? 0 : ordered.front().run->begin;
  for (RunAndIdle& each : ordered) {
    each.idle = each.run->begin - std::min(reached, each.run->begin);
    reached = std::max(reached, each.run->end);
  }
  return ordered;
}

// Of intervals that may overlap: how much at least one covers.
uint64_t covered(std::span<const RunAndIdle> ordered) {
  uint64_t end = 0, idle = 0;
  for (const RunAndIdle& each : ordered) {
    end = std::max(end, each.run->end);
    idle += each.idle;
  }
  return ordered.empty() ? 0 : end - ordered.front().run->begin - idle;
}

void sort_by_time(StepProfile& profile) {
  std::stable_sort(profile.entries.begin(), profile.entries.end(),
                   [](const StepProfile::Entry& a, const StepProfile::Entry& b) { return a.seconds > b.seconds; });
}

std::string shown(const std::string& name) {
  return name.size() <= kLongestName ? name : name.substr(0, kLongestName - 3) + "...";
}

std::string percent(double share) {
  return fmt::format("{:.1f}%", 100 * share);
}

}  // namespace

std::string_view name_of(Work kind) {
  constexpr std::string_view kNames[] = {"GEMM", "attention", "codec", "elementwise", "optimizer"};
  static_assert(std::size(kNames) == static_cast<size_t>(Work::Count));
  return kNames[static_cast<size_t>(kind)];
}

std::string short_kernel_name(const std::string& name) {
  std::string text = demangled(name);
  if (text.empty()) return name;
  erase_all(text, "(anonymous namespace)::");
  text = without_template_arguments(text);
  text = text.substr(0, text.find('('));
  const size_t type = text.rfind(' ');  // of the result
  return type == std::string::npos ? text : text.substr(type + 1);
}

StepProfile profile_of(std::span<const KernelRun> runs, double seconds, int64_t steps) {
  const auto count = static_cast<double>(steps);
  const std::vector<RunAndIdle> ordered = with_idle_time(runs);
  std::map<std::string, StepProfile::Entry> by_mangled;
  for (const auto& [run, idle] : ordered) {
    StepProfile::Entry& entry = by_mangled[run->name];
    entry.seconds += 1e-9 * static_cast<double>(run->end - run->begin) / count;
    entry.idle_before += 1e-9 * static_cast<double>(idle) / count;
    entry.runs += 1 / count;
  }
  std::map<std::string, StepProfile::Entry> by_name;
  for (const auto& [mangled, part] : by_mangled) {
    const std::string name = short_kernel_name(mangled);
    StepProfile::Entry& entry = by_name[name];
    entry.seconds += part.seconds;
    entry.runs += part.runs;
    entry.idle_before += part.idle_before;
    entry.name = name;
  }
  StepProfile profile;
  for (const auto& [name, entry] : by_name) profile.entries.push_back(entry);
  profile.step_seconds = seconds / count;
  profile.busy_seconds = 1e-9 * static_cast<double>(covered(ordered)) / count;
  sort_by_time(profile);
  return profile;
}

StepProfile profile_of(const Profile& work, double seconds, int64_t steps) {
  const auto count = static_cast<double>(steps);
  StepProfile profile;
  profile.step_seconds = seconds / count;
  for (size_t kind = 0; kind < work.seconds.size(); ++kind) {
    const double of_step = work.seconds[kind] / count;
    profile.entries.push_back({std::string(name_of(static_cast<Work>(kind))), of_step});
    profile.busy_seconds += of_step;
  }
  sort_by_time(profile);
  return profile;
}

std::string table_of(const StepProfile& profile, size_t most) {
  Table table({"one step", "ms", "share", "runs", "idle before, ms"});
  const auto milliseconds = [](double seconds) { return fmt::format("{:.3f}", seconds * 1e3); };
  const auto add = [&](const StepProfile::Entry& e) {
    table.add_row({shown(e.name), milliseconds(e.seconds), percent(e.seconds / profile.step_seconds),
                   e.runs > 0 ? fmt::format("{:.4g}", e.runs) : "",
                   e.idle_before > 0 ? milliseconds(e.idle_before) : ""});
  };
  const size_t listed = std::min(most, profile.entries.size());
  for (size_t i = 0; i < listed; ++i) add(profile.entries[i]);
  StepProfile::Entry rest{fmt::format("other ({})", profile.entries.size() - listed)};
  for (size_t i = listed; i < profile.entries.size(); ++i) {
    const StepProfile::Entry& entry = profile.entries[i];
    rest.seconds += entry.seconds, rest.runs += entry.runs, rest.idle_before += entry.idle_before;
  }
  if (listed < profile.entries.size()) add(rest);
  table.add_rule();
  add({"none of them", std::max(0.0, profile.step_seconds - profile.busy_seconds)});
  add({"step, while profiled", profile.step_seconds});
  return table.text();
}

}  // namespace agoq::bench
