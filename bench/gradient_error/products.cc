#include "gradient_error/products.h"

#include "base/text.h"

namespace agoq::bench {
namespace {

// As the settings of `agoq train` make them.
model::Fp8Layers layers_from_name(const std::string& name, const model::ModelConfig& model) {
  require(name != "delayed", "--products: delayed takes its scales from earlier steps, and here there is one");
  train::TrainConfig config;
  const bool hybrid = name == "hybrid";
  config.fp8_format = hybrid ? "hybrid" : "e4m3";
  config.fp8_recipe = hybrid ? "rowwise" : name;
  return train::make_run_spec(train::resolved(config, model, Device::Cpu, 1), model).precision.fp8;
}

void make_dw_by(const std::string& name, ops::Fp8Recipe& recipe) {
  const auto share = [&](ops::Granularity granularity) {
    recipe.dw_dy = {recipe.dy.dtype, granularity};
    recipe.dw_x = {recipe.x.dtype, granularity};
  };
  if (name == "rowwise") return share(ops::Granularity::Row);
  if (name == "tensorwise") return share(ops::Granularity::Tensor);
  if (name == "blockwise") return share(ops::Granularity::Block1x128);
  require(name == "bf16", "--products: dW is made rowwise, tensorwise, blockwise or in bf16, not '{}'", name);
  recipe.dw_dy = recipe.dw_x = {DType::BF16, ops::Granularity::None};
}

}  // namespace

Products products_from_name(const std::string& name, const model::ModelConfig& model) {
  if (name == "exact") return {};
  if (name == "bf16") return {DType::BF16, {}};
  const std::vector<std::string> parts = split(name, '/');
  require(parts.size() <= 2, "--products: '{}' has more than one '/'", name);
  Products products = {DType::F32, layers_from_name(parts.front(), model)};
  if (parts.size() == 2) make_dw_by(parts.back(), *products.fp8.recipe);
  return products;
}

}  // namespace agoq::bench
