#include "ops/linear/gemm_library_cuda.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <vector>

#include "device/cuda.h"
#include "device/stopwatch.h"
#include "ops/library_versions.h"
#include "ops/linear/fp8_support.h"
#include "ops/linear/gemm_algorithms.h"
#include "ops/linear/linear_cuda.h"

namespace agoq::ops::cuda {
namespace {

constexpr int kCandidates = 16;  // with a workspace, and as many without one
constexpr size_t kWarmUps = 2, kRepeats = 5;

void check(cublasStatus_t status, const char* what) {
  if (status != CUBLAS_STATUS_SUCCESS) [[unlikely]]
    fail("{}: {} ({})", what, cublasLtGetStatusString(status), cublasLtGetStatusName(status));
}
#define AGOQ_CUBLAS_CHECK(call) check((call), #call)

cudaDataType_t type_of(DType dtype) {
  switch (dtype) {
    case DType::BF16:
      return CUDA_R_16BF;
    case DType::E4M3:
      return CUDA_R_8F_E4M3;
    case DType::E5M2:
      return CUDA_R_8F_E5M2;
    default:
      return CUDA_R_32F;
  }
}

cublasLtMatmulMatrixScale_t scale_mode(Granularity granularity) {
  switch (granularity) {
    case Granularity::Row:
      return CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
    case Granularity::Block1x128:
      return CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F;
    case Granularity::Block128x128:
      return CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F;
    default:
      return CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F;
  }
}

std::string text(const GemmProblem& p) {
  const auto matrix = [&](int64_t rows, Major major, const char* transpose) {
    return fmt::format("[{}, {}]{}", major == Major::K ? rows : p.k, major == Major::K ? p.k : rows, transpose);
  };
  const auto type = [](DType dtype, Granularity scales) {
    return is_fp8(dtype) ? fmt::format("{} scaled by {}", name_of(dtype), name_of(scales))
                         : std::string(name_of(dtype));
  };
  return fmt::format("{} {} · {} {} -> {}", type(p.a_type, p.a_scales),
                     matrix(p.m, p.a_major, p.a_major == Major::K ? "" : "ᵀ"), type(p.b_type, p.b_scales),
                     matrix(p.n, p.b_major, p.b_major == Major::K ? "ᵀ" : ""), name_of(p.result));
}

// The largest power of two, 16 at most, that divides the addresses of all operands.
int64_t common_alignment(const Product& p) {
  uintptr_t bits = 16;
  for (const Tensor* t : {&p.a.data, &p.b.data, &p.c, &p.residual, &p.bias})
    if (*t) bits |= reinterpret_cast<uintptr_t>(t->data);
  return int64_t{1} << std::countr_zero(bits);
}

template <class T>
void set(cublasLtMatmulDescOpaque_t& operation, cublasLtMatmulDescAttributes_t attribute, T value) {
  AGOQ_CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(&operation, attribute, &value, sizeof value));
}

// cuBLASLt thinks in columns: a row-major [m, n] is its [n, m], so cᵀ = b·aᵀ is asked for, with b first.
cublasLtMatmulDescOpaque_t operation_of(const GemmProblem& p) {
  cublasLtMatmulDescOpaque_t operation;
  AGOQ_CUBLAS_CHECK(cublasLtMatmulDescInit(&operation, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  const auto transpose = [](bool yes) { return static_cast<int32_t>(yes ? CUBLAS_OP_T : CUBLAS_OP_N); };
  set(operation, CUBLASLT_MATMUL_DESC_TRANSA, transpose(p.b_major == Major::K));
  set(operation, CUBLASLT_MATMUL_DESC_TRANSB, transpose(p.a_major == Major::MN));
  if (is_fp8(p.a_type)) {
    set(operation, CUBLASLT_MATMUL_DESC_A_SCALE_MODE, static_cast<int32_t>(scale_mode(p.b_scales)));
    set(operation, CUBLASLT_MATMUL_DESC_B_SCALE_MODE, static_cast<int32_t>(scale_mode(p.a_scales)));
    set(operation, CUBLASLT_MATMUL_DESC_FAST_ACCUM, static_cast<int8_t>(p.accumulation == Accumulation::Fast));
  }
  if (p.bias) {
    set(operation, CUBLASLT_MATMUL_DESC_EPILOGUE, static_cast<uint32_t>(CUBLASLT_EPILOGUE_BIAS));
    set(operation, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, static_cast<int32_t>(type_of(p.result)));
  }
  return operation;
}

void point_to_operands(cublasLtMatmulDescOpaque_t& operation, const Product& p) {
  if (p.bias) set(operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, static_cast<const void*>(p.bias.data));
  if (!is_fp8(p.a.dtype())) return;
  set(operation, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, static_cast<const void*>(p.b.scale.data));
  set(operation, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, static_cast<const void*>(p.a.scale.data));
}

cublasLtMatrixLayoutOpaque_t layout(const Tensor& t, int64_t stride = 0) {
  cublasLtMatrixLayoutOpaque_t matrix;
  AGOQ_CUBLAS_CHECK(cublasLtMatrixLayoutInit(&matrix, type_of(t.dtype), static_cast<uint64_t>(t.shape[1]),
                                             static_cast<uint64_t>(t.shape[0]), stride > 0 ? stride : t.shape[1]));
  return matrix;
}

// The parts of a product cut along k are added in fp32 and in one order, in the workspace: not in the type of the
// result, and not in its place, where every part is rounded to that type.
cublasLtMatmulPreferenceOpaque_t preference(const GemmProblem& p, int64_t workspace) {
  cublasLtMatmulPreferenceOpaque_t wish;
  AGOQ_CUBLAS_CHECK(cublasLtMatmulPreferenceInit(&wish));
  const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
    AGOQ_CUBLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(&wish, attribute, &value, sizeof value));
  };
  set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(workspace));
  set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
  for (const auto operand : {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                             CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES})
    set(operand, static_cast<uint32_t>(p.alignment));
  return wish;
}

