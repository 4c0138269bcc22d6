// A training run of a tiny model on the CPU, for tests of the trainer.
#pragma once

#include <gtest/gtest.h>
#include <omp.h>

#include <atomic>
#include <string>
#include <vector>

#include "base/scratch_folder.h"
#include "comm/thread_transport.h"
#include "train/data_files.h"
#include "train/trainer.h"

namespace agoq::train {

// Bytes to learn from, and a model small enough to step in a moment.
class TrainerTest : public testing::Test {
 protected:
  TrainerTest() {
    std::string text;
    for (int i = 0; i < 400; ++i) text += "line " + std::to_string(i * i % 97) + " of a text\n";
    write_plainly(scratch_.file("text.txt"), text);
    write_plainly(scratch_.file("config.json"),
                  R"({"model_type": "llama", "vocab_size": 257, "hidden_size": 32, "intermediate_size": 64,
                      "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64})");
    config_.model_config = scratch_.file("config.json");
    config_.data_path = {scratch_.file("text.txt")};
    config_.seq_length = 16;
    config_.micro_batch_size = 2;
    config_.global_batch_size = 4;
    config_.train_iters = 30;
    config_.main_params_dtype = "fp32";
  }
  // The first number of the head's weight.
  static float& a_weight(Trainer& trainer) {
    parallel::TrainingState& state = trainer.state();
    return state.params().at(state.params().head_id()).value.as<float>()[0];
  }

  // The steps that rank 0 of several processes tells; use(trainer) is called on each rank at the end.
  template <class Use>
  std::vector<StepMetrics> run_ranks(int ranks, const Use& use) {
    std::vector<StepMetrics> steps;
    test::ThreadWorld(ranks).run([&](comm::Transport& transport) {
      omp_set_num_threads(1);
      Observer observer;
      observer.on_step = [&](const StepMetrics& m) { steps.push_back(m); };
      Trainer trainer(config_, observer, {&transport, transport.rank(), ranks});
      trainer.run(stop_);
      use(transport.rank(), trainer);
    });
    return steps;
  }

  ScratchFolder scratch_;
  TrainConfig config_;
  std::atomic<bool> stop_{false};
};

}  // namespace agoq::train
