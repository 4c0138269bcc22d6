// Bytes by owner beside those of unquantized training of the same model.
#pragma once

#include <string>

#include "plan/layout.h"

namespace agoq::cli {

// owner | AGoQ | share | bf16/fp32, with a total and its ratio.
std::string memory_table(const plan::Layout& layout, const plan::Layout& reference);

}  // namespace agoq::cli