// --- algorithms as text ---

std::string hex(const cublasLtMatmulAlgo_t& algorithm) {
  std::string digits;
  for (const uint64_t word : algorithm.data) digits += fmt::format("{:016x}", word);
  return digits;
}

cublasLtMatmulAlgo_t algorithm_from(const std::string& digits) {
  cublasLtMatmulAlgo_t algorithm;
  constexpr size_t kDigits = 16;
  require(digits.size() == std::size(algorithm.data) * kDigits &&
              digits.find_first_not_of("0123456789abcdef") == std::string::npos,
          "an algorithm of cuBLASLt is {} hexadecimal digits, not '{}'", std::size(algorithm.data) * kDigits, digits);
  for (size_t i = 0; i < std::size(algorithm.data); ++i)
    algorithm.data[i] = std::stoull(digits.substr(i * kDigits, kDigits), nullptr, 16);
  return algorithm;
}

// 8-bit floats have keys of their own, which problems of other types lack.
nlohmann::json to_json(const GemmProblem& p) {
  nlohmann::json j{{"m", p.m},
                   {"n", p.n},
                   {"k", p.k},
                   {"transpose_a", p.a_major == Major::MN},
                   {"transpose_b", p.b_major == Major::K},
                   {"bf16_operands", p.a_type == DType::BF16},
                   {"bf16_result", p.result == DType::BF16},
                   {"addend", static_cast<int>(p.addend)},
                   {"bias", p.bias},
                   {"alignment", p.alignment},
                   {"a_stride", p.a_stride}};
  if (!is_fp8(p.a_type)) return j;
  j["fp8_operands"] = {name_of(p.a_type), name_of(p.b_type)};
  j["scales"] = {static_cast<int>(p.a_scales), static_cast<int>(p.b_scales)};
  j["fast_accumulation"] = p.accumulation == Accumulation::Fast;
  return j;
}

GemmProblem problem_from(const nlohmann::json& j) {
  const auto is = [&](const char* key) { return j.at(key).get<bool>(); };
  const auto type = [&](const char* key) { return is(key) ? DType::BF16 : DType::F32; };
  GemmProblem p{j.at("m"),
                j.at("n"),
                j.at("k"),
                is("transpose_a") ? Major::MN : Major::K,
                is("transpose_b") ? Major::K : Major::MN,
                type("bf16_operands"),
                type("bf16_operands"),
                type("bf16_result"),
                static_cast<Addend>(j.at("addend").get<int>()),
                is("bias"),
                j.at("alignment"),
                j.at("a_stride")};
  if (!j.contains("fp8_operands")) return p;
  const auto fp8 = [&](int i) {
    const auto dtype = dtype_from_name(j.at("fp8_operands").at(i).get<std::string>());
    require(dtype && is_fp8(*dtype), "an operand in '{}' is none of 8-bit floats", j.at("fp8_operands").at(i).dump());
    return *dtype;
  };
  const auto scales = [&](int i) {
    return static_cast<Granularity>(
        std::clamp(j.at("scales").at(i).get<int>(), 0, static_cast<int>(Granularity::Block128x128)));
  };
  p.a_type = fp8(0), p.b_type = fp8(1);
  p.a_scales = scales(0), p.b_scales = scales(1);
  p.accumulation = is("fast_accumulation") ? Accumulation::Fast : Accumulation::Fp32;
  return p;
}

}  // namespace

