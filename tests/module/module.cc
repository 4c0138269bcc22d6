// A shared object with the library in it, as a binding for another language would be: public header, C functions.
#include <agoq/agoq.h>

#include <cstdio>
#include <exception>
#include <string>

namespace {

agoq::Settings settings_of(const char* text) {
  agoq::Settings settings;
  settings.set("model-config", "demo");
  settings.set("device", "cpu");
  settings.set("data-path", text);
  settings.set("seq-length", "32");
  settings.set("train-iters", "1");
  return settings;
}

}  // namespace

extern "C" {

// The loss of a first step on a text file; negative, with the reason on stderr, if there was an error.
[[gnu::visibility("default")]] double agoq_module_first_loss(const char* text) {
  try {
    return agoq::train_model(settings_of(text)).loss;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return -1;
  }
}

}  // extern "C"
