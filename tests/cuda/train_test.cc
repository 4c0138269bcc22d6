// Whole runs on a GPU: they learn, continue bit for bit, take no memory after the first step, and follow the CPU.
#include "train/trainer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "base/scratch_folder.h"
#include "device/gpu.h"

namespace agoq::train {
namespace {

constexpr const char* kModel =
    R"({"model_type": "llama", "vocab_size": 257, "hidden_size": 256, "intermediate_size": 704,
  "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
  "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "tie_word_embeddings": false})";

class CudaRun : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const std::string why = why_no_gpu(); !why.empty()) GTEST_SKIP() << why;
    std::string text;
    for (int i = 0; i < 3000; ++i)
      text += "the cat sat on the mat and looked at line " + std::to_string(i * i % 97) + ".\n";
    write_plainly(folder.file("text.txt"), text);
    write_plainly(folder.file("config.json"), kModel);
  }

  TrainConfig config(const std::string& save, int64_t steps) const {
    TrainConfig c;
    c.model_config = folder.file("config.json");
    c.data_path = {folder.file("text.txt")};
    c.seq_length = 128;
    c.micro_batch_size = 2;
    c.global_batch_size = 6;
    c.train_iters = steps;
    c.lr_decay_iters = 20;
    c.lr = 2e-3;
    c.device = "cuda";
    c.save = save.empty() ? "" : folder.file(save);
    return c;
  }
  static std::vector<double> losses(const TrainConfig& c, Observer observer = {}) {
    std::vector<double> all;
    observer.on_step = [&, also = observer.on_step](const StepMetrics& m) {
      all.push_back(m.loss);
      if (also) also(m);
    };
    const std::atomic<bool> stop{false};
    Trainer(c, observer).run(stop);
    return all;
  }

  ScratchFolder folder;
};

TEST_F(CudaRun, LearnsAsTheCpuDoes) {
  TrainConfig c = config("", 20);
  const std::vector<double> gpu = losses(c);
  c.device = "cpu";
  c.compute_dtype = "bf16";
  const std::vector<double> cpu = losses(c);
  ASSERT_EQ(gpu.size(), cpu.size());
  EXPECT_NEAR(gpu[0], cpu[0], 2e-3) << "one forward in bf16, summed in another order";
  EXPECT_LT(gpu.back(), gpu.front() - 1.0);
  EXPECT_NEAR(gpu.back(), cpu.back(), 0.05 * cpu.back());
}

TEST_F(CudaRun, ContinuesBitForBit) {
  for (const char* policy : {"agoq", "bf16"}) {
    TrainConfig whole = config(std::string("whole-") + policy, 8), part = config(std::string("part-") + policy, 5);
    whole.activation_policy = part.activation_policy = policy;
    whole.deterministic_mode = part.deterministic_mode = true;
    const std::vector<double> undisturbed = losses(whole);
    std::vector<double> both = losses(part);
    part.train_iters = 8;
    for (const double loss : losses(part)) both.push_back(loss);
    EXPECT_EQ(both, undisturbed) << policy;
  }
}

TEST_F(CudaRun, TakesNoMemoryAfterTheFirstStep) {
  const Gpu gpu;
  size_t free_after_first = 0;
  Observer observer;
  observer.on_step = [&](const StepMetrics& m) {
    if (m.step == 1) free_after_first = gpu.free_memory();
    EXPECT_EQ(gpu.free_memory(), free_after_first) << "step " << m.step;
  };
  TrainConfig c = config("", 6);
  c.eval_interval = 2;
  losses(c, observer);
  EXPECT_GT(free_after_first, 0u);
}

// The first loss is that of a model that knows nothing, ln 257 = 5.55; on a CPU the third is 1.9 below it.
void expect_learns(const std::vector<double>& losses, const std::string& what) {
  ASSERT_EQ(losses.size(), 3U) << what;
  EXPECT_NEAR(losses.front(), std::log(257), 0.2) << what;
  EXPECT_LT(losses.back(), losses.front() - 1.5) << what;
}

TEST_F(CudaRun, EveryPolicyAndPrecisionTrains) {
  for (const char* policy : {"agoq", "paper", "fp8", "bf16", "fp32"}) {
    TrainConfig c = config("", 3);
    c.activation_policy = policy;
    expect_learns(losses(c), policy);
  }
  for (const char* baseline : {"bf16", "fp32"}) {
    TrainConfig c = config("", 3);
    c.baseline = baseline;
    expect_learns(losses(c), baseline);
  }
  for (const char* override : {"attention=int8", "attention=fp8;norm=nf4;mlp=int4", "norm=fp5;mlp=fp6", "o=none"}) {
    TrainConfig c = config("", 3);
    c.activation_override = override;
    expect_learns(losses(c), override);
  }
  for (const char* recompute : {"selective", "full"}) {
    TrainConfig c = config("", 3);
    c.recompute_granularity = recompute;
    expect_learns(losses(c), recompute);
  }
  for (const char* recipe : {"tensorwise", "rowwise", "blockwise"}) {
    TrainConfig c = config("", 3);
    c.fp8_format = "e4m3";
    c.fp8_recipe = recipe;
    expect_learns(losses(c), recipe);
  }
}

TEST_F(CudaRun, ACapIsKept) {
  TrainConfig c = config("", 1);
  c.gpu_memory = "300MiB";
  try {
    losses(c);
    FAIL() << "a run of more than 300 MiB was begun";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("--gpu-memory"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace agoq::train
