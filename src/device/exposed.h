// How long computing stands still because what other ranks send is not there yet: communication that nothing hides.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "device/stopwatch.h"

namespace agoq {

// What is waited for.
enum class Exposed : uint8_t {
  Tensor,     // collectives of the tensor group, in the way of every layer
  Pipeline,   // hidden states and their gradients; buffers that are still being sent
  Gradients,  // sums, after the last backward step; with ZeRO-2 also room for the next layer's
  Weights,    // updated by other ranks, before the layer that reads them
  Count
};
std::string_view name_of(Exposed kind);
using ExposedSeconds = std::array<double, static_cast<size_t>(Exposed::Count)>;

// On a GPU waits lie between events of the compute stream, and the host does not wait for them.
class ExposedTimes {
 public:
  explicit ExposedTimes(const Context& ctx) : watch_(ctx) {}
  void begin(Exposed kind);
  void end() { watch_.mark(); }
  // Since the last call; waits for the end of the last wait.
  ExposedSeconds take();

 private:
  Stopwatch watch_;  // two marks for each wait
  std::vector<Exposed> kinds_;
};

// wait(), measured if someone asks.
template <class Wait>
void expose(const Context& ctx, Exposed kind, const Wait& wait) {
  if (ctx.exposed) ctx.exposed->begin(kind);
  wait();
  if (ctx.exposed) ctx.exposed->end();
}

}  // namespace agoq
