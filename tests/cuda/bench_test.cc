#include "bench/bench.h"

#include <algorithm>
#include <set>

#include "bench/steps.h"
#include "cuda/pair.h"
#include "device/stopwatch.h"
#include "train/config/config.h"
#include "train/init_source.h"

namespace agoq::bench {
namespace {

class BenchCuda : public ops::test::CudaTest {};

train::TrainConfig small_config() {
  train::TrainConfig config;
  config.model_config = "demo";
  config.seq_length = 128;
  config.device = "cuda";
  return config;
}

TEST_F(BenchCuda, AStopwatchMeasuresTheStream) {
  const Tensor a = arena->allocate(Owner::Operands, DType::U8, {int64_t{64} << 20});
  const Tensor b = arena->allocate(Owner::Operands, DType::U8, a.shape);
  Stopwatch watch(g());
  watch.mark();
  for (int i = 0; i < 10; ++i) copy(g(), a, b);
  watch.mark();
  const double seconds = watch.take().at(0);
  EXPECT_GT(seconds, 10 * 2.0 * static_cast<double>(a.bytes()) / 20e12) << "faster than any memory";
  EXPECT_LT(seconds, 1);
}

TEST_F(BenchCuda, MeasuresEveryOpAndALayer) {
  for (const char* fp8_format : {"", "e4m3", "hybrid"}) {
    train::TrainConfig given = small_config();
    given.fp8_format = fp8_format;
    const model::ModelConfig model = train::resolve_model(given);
    const parallel::RunSpec run_spec = train::make_run_spec(train::resolved(given, model, Device::Cuda), model);
    Bench bench(Device::Cuda, run_spec);
    EXPECT_GT(bench.copy_bandwidth(0.01), 1e10);
    EXPECT_GT(bench.sustained_flops(0.01), 1e9);
    std::vector<std::vector<Op>> all = {layer_ops(run_spec), end_ops(run_spec)};
    if (given.fp8_format.empty()) all.insert(all.end(), {codec_ops(run_spec), fp8_ops(run_spec)});
    for (const std::vector<Op>& ops : all)
      for (const Measured& op : bench.measure(ops, 1e-3)) EXPECT_GT(op.seconds, 0) << op.name;
    const LayerTimes layer = bench.measure_layer(0.01);
    EXPECT_GT(layer.forward, 0);
    EXPECT_GT(layer.backward, 0);
    EXPECT_GT(layer.optimizer, 0);
  }
}

// Needs libcupti, which comes with the CUDA toolkit; the error without it names it.
TEST_F(BenchCuda, ProfilesTheKernelsOfAStep) {
  const train::TrainConfig given = small_config();
  const model::ModelConfig model = train::resolve_model(given);
  try {
    const StepTimes t =
        measure_steps(train::resolved(given, model, Device::Cuda), model, Device::Cuda, 0.05, Profiled::Yes);
    ASSERT_TRUE(t.profile);
    double runs = 0;
    std::set<std::string> names;
    for (const StepProfile::Entry& entry : t.profile->entries) {
      EXPECT_GT(entry.seconds, 0) << entry.name;
      EXPECT_EQ(entry.name.find('<'), std::string::npos) << entry.name;
      runs += entry.runs;
      names.insert(entry.name);
    }
    EXPECT_GE(runs, 20.0 * static_cast<double>(model.layers)) << "a layer has more kernels, forward and backward";
    EXPECT_TRUE(std::any_of(names.begin(), names.end(), [](const auto& n) { return n.starts_with("agoq::"); }));
    EXPECT_GT(t.profile->busy_seconds, 0);
    EXPECT_LE(t.profile->busy_seconds, t.profile->step_seconds);
  } catch (const Error& error) {
    if (std::string(error.what()).find("libcupti") == std::string::npos) throw;
    GTEST_SKIP() << error.what();
  }
}

TEST_F(BenchCuda, MeasuresSteps) {
  const train::TrainConfig given = small_config();
  const model::ModelConfig model = train::resolve_model(given);
  const StepTimes t = measure_steps(train::resolved(given, model, Device::Cuda), model, Device::Cuda, 0.05);
  EXPECT_GT(t.tokens_per_second, 0);
  EXPECT_TRUE(std::isfinite(t.loss));
  EXPECT_GE(t.driver_bytes, t.planned_bytes);
}

}  // namespace
}  // namespace agoq::bench
