#include "parallel/groups.h"

#include <algorithm>

namespace agoq::parallel {
namespace {

using comm::ProcessGroup;

bool of_pipeline(Groups::Channel channel) {
  return channel >= Groups::Channel::Forward;
}

}  // namespace

Groups::Groups(comm::Transport& transport, const Parallelism& parallelism)
    : transport_(&transport), parallelism_(parallelism) {
  require(transport.size() == parallelism.mesh.ranks() && transport.rank() == parallelism.rank,
          "rank {} of {} processes was given place {} of a mesh of {}", transport.rank(), transport.size(),
          parallelism.rank, parallelism.mesh.ranks());
}

Groups Groups::planned(const Parallelism& parallelism) {
  Groups groups;
  groups.parallelism_ = parallelism;
  return groups;
}

uint32_t Groups::bit(std::string_view axis) const {
  const std::vector<comm::Axis>& axes = parallelism_.mesh.axes();
  const auto found = std::ranges::find(axes, axis, &comm::Axis::name);
  return found == axes.end() ? 0 : uint32_t{1} << (found - axes.begin());
}

const ProcessGroup& Groups::over(std::initializer_list<std::string_view> axes, Channel channel) const {
  Key key{channel};
  for (const std::string_view axis : axes) key.axes |= bit(axis);
  std::unique_ptr<ProcessGroup>& group = groups_[key];
  if (!group) {
    group = std::make_unique<ProcessGroup>(make(key, ranks(key, axes)));
    if (axes.size() == 1 && *axes.begin() == kTensor) group->awaited_as(Exposed::Tensor);
    if (of_pipeline(channel)) group->awaited_as(Exposed::Pipeline);
  }
  return *group;
}

const ProcessGroup& Groups::world() const {
  return over({kPipeline, kReplica, kData, kTensor}, Channel::Control);
}

const ProcessGroup& Groups::of(model::Reduction reduction) const {
  switch (reduction) {
    case model::Reduction::Data:
      return data();
    case model::Reduction::DataAndTensor:
      return over({kReplica, kData, kTensor});
    case model::Reduction::DataAndEnds:
      return over({kReplica, kData, kPipeline}, Channel::Ends);
  }
  fail("a parameter has no reduction group");
}

const ProcessGroup& Groups::shards_of(model::Reduction reduction, Channel channel) const {
  switch (reduction) {
    case model::Reduction::Data:
      return over({kData}, channel);
    case model::Reduction::DataAndTensor:
      return over({kData, kTensor}, channel);
    case model::Reduction::DataAndEnds:
      return channel == Channel::Common ? over({kData, kPipeline}, Channel::Ends) : over({kData}, channel);
  }
  fail("a parameter has no reduction group");
}

std::vector<int> Groups::ranks(const Key& key, std::initializer_list<std::string_view> axes) const {
  const Parallelism& p = parallelism_;
  std::vector<int> ranks = p.mesh.group(p.rank, axes);
  if (key.channel != Channel::Ends) return ranks;
  std::erase_if(ranks, [&](int rank) {
    const int stage = p.mesh.at(rank, kPipeline);
    return stage != 0 && stage != p.stages() - 1;
  });
  const bool member = std::ranges::find(ranks, p.rank) != ranks.end();
  return member ? ranks : std::vector<int>{p.rank};
}

// The transport's channel follows from the key, so that all ranks give a group the same one.
ProcessGroup Groups::make(const Key& key, std::vector<int> ranks) const {
  const auto own = std::ranges::find(ranks, parallelism_.rank);
  if (!transport_) return ProcessGroup::planned(static_cast<int>(ranks.size()), static_cast<int>(own - ranks.begin()));
  const auto axes = static_cast<uint32_t>(parallelism_.mesh.axes().size());
  const uint32_t number = (static_cast<uint32_t>(key.channel) << axes) | key.axes;
  std::shared_ptr<comm::SharedLink>& link = links_[{of_pipeline(key.channel) ? key.channel : Channel::Common, ranks}];
  if (!link) link = std::make_shared<comm::SharedLink>();
  return ProcessGroup(*transport_, std::move(ranks), number, parallelism_.links, link);
}

void Groups::open(const Context& ctx) const {
  for (const auto& [key, group] : groups_) group->open(ctx);
}

Traffic Groups::sent() const {
  Traffic sent;
  for (const auto& [key, group] : groups_) {
    if (key.channel == Channel::Control) continue;
    uint64_t& of_axis = of_pipeline(key.channel) ? sent.pipeline : key.axes == bit(kTensor) ? sent.tensor : sent.data;
    of_axis += group->bytes_sent();
  }
  return sent;
}

}  // namespace agoq::parallel
