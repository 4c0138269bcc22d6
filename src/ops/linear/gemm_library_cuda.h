// cuBLASLt on one GPU: its handle, and for each problem met the descriptors and the algorithm.
#pragma once

#include <cublasLt.h>

#include <compare>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "device/context.h"
#include "ops/linear/product.h"

namespace agoq::ops::cuda {

// What is added to the product before it is stored.
enum class Addend : uint8_t { None, Target, Other };

// All that the choice of an algorithm depends on.
struct GemmProblem {
  int64_t m = 0, n = 0, k = 0;  // row-major: c [m, n]
  Major a_major = Major::K, b_major = Major::K;
  DType a_type = DType::BF16, b_type = DType::BF16, result = DType::BF16;
  Addend addend = Addend::None;
  bool bias = false;
  int64_t alignment = 16;  // every address is a multiple of it, in bytes
  int64_t a_stride = 0;    // Operand::stride
  Granularity a_scales = Granularity::None, b_scales = Granularity::None;
  Accumulation accumulation = Accumulation::Fp32;
  auto operator<=>(const GemmProblem&) const = default;
};
GemmProblem problem_of(const Product& p);

// What imported choices do to a shape that has one already.
enum class KnownShapes : uint8_t { Keep, Replace };

class GemmLibrary {
 public:
  explicit GemmLibrary(Gpu& gpu);
  ~GemmLibrary();
  GemmLibrary(const GemmLibrary&) = delete;
  GemmLibrary& operator=(const GemmLibrary&) = delete;

  // On the stream of the context. Products on several streams at once each need a workspace of their own.
  void multiply(const Context& ctx, const Product& p, const Tensor& workspace);

  void set_tuning(bool on) { tuning_ = on; }
  std::string export_algorithms() const;
  int64_t import_algorithms(const std::string& json, KnownShapes known);

 private:
  // Most kernels keep a count of tiles in a workspace, which a memset before them clears. Without a workspace they run
  // alone and deal out their tiles beforehand. The library is asked for kernels of both kinds.
  struct Algorithm {
    cublasLtMatmulAlgo_t kernel{};
    bool has_workspace = true;
  };
  // Everything of a call but the addresses.
  struct GemmPlan {
    cublasLtMatmulDescOpaque_t operation{};
    cublasLtMatrixLayoutOpaque_t a{}, b{}, c{};
    Algorithm algorithm{};
  };

  GemmPlan& plan(const Context& ctx, const GemmProblem& problem, const Product& p, const Tensor& workspace);
  bool still_runs(GemmPlan& plan) const;
  std::vector<Algorithm> candidates(const GemmProblem& problem, GemmPlan& plan, int most) const;
  Algorithm choose(const Context& ctx, const GemmProblem& problem, GemmPlan& plan, const Product& p,
                   const Tensor& workspace);
  cublasStatus_t run(const Context& ctx, GemmPlan& plan, const Algorithm& algorithm, const Product& p,
                     const Tensor& workspace) const;
  std::vector<double> seconds(const Context& ctx, GemmPlan& plan, std::span<const Algorithm> algorithms,
                              const Product& p, const Tensor& workspace) const;

  Gpu& gpu_;
  cublasLtHandle_t handle_ = nullptr;
  bool tuning_ = false;
  std::map<GemmProblem, Algorithm> algorithms_;  // chosen here or imported
  std::map<GemmProblem, GemmPlan> plans_;
};

}  // namespace agoq::ops::cuda