GemmProblem problem_of(const Product& p) {
  GemmProblem problem{p.m(), p.n(), p.k(), p.a.major, p.b.major, p.a.dtype(), p.b.dtype(), p.c.dtype};
  if (p.beta != 0) problem.addend = Addend::Target;
  if (p.residual) problem.addend = Addend::Other;
  problem.bias = static_cast<bool>(p.bias);
  problem.alignment = common_alignment(p);
  problem.a_stride = p.a.stride;
  problem.a_scales = p.a.granularity;
  problem.b_scales = p.b.granularity;
  problem.accumulation = is_fp8(p.a.dtype()) ? p.accumulation : Accumulation::Fp32;
  return problem;
}

GemmLibrary::GemmLibrary(Gpu& gpu) : gpu_(gpu) {
  require_fit(cublaslt_version());
  AGOQ_CUBLAS_CHECK(cublasLtCreate(&handle_));
}

GemmLibrary::~GemmLibrary() {
  cublasLtDestroy(handle_);
}

void GemmLibrary::multiply(const Context& ctx, const Product& p, const Tensor& workspace) {
  const GemmProblem problem = problem_of(p);
  GemmPlan& planned = plan(ctx, problem, p, workspace);
  const cublasStatus_t status = run(ctx, planned, planned.algorithm, p, workspace);
  require(status == CUBLAS_STATUS_SUCCESS, "cuBLASLt cannot multiply {}: {}", text(problem),
          cublasLtGetStatusString(status));
}

GemmLibrary::GemmPlan& GemmLibrary::plan(const Context& ctx, const GemmProblem& problem, const Product& p,
                                         const Tensor& workspace) {
  if (const auto known = plans_.find(problem); known != plans_.end()) return known->second;
  if (is_fp8(problem.a_type)) require_fp8(gpu_, {problem.a_scales, problem.b_scales});
  GemmPlan planned{operation_of(problem), layout(p.b.data), layout(p.a.data, p.a.stride), layout(p.c), {}};
  point_to_operands(planned.operation, p);  // the choice of kernels for 8-bit floats looks at them
  if (const auto imported = algorithms_.find(problem); imported != algorithms_.end())
    planned.algorithm = imported->second;
  if (!algorithms_.contains(problem) || !still_runs(planned)) {
    planned.algorithm = choose(ctx, problem, planned, p, workspace);
    algorithms_[problem] = planned.algorithm;
  }
  return plans_[problem] = planned;
}

bool GemmLibrary::still_runs(GemmPlan& plan) const {
  // The answer does not know that there may be no workspace: what was chosen without one has run without.
  cublasLtMatmulHeuristicResult_t result{};
  return cublasLtMatmulAlgoCheck(handle_, &plan.operation, &plan.a, &plan.b, &plan.c, &plan.c, &plan.algorithm.kernel,
                                 &result) == CUBLAS_STATUS_SUCCESS &&
         (!plan.algorithm.has_workspace || result.workspaceSize <= static_cast<size_t>(kGemmWorkspace));
}

// At most `most` with a workspace, the library's first guess first, and as many without one.
std::vector<GemmLibrary::Algorithm> GemmLibrary::candidates(const GemmProblem& problem, GemmPlan& plan,
                                                            int most) const {
  std::vector<Algorithm> all;
  std::string error = "it names none";
  for (const bool has_workspace : {true, false}) {
    if (most == 1 && !all.empty()) break;  // the first guess is enough
    cublasLtMatmulPreferenceOpaque_t wish = preference(problem, has_workspace ? kGemmWorkspace : 0);
    std::vector<cublasLtMatmulHeuristicResult_t> found(static_cast<size_t>(most));
    int count = 0;
    const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(handle_, &plan.operation, &plan.a, &plan.b, &plan.c,
                                                                 &plan.c, &wish, most, found.data(), &count);
    if (status != CUBLAS_STATUS_SUCCESS) {
      error = cublasLtGetStatusString(status);
      continue;
    }
    found.resize(static_cast<size_t>(count));
    for (const cublasLtMatmulHeuristicResult_t& each : found)
      if (each.state == CUBLAS_STATUS_SUCCESS) all.push_back({each.algo, has_workspace});
  }
  require(!all.empty(), "cuBLASLt has no kernel for {}: {}", text(problem), error);
  return all;
}

GemmLibrary::Algorithm GemmLibrary::choose(const Context& ctx, const GemmProblem& problem, GemmPlan& plan,
                                           const Product& p, const Tensor& workspace) {
  if (!tuning_) return candidates(problem, plan, 1).front();
  const std::vector<Algorithm> all = candidates(problem, plan, kCandidates);
  const std::vector<double> times = seconds(ctx, plan, all, p, workspace);
  const auto least = std::min_element(times.begin(), times.end());
  require(std::isfinite(*least), "cuBLASLt has no kernel for {} that runs", text(problem));
  return all[static_cast<size_t>(least - times.begin())];
}

