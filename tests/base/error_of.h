// The message of the agoq::Error that an action throws, or "", for tests of what people get to read.
#pragma once

#include <string>

#include "base/error.h"

namespace agoq {

template <class Action>
std::string error_of(Action&& action) {
  try {
    action();
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

}  // namespace agoq
