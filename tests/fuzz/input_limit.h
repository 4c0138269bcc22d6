// Ends the fuzzer at an input that costs too much. libFuzzer's -timeout counts wall time, which says little on a busy
// machine and must be long; this counts the time that the input itself takes.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <ctime>

class InputLimit {
 public:
  InputLimit() = default;
  ~InputLimit() {
    constexpr double kSeconds = 2;  // inputs have 64 KiB, and sanitizers make every step some 10 times as long
    const double seconds = static_cast<double>(clock() - begin_) / CLOCKS_PER_SEC;
    if (seconds <= kSeconds) return;
    std::fprintf(stderr, "this input took %.1f s of CPU time, more than %.1f\n", seconds, kSeconds);
    std::abort();
  }
  InputLimit(const InputLimit&) = delete;
  InputLimit& operator=(const InputLimit&) = delete;

 private:
  clock_t begin_ = clock();
};
