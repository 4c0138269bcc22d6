// Any text is either a list of settings that can be written and read again, or an agoq::Error that names the file.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "base/error.h"
#include "input_limit.h"
#include "train/config/flat_toml.h"
#include "train/config/settings.h"

namespace {

void demand(bool condition) {
  if (!condition) std::abort();
}

template <class Action>
void only_named_errors(Action action) {
  try {
    action();
  } catch (const agoq::Error& error) {
    demand(std::string_view(error.what()).starts_with("fuzz.toml:"));
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const InputLimit limit;
  using namespace agoq::train;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  only_named_errors([&] {
    for (const TomlEntry& entry : parse_flat_toml(text, "fuzz.toml")) {
      const auto again = parse_flat_toml(toml_string(entry.key) + " = " + toml_array(entry.words), "again");
      demand(again.size() == 1 && again[0].key == entry.key && again[0].words == entry.words);
    }
  });
  only_named_errors([&] {
    TrainConfig config, again;
    read_toml(config, text, "fuzz.toml");
    read_toml(again, to_toml(config), "again");
    demand(to_toml(again) == to_toml(config));
  });
  return 0;
}
