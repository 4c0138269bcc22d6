#include "train/state_io.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "base/scratch_folder.h"
#include "model/error_of.h"
#include "parallel/tiny_state.h"

namespace agoq::train {
namespace {

using model::MasterForm;
using test::tiny_job;
using test::tiny_model;
using test::TinyState;
using testing::HasSubstr;

constexpr MasterForm kForms[] = {MasterForm::Split, MasterForm::Fp32};
constexpr DType kComputeTypes[] = {DType::F32, DType::BF16};

parallel::Job job_of(MasterForm master, DType compute) {
  parallel::Job job = tiny_job();
  job.precision.master = master;
  job.precision.compute = compute;
  return job;
}

struct Trained {
  explicit Trained(const parallel::Job& job) : state(job) {
    state->params().initialize(state->context(), 3);
    for (int i = 0; i < 3; ++i) state.step();
  }
  Checkpoint save(const ScratchFolder& folder, int64_t step = 3) {
    return Checkpoint(save_checkpoint(folder.file("checkpoints"), step, tensors_of(*state), "{}"));
  }
  TinyState state;
};

std::vector<std::vector<uint8_t>> moments_of(TinyState& state) {
  std::vector<std::vector<uint8_t>> moments;
  for (const auto& [name, tensor] : state->named_tensors())
    if (name.starts_with("exp_avg")) moments.emplace_back(tensor.raw(), tensor.raw() + tensor.bytes());
  return moments;
}

void expect_same(const std::vector<float>& got, const std::vector<float>& want) {
  ASSERT_EQ(got.size(), want.size());
  EXPECT_EQ(std::memcmp(got.data(), want.data(), got.size() * sizeof(float)), 0);
}

TEST(StateIo, EveryFormAndComputeTypeLoadsEveryOther) {
  for (const MasterForm form : kForms)
    for (const DType compute : kComputeTypes) {
      const ScratchFolder folder;
      Trained trained(job_of(form, compute));
      const Checkpoint checkpoint = trained.save(folder);
      for (const MasterForm other_form : kForms)
        for (const DType other_compute : kComputeTypes) {
          TinyState loaded(job_of(other_form, other_compute));
          load_state(checkpoint, *loaded);
          expect_same(loaded.weights(), trained.state.weights());
          EXPECT_EQ(moments_of(loaded), moments_of(trained.state));
          TinyState weights_only(job_of(other_form, other_compute));
          load_weights(checkpoint, *weights_only);
          expect_same(weights_only.weights(), trained.state.weights());
        }
    }
}

// What GEMMs read in bf16 is not in the checkpoint, and must be what it was.
TEST(StateIo, TrainingGoesOnBitForBit) {
  for (const MasterForm form : kForms)
    for (const DType compute : kComputeTypes) {
      const ScratchFolder folder;
      Trained trained(job_of(form, compute));
      const Checkpoint checkpoint = trained.save(folder);
      TinyState loaded(job_of(form, compute));
      load_state(checkpoint, *loaded);
      loaded->optimizer().set_updates(loaded->context(), trained.state->optimizer().updates(trained.state->context()));
      for (int i = 0; i < 2; ++i) {
        const double loss = trained.state.step();
        EXPECT_TRUE(std::isfinite(loss));
        EXPECT_EQ(loaded.step(), loss);
      }
      expect_same(loaded.weights(), trained.state.weights());
    }
}

TEST(StateIo, TheComputeTypeLeavesNoTrace) {
  for (const MasterForm form : kForms) {
    const ScratchFolder folder;
    Trained fp32(job_of(form, DType::F32));
    const Checkpoint first = fp32.save(folder, 1);
    TinyState bf16(job_of(form, DType::BF16));
    load_state(first, *bf16);
    const Checkpoint second(save_checkpoint(folder.file("checkpoints"), 2, tensors_of(*bf16), "{}"));
    ASSERT_EQ(second.manifest().tensors.size(), first.manifest().tensors.size());
    for (size_t i = 0; i < first.manifest().tensors.size(); ++i) {
      const ManifestTensor &a = first.manifest().tensors[i], &b = second.manifest().tensors[i];
      EXPECT_EQ(a.name, b.name);
      EXPECT_EQ(a.checksum, b.checksum) << a.name;
    }
    for (const ManifestTensor& tensor : first.manifest().tensors)
      EXPECT_THAT(tensor.name, testing::ContainsRegex("^(weights|corrections|exp_avg(_sq)?\\.(codes|scales))/"));
  }
}

TEST(StateIo, AnotherModelIsRefusedAndNothingChanges) {
  const ScratchFolder folder;
  Trained trained(tiny_job());
  const Checkpoint checkpoint = trained.save(folder);
  model::ModelConfig larger = tiny_model();
  larger.ffn_size = 192;
  TinyState other(tiny_job(larger));
  other->params().initialize(other->context(), 9);
  const std::vector<float> before = other.weights();
  EXPECT_THAT(error_of([&] { load_weights(checkpoint, *other); }), HasSubstr("'weights/layers.0.gate_up': saved bf16"));
  model::ModelConfig deeper = tiny_model();
  deeper.layers = 3;
  TinyState deep(tiny_job(deeper));
  EXPECT_THAT(error_of([&] { load_weights(checkpoint, *deep); }), HasSubstr("missing: 'weights/layers.2."));
  parallel::Job exact = tiny_job();
  exact.precision.exp_avg = codec::Codec::Fp32;
  TinyState moments(exact);
  EXPECT_THAT(error_of([&] { load_state(checkpoint, *moments); }), HasSubstr("'exp_avg.codes/"));
  expect_same(other.weights(), before);
}

}  // namespace
}  // namespace agoq::train
