// AGoQ as a library: plans and trains a small model on a text file.
//
//   train_tiny TEXT [STEPS]
#include <agoq/agoq.h>

#include <cstdio>
#include <exception>
#include <string>

namespace {

void print_plan(const agoq::MemoryPlan& plan) {
  for (const agoq::OwnerMemory& owner : plan.owners)
    std::printf("%-24s %12llu bytes, %12llu in bf16/fp32\n", owner.owner.c_str(),
                static_cast<unsigned long long>(owner.bytes), static_cast<unsigned long long>(owner.reference_bytes));
  std::printf("%-24s %12llu bytes, %12llu in bf16/fp32\n\n", "total", static_cast<unsigned long long>(plan.total),
              static_cast<unsigned long long>(plan.reference_total));
}

bool print_step(const agoq::TrainingStep& step) {
  std::printf("step %lld/%lld: loss %.4f, %.0f tokens/s\n", static_cast<long long>(step.step),
              static_cast<long long>(step.total_steps), step.loss, step.tokens_per_second);
  return true;  // go on
}

void train(const std::string& text, const std::string& steps) {
  agoq::Settings settings;
  settings.set("model-config", "demo");
  settings.set("data-path", text);
  settings.set("train-iters", steps);
  settings.set("seq-length", "64");
  settings.set("micro-batch-size", "4");
  settings.set("global-batch-size", "8");
  settings.set("lr", "2e-3");

  print_plan(agoq::plan_memory(settings));
  const agoq::TrainingResult result = agoq::train_model(settings, print_step);
  std::printf("\n%llu tokens, loss %.4f, %.2f bytes per parameter\n", static_cast<unsigned long long>(result.tokens),
              result.loss, result.bytes_per_parameter);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: %s TEXT [STEPS]\n", argv[0]);
    return 2;
  }
  try {
    train(argv[1], argc > 2 ? argv[2] : "20");
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", argv[0], error.what());
    return 1;
  }
}
