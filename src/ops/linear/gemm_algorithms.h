// Which of cuBLASLt's kernels multiplies which shape. The fastest one is found by timing, and another kernel may round
// another way; so the choices are kept with a run (checkpoints), and a resumed run goes on with the same. Only a build
// with the CUDA backend defines these.
#pragma once

#include <string>
#include <vector>

#include "device/gpu.h"

namespace agoq::ops {

// While it lives, every shape met for the first time is multiplied by all candidates, which are timed; otherwise the
// library's first guess is taken. The results of a product that adds to its target (beta) are wrong meanwhile: tune on
// data that can be thrown away.
class GemmTuning {
 public:
  explicit GemmTuning(Gpu& gpu);
  ~GemmTuning();
  GemmTuning(const GemmTuning&) = delete;
  GemmTuning& operator=(const GemmTuning&) = delete;

 private:
  Gpu& gpu_;
};

// All choices made so far on this GPU, as JSON.
std::string gemm_algorithms(Gpu& gpu);
// Takes over such choices for shapes not met yet, and returns how many; none if they were made on another GPU or for
// another version of cuBLASLt. Error if the text is damaged.
int64_t restore_gemm_algorithms(Gpu& gpu, const std::string& json);
// `of_ranks`: gemm_algorithms of every rank, in rank order, the same on all. Of each shape all GPUs of one model take
// the choice of the first rank that has met it, so that any rank can save the choices of all, and equal shapes have
// equal bits wherever they are multiplied.
void agree_on_gemm_algorithms(Gpu& gpu, const std::vector<std::string>& of_ranks);

}  // namespace agoq::ops
