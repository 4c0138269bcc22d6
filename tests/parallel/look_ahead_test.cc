// In which order a stage of a pipeline asks for what it receives and sends what it has made.
#include <gtest/gtest.h>
#include <omp.h>

#include <utility>

#include "comm/thread_transport.h"
#include "parallel/tiny_state.h"

namespace agoq::parallel {
namespace {

// Writes down every message that goes one way: "r" when a receive is posted, "s" when something is sent.
class Recorder : public comm::Transport {
 public:
  explicit Recorder(comm::Transport& inner) : inner_(inner) {}
  int rank() const override { return inner_.rank(); }
  int size() const override { return inner_.size(); }
  std::unique_ptr<comm::Pending> start(uint32_t channel, std::span<const comm::Send> sends,
                                       std::span<const comm::Receive> receives) override {
    if (sends.empty()) log += "r";
    if (receives.empty()) log += "s";
    return inner_.start(channel, sends, receives);
  }
  uint64_t bytes_sent(uint32_t channel) const override { return inner_.bytes_sent(channel); }
  void abandon(const std::string& reason) override { inner_.abandon(reason); }

  std::string log;

 private:
  comm::Transport& inner_;
};

std::vector<std::string> order_of_messages(int stages, int micro_batches) {
  std::vector<std::string> logs(static_cast<size_t>(stages));
  test::ThreadWorld(stages).run([&](comm::Transport& transport) {
    omp_set_num_threads(1);
    model::ModelConfig model = test::tiny_model();
    model.layers = stages;
    RunSpec run_spec = test::tiny_run_spec(model);
    run_spec.parallelism.mesh = training_mesh({1, 1, stages});
    run_spec.parallelism.rank = transport.rank();
    run_spec.parallelism.micro_batches = micro_batches;
    Recorder recorder(transport);
    Arena arena(Device::Cpu, size_t{32} << 20);
    TrainingState state(arena, Device::Cpu, run_spec, &recorder);
    const auto tokens = static_cast<size_t>(run_spec.tokens());
    std::vector<int32_t> ids(tokens, 1), positions(tokens), starts(tokens);
    std::vector<float> weights(tokens, 1.0f);
    const auto tensor = [](auto& v) { return host_tensor(v.data(), {static_cast<int64_t>(v.size())}); };
    const MicroBatch batch = {tensor(ids), tensor(ids), tensor(weights), tensor(positions), tensor(starts)};
    state.begin_step();
    state.forward_backward(std::vector<MicroBatch>(static_cast<size_t>(micro_batches), batch), 1.0f);
    logs[static_cast<size_t>(transport.rank())] = recorder.log;
  });
  return logs;
}

// Forward steps F and backward steps B of a stage, in its order; in brackets what is posted before it computes.
TEST(LookAhead, AStepThatFollowsOneOfTheOtherKindIsReceivedWhileThatOneComputes) {
  const std::vector<std::string> logs = order_of_messages(2, 4);
  EXPECT_EQ(logs[0], "srsrsrsr") << "F0 s, [r] F1 s, B0, [r] F2 s, B1, [r] F3 s, B2, r B3";
  EXPECT_EQ(logs[1], "rrsrsrss") << "r F0, [r] B0 s, F1, [r] B1 s, F2, [r] B2 s, F3, B3 s";
}

// Two forward steps in a row: the first one's output is sent before the second one's input is asked for.
TEST(LookAhead, StepsOfOneKindInARowKeepTheirOrder) {
  const std::vector<std::string> logs = order_of_messages(3, 3);
  EXPECT_EQ(logs[0], "ssrsrr") << "F0 s, F1 s, [r] F2 s, B0, r B1, r B2";
  EXPECT_EQ(logs[1], "rsrrsrsrssrs") << "r F0 s, r [r] F1 s, [r] B0 s, [r] F2 s, B1 s, r B2 s";
  EXPECT_EQ(logs[2], "rrsrss") << "r F0, [r] B0 s, F1, [r] B1 s, F2, B2 s";
}

}  // namespace
}  // namespace agoq::parallel
