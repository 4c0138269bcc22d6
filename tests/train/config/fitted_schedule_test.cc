#include "train/config/fitted_schedule.h"

#include <gtest/gtest.h>

#include <cmath>

namespace agoq::train {
namespace {

TrainConfig schedule() {
  TrainConfig config;
  config.train_iters = config.lr_decay_iters = 400;
  config.lr_warmup_iters = 40;
  config.lr = 1e-3;
  config.min_lr = 1e-4;
  config.eval_interval = 0;
  config.eval_iters = 6;
  return config;
}

TEST(SpeedMeter, LeavesOutTheFirstStepAndWaitsForATwentiethOfTheTime) {
  SpeedMeter meter(1);
  meter.step(5);  // warms up
  EXPECT_FALSE(meter.seconds_per_step());
  meter.step(1);
  meter.step(1.5);
  EXPECT_FALSE(meter.seconds_per_step()) << "2.5 of 3 seconds";
  meter.step(1.25);
  EXPECT_DOUBLE_EQ(meter.seconds_per_step().value(), 1.25);
}

TEST(SpeedMeter, TakesTheFirstStepOfASlowMachineForWhatItIs) {
  SpeedMeter meter(1);
  meter.step(20);
  EXPECT_DOUBLE_EQ(meter.seconds_per_step().value(), 20);
}

// 3 steps done, 0.5 s each, 2 micro-batches a step: the evaluation at the end is 6 forward passes of 0.5 / 2 / 3 s.
TEST(FittedSchedule, EndsInTime) {
  const TrainConfig c = fitted(schedule(), 3, 0.5, 50.5, 2);
  EXPECT_EQ(c.train_iters, 3 + 100);
  // Evaluations on the way as well: each 10 steps of 0.5 s cost 0.5 s more.
  TrainConfig evaluated = schedule();
  evaluated.eval_interval = 10;
  EXPECT_EQ(fitted(evaluated, 3, 0.5, 0.5 + 5.5 * 7, 2).train_iters, 3 + 70);
}

TEST(FittedSchedule, KeepsTheSharesOfWarmUpAndDecay) {
  const TrainConfig c = fitted(schedule(), 4, 1, 97, 2);
  ASSERT_EQ(c.train_iters, 100);
  EXPECT_EQ(c.lr_warmup_iters, 10);
  EXPECT_EQ(c.lr_decay_iters, 100);
  EXPECT_DOUBLE_EQ(learning_rate(c, 9), 1e-3);
  EXPECT_NEAR(learning_rate(c, 99), 1e-4, 1e-6) << "the decay ends with the run";
  TrainConfig decays_early = schedule();
  decays_early.lr_decay_iters = 200;
  EXPECT_EQ(fitted(decays_early, 4, 1, 97, 2).lr_decay_iters, 50);
}

TEST(FittedSchedule, StaysAsItIsWhereAllStepsFit) {
  const TrainConfig c = fitted(schedule(), 4, 0.01, 60, 2);
  EXPECT_EQ(c.train_iters, 400);
  EXPECT_EQ(c.lr_warmup_iters, 40);
}

TEST(FittedSchedule, EndsAtOnceWhereTheTimeIsUp) {
  EXPECT_EQ(fitted(schedule(), 2, 30, -1, 2).train_iters, 2);
  EXPECT_EQ(fitted(schedule(), 400, 30, -1, 2).train_iters, 400);
}

}  // namespace
}  // namespace agoq::train
