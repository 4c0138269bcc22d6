// Any bytes at all are either a config.json whose model has sane sizes and which can be written again, or an
// agoq::Error that names the file.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "base/error.h"
#include "input_limit.h"
#include "model/model_config.h"

namespace {

using agoq::model::ModelConfig;

void demand(bool condition) {
  if (!condition) std::abort();
}

bool same(const ModelConfig& a, const ModelConfig& b) {
  return a.parameters() == b.parameters() && a.heads.kv == b.heads.kv && a.heads.dim == b.heads.dim &&
         a.norm_eps == b.norm_eps && a.rope.theta == b.rope.theta && a.rope.linear_factor == b.rope.linear_factor &&
         a.rope.llama3.has_value() == b.rope.llama3.has_value() && a.window == b.window &&
         a.max_positions == b.max_positions && a.init_std == b.init_std;
}

void check_sizes(const ModelConfig& config) {
  demand(config.parameters() > 0);
  demand(config.flops_per_token(4096) > 0);
  demand(config.heads.query % config.heads.kv == 0);
  demand(config.heads.dim > 0 && config.heads.dim % 2 == 0);
  demand(config.window >= 0);
  demand(config.norm_eps > 0);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const InputLimit limit;
  const std::string text(reinterpret_cast<const char*>(data), size);
  ModelConfig config;
  try {
    config = agoq::model::config_from_json(text, "fuzz.json");
  } catch (const agoq::Error& error) {
    demand(std::string_view(error.what()).find("fuzz.json") != std::string_view::npos);
    return 0;
  }
  check_sizes(config);
  demand(
      same(config, agoq::model::config_from_json(agoq::model::config_to_json(config, agoq::DType::BF16), "kept.json")));
  ModelConfig fresh = config;
  fresh.original_json.clear();
  demand(same(config, agoq::model::config_from_json(agoq::model::config_to_json(fresh), "fresh.json")));
  return 0;
}
