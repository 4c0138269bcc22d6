#include <algorithm>
#include <array>
#include <cmath>

#include "base/error.h"
#include "base/philox.h"
#include "base/text.h"
#include "device/transfer.h"
#include "ops/attention/attention_check.h"
#include "ops/library_versions.h"

namespace agoq::ops {
namespace {

constexpr int64_t kSequence = 256;
constexpr int64_t kTokens = 2 * kSequence;
constexpr int64_t kLongestWindow = 96;  // shorter than a document, so that it cuts
// The library rounds the weights of the softmax and their gradients to bf16 before they meet v, q and k.
constexpr double kForwardBound = 0x1p-8 * 1.5, kBackwardBound = 0x1p-6;

struct Case {
  std::string path;
  std::vector<int32_t> offsets;  // of documents, then kTokens
  uint32_t seed;                 // of its own, so that a result that was not written is not right by chance
};
const Case kDense{"dense", {0, kSequence, kTokens}, 1};
const Case kPacked{"packed", {0, 100, kSequence, 293, kTokens}, 2};

struct Inputs {
  Tensor qkv, d_o;
};
struct Results {
  std::vector<float> o, o_alone, dqkv;  // o_alone: where no lse is kept, as in evaluation
};

// Standard normal numbers.
void fill(const Context& ctx, const Tensor& x, uint32_t seed) {
  std::vector<Bf16> host(static_cast<size_t>(x.count()));
  for (size_t i = 0; i + 1 < host.size(); i += 2) {
    const Philox4 words = philox4x32_7({static_cast<uint32_t>(i), 0, 0, 0}, {seed, 0});
    const std::array<float, 2> pair = normal_pair(words[0], words[1]);
    host[i] = to_bf16(pair[0]), host[i + 1] = to_bf16(pair[1]);
  }
  upload(ctx, host.data(), x);
}

std::vector<float> on_host(const Context& ctx, const Tensor& x) {
  std::vector<Bf16> bits(static_cast<size_t>(x.count()));
  download(ctx, x, bits.data());
  std::vector<float> values(bits.size());
  for (size_t i = 0; i < bits.size(); ++i) values[i] = to_float(bits[i]);
  return values;
}

Context batch_of(const Case& c, Arena& arena, bool deterministic) {
  Context ctx(arena, Device::Cuda, DType::BF16);
  ctx.deterministic = deterministic;
  ctx.document_start = arena.allocate(Owner::Operands, DType::I32, {kTokens});
  ctx.documents = {kSequence, static_cast<int64_t>(c.offsets.size()) - 1, 0,
                   arena.allocate(Owner::Operands, DType::I32, {kTokens + 1})};
  std::vector<int32_t> starts, offsets = c.offsets;
  for (size_t i = 0; i + 1 < offsets.size(); ++i) {
    const int32_t length = offsets[i + 1] - offsets[i];
    ctx.documents.longest = std::max<int64_t>(ctx.documents.longest, length);
    starts.insert(starts.end(), static_cast<size_t>(length), offsets[i]);
  }
  offsets.resize(kTokens + 1);
  if (ctx.meta()) return ctx;
  upload(ctx, starts.data(), ctx.document_start);
  upload(ctx, offsets.data(), ctx.documents.offsets);
  return ctx;
}

Results compute(const Context& ctx, const Inputs& in, const AttentionSpec& spec, bool backward) {
  Scope scope(ctx);
  const Tensor lse = ctx.empty(DType::F32, {spec.heads.query, kTokens});
  const Tensor o = attention(ctx, in.qkv, spec, lse), o_alone = attention(ctx, in.qkv, spec);
  const Tensor dqkv = backward ? attention_backward(ctx, in.d_o, in.qkv, o, lse, spec) : Tensor{};
  if (ctx.meta()) return {};
  return {on_host(ctx, o), on_host(ctx, o_alone), backward ? on_host(ctx, dqkv) : std::vector<float>{}};
}

double relative_error(const std::vector<float>& own, const std::vector<float>& library, int64_t row, int64_t begin,
                      int64_t end) {
  double error = 0, size = 0;
  for (int64_t token = 0; token < kTokens; ++token)
    for (auto i = static_cast<size_t>(token * row + begin); i < static_cast<size_t>(token * row + end); ++i) {
      const double difference = double{library[i]} - double{own[i]};
      error += difference * difference, size += double{own[i]} * double{own[i]};
    }
  return std::sqrt(error / size);
}

// The library and then our own kernels, which a GPU takes where the host does not know the documents.
void run_case(const Case& c, Arena& arena, const AttentionSpec& spec, const AttentionPaths& paths,
              std::vector<AttentionAnswer>& answers) {
  const Heads& heads = spec.heads;
  Context ctx = batch_of(c, arena, paths.deterministic);
  const Inputs in{arena.allocate(Owner::Operands, DType::BF16, {kTokens, heads.cols()}),
                  arena.allocate(Owner::Operands, DType::BF16, {kTokens, heads.q_cols()})};
  if (!ctx.meta()) fill(ctx, in.qkv, c.seed), fill(ctx, in.d_o, c.seed + 100);
  const Results library = compute(ctx, in, spec, paths.backward);
  ctx.documents.count = 0;
  const Results own = compute(ctx, in, spec, paths.backward);
  if (ctx.meta()) return;
  const std::string path = spec.window > 0 ? fmt::format("{}, window {}", c.path, spec.window) : c.path;
  const auto error_of_o = [&](const std::vector<float>& o) {
    return relative_error(own.o, o, heads.q_cols(), 0, heads.q_cols());
  };
  answers.push_back({path, "o", error_of_o(library.o), kForwardBound});
  answers.push_back({path, "o without lse", error_of_o(library.o_alone), kForwardBound});
  if (!paths.backward) return;
  const std::array<int64_t, 4> borders = {0, heads.k_begin(), heads.v_begin(), heads.cols()};
  const std::array<const char*, 3> names = {"dq", "dk", "dv"};
  for (size_t i = 0; i < names.size(); ++i)
    answers.push_back({path, names[i], relative_error(own.dqkv, library.dqkv, heads.cols(), borders[i], borders[i + 1]),
                       kBackwardBound});
}

}  // namespace

std::vector<AttentionAnswer> check_attention(Gpu& gpu, const AttentionSpec& given, const AttentionPaths& paths) {
  std::vector<int64_t> windows = {0};  // which documents shorter than the window take, too
  if (given.window > 0) windows.push_back(std::min(given.window, kLongestWindow));
  std::vector<AttentionAnswer> answers;
  for (const int64_t window : windows)
    for (const Case* c : {&kDense, &kPacked}) {
      if (c == &kPacked && !paths.packed) continue;
      const AttentionSpec spec{given.heads, window};
      Arena dry(Device::Meta, 0);
      run_case(*c, dry, spec, paths, answers);
      Arena arena(gpu, dry.total_bytes());
      run_case(*c, arena, spec, paths, answers);
    }
  return answers;
}

void require_right_attention(Gpu& gpu, const AttentionSpec& spec, const AttentionPaths& paths) {
  const LibraryVersion library = cudnn_version();
  require_fit(library);
  constexpr const char* kRemedy =
      "use another version of cuDNN (LD_LIBRARY_PATH), or --compute-dtype fp32, which takes our own kernels; `agoq "
      "doctor` repeats this test";
  std::vector<AttentionAnswer> answers;
  try {
    answers = check_attention(gpu, spec, paths);
  } catch (const Error& error) {
    fail("{} {} fails in the test of attention before step 0: {}; {}", library.name, library.text(), error.what(),
         kRemedy);
  }
  std::vector<std::string> wrong;
  for (const AttentionAnswer& answer : answers)
    if (!answer.right())
      wrong.push_back(fmt::format("{} ({}) is off by {:.2g}, at most {:.2g} is rounding", answer.result, answer.path,
                                  answer.error, answer.bound));
  require(wrong.empty(), "{} {} computes attention wrongly on this GPU ({}): {}; {}", library.name, library.text(),
          gpu.name(), join(wrong, "; "), kRemedy);
}

}  // namespace agoq::ops
