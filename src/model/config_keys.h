// Keys of a config.json that the reader does not compute with. Each is known to change nothing, or may have one value
// only, or is refused: a key that is passed over would be a model that computes something else than transformers'.
#pragma once

#include <string_view>
#include <vector>

#include "model/config_fields.h"

namespace agoq::model {

// Removes "a,b.c" from the file's content: --ignore-config-keys. What is not there is not missed.
void erase_keys(ConfigJson& json, std::string_view keys);

// Refuses the values that transformers computes with and this code does not ("is_causal": false).
void check_fixed_keys(const ConfigFields& fields, std::string_view model_type);

// Refuses those of `unread` that are not known to change nothing, all at once, and names the flag that goes on.
void refuse_unknown(const ConfigFields& fields, const std::vector<std::string>& unread, std::string_view model_type);

}  // namespace agoq::model