cublasStatus_t GemmLibrary::run(const Context& ctx, GemmPlan& plan, const Algorithm& algorithm, const Product& p,
                                const Tensor& workspace) const {
  const float one = 1, beta = p.residual ? 1.0f : p.beta;
  point_to_operands(plan.operation, p);
  const void* addend = p.residual ? p.residual.data : p.c.data;
  return cublasLtMatmul(handle_, &plan.operation, &one, p.b.data.data, &plan.a, p.a.data.data, &plan.b, &beta, addend,
                        &plan.c, p.c.data, &plan.c, &algorithm.kernel,
                        algorithm.has_workspace ? workspace.data : nullptr,
                        algorithm.has_workspace ? workspace.bytes() : 0, ctx.stream());
}

// Of one product by each, the median; infinite for an algorithm that does not run. They take turns: a GPU slows down
// while it works, and those that come first would seem to be the fastest.
std::vector<double> GemmLibrary::seconds(const Context& ctx, GemmPlan& plan, std::span<const Algorithm> algorithms,
                                         const Product& p, const Tensor& workspace) const {
  std::vector<double> times(algorithms.size());
  const auto run_if_possible = [&](size_t i) {
    if (!std::isinf(times[i]) && run(ctx, plan, algorithms[i], p, workspace) != CUBLAS_STATUS_SUCCESS)
      times[i] = std::numeric_limits<double>::infinity();
  };
  for (size_t repeat = 0; repeat < kWarmUps; ++repeat)
    for (size_t i = 0; i < algorithms.size(); ++i) run_if_possible(i);
  Stopwatch watch(ctx);
  watch.mark();
  for (size_t repeat = 0; repeat < kRepeats; ++repeat)
    for (size_t i = 0; i < algorithms.size(); ++i) {
      run_if_possible(i);
      watch.mark();
    }
  const std::vector<double> turns = watch.take();
  for (size_t i = 0; i < times.size(); ++i) {
    std::array<double, kRepeats> own;
    for (size_t repeat = 0; repeat < kRepeats; ++repeat) own[repeat] = turns[repeat * times.size() + i];
    std::sort(own.begin(), own.end());
    times[i] = std::max(times[i], own[kRepeats / 2]);
  }
  return times;
}

std::string GemmLibrary::export_algorithms() const {
  nlohmann::json all = nlohmann::json::array();
  for (const auto& [problem, algorithm] : algorithms_) {
    all.push_back(to_json(problem));
    all.back()["algorithm"] = hex(algorithm.kernel);
    if (!algorithm.has_workspace) all.back()["workspace"] = false;
  }
  return nlohmann::json{{"gpu", gpu_.name()}, {"cublaslt", cublasLtGetVersion()}, {"algorithms", all}}.dump(1);
}

int64_t GemmLibrary::import_algorithms(const std::string& json, KnownShapes known) {
  try {
    const nlohmann::json file = nlohmann::json::parse(json);
    if (file.at("gpu") != gpu_.name() || file.at("cublaslt") != cublasLtGetVersion()) return 0;
    int64_t taken = 0;
    for (const nlohmann::json& entry : file.at("algorithms")) {
      const GemmProblem problem = problem_from(entry);
      const Algorithm algorithm{algorithm_from(entry.at("algorithm")), entry.value("workspace", true)};
      const auto [place, added] = algorithms_.emplace(problem, algorithm);
      if (!added && known == KnownShapes::Replace) {
        place->second = algorithm;
        plans_.erase(problem);
      }
      taken += added;
    }
    return taken;
  } catch (const nlohmann::json::exception& error) {
    fail("the choices of cuBLASLt's algorithms are damaged: {}", error.what());
  }
}

}  // namespace agoq::ops::cuda

namespace agoq::ops {

GemmTuning::GemmTuning(Gpu& gpu) : gpu_(gpu) {
  gpu_.library<cuda::GemmLibrary>().set_tuning(true);
}
GemmTuning::~GemmTuning() {
  gpu_.library<cuda::GemmLibrary>().set_tuning(false);
}
std::string gemm_algorithms(Gpu& gpu) {
  return gpu.library<cuda::GemmLibrary>().export_algorithms();
}
int64_t restore_gemm_algorithms(Gpu& gpu, const std::string& json) {
  return gpu.library<cuda::GemmLibrary>().import_algorithms(json, cuda::KnownShapes::Keep);
}
void agree_on_gemm_algorithms(Gpu& gpu, const std::vector<std::string>& of_ranks) {
  for (auto json = of_ranks.rbegin(); json != of_ranks.rend(); ++json)
    gpu.library<cuda::GemmLibrary>().import_algorithms(*json, cuda::KnownShapes::Replace);
}
LibraryVersion cublaslt_version() {
  return {"cuBLASLt", {CUBLAS_VER_MAJOR, CUBLAS_VER_MINOR, CUBLAS_VER_PATCH}, decode_version(cublasLtGetVersion())};
}

}  // namespace agoq::ops
