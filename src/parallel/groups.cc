#include "parallel/groups.h"

#include <algorithm>
#include <functional>

namespace agoq::parallel {
namespace {

using comm::Axis;
using comm::ProcessGroup;

std::vector<int> ends_of_data(const Parallelism& p) {
  std::vector<int> ranks = p.mesh.group(p.rank, {Axis::Data, Axis::Pipeline});
  std::erase_if(ranks, [&](int rank) {
    const int stage = p.mesh.coordinates(rank)[static_cast<size_t>(Axis::Pipeline)];
    return stage != 0 && stage != p.stages() - 1;
  });
  const bool member = std::find(ranks.begin(), ranks.end(), p.rank) != ranks.end();
  return member ? ranks : std::vector<int>{p.rank};
}

// make(ranks) gives a group; channels are counted in the order of the calls.
Groups make_groups(const Parallelism& p, const std::function<ProcessGroup(std::vector<int>)>& make) {
  Groups groups;
  groups.world = make(p.mesh.group(p.rank, {Axis::Tensor, Axis::Data, Axis::Pipeline}));
  groups.tensor = make(p.mesh.group(p.rank, {Axis::Tensor}));
  groups.data = make(p.mesh.group(p.rank, {Axis::Data}));
  groups.data_and_tensor = make(p.mesh.group(p.rank, {Axis::Data, Axis::Tensor}));
  groups.data_and_ends = make(ends_of_data(p));
  groups.forward = make(p.mesh.group(p.rank, {Axis::Pipeline}));
  groups.backward = make(p.mesh.group(p.rank, {Axis::Pipeline}));
  if (p.chunks > 1) {
    groups.forward_around = make(p.mesh.group(p.rank, {Axis::Pipeline}));
    groups.backward_around = make(p.mesh.group(p.rank, {Axis::Pipeline}));
  }
  groups.tensor.awaited_as(Exposed::Tensor);
  for (ProcessGroup* group : {&groups.forward, &groups.backward, &groups.forward_around, &groups.backward_around})
    group->awaited_as(Exposed::Pipeline);
  return groups;
}

}  // namespace

Groups::Groups(comm::Transport& transport, const Parallelism& parallelism) {
  require(transport.size() == parallelism.mesh.ranks() && transport.rank() == parallelism.rank,
          "rank {} of {} processes was given place {} of a mesh of {}", transport.rank(), transport.size(),
          parallelism.rank, parallelism.mesh.ranks());
  uint32_t channel = 0;
  *this = make_groups(parallelism, [&](std::vector<int> ranks) {
    return ProcessGroup(transport, std::move(ranks), channel++, parallelism.links);
  });
}

Groups Groups::planned(const Parallelism& parallelism) {
  return make_groups(parallelism, [&](const std::vector<int>& ranks) {
    const auto own = std::find(ranks.begin(), ranks.end(), parallelism.rank);
    return ProcessGroup::planned(static_cast<int>(ranks.size()), static_cast<int>(own - ranks.begin()));
  });
}

void Groups::open(const Context& ctx) const {
  for (const ProcessGroup* group : {&world, &tensor, &data, &data_and_tensor, &data_and_ends, &forward, &backward,
                                    &forward_around, &backward_around})
    group->open(ctx);
}

Traffic Groups::sent() const {
  return {tensor.bytes_sent(), data.bytes_sent() + data_and_tensor.bytes_sent() + data_and_ends.bytes_sent(),
          forward.bytes_sent() + backward.bytes_sent() + forward_around.bytes_sent() + backward_around.bytes_sent()};
}

const ProcessGroup& Groups::of(model::Reduction reduction) const {
  switch (reduction) {
    case model::Reduction::Data:
      return data;
    case model::Reduction::DataAndTensor:
      return data_and_tensor;
    case model::Reduction::DataAndEnds:
      return data_and_ends;
  }
  fail("a parameter has no reduction group");
}

}  // namespace agoq::parallel
