// How help looks: one column of flags with what they take, one of explanations, wrapped.
#pragma once

#include <memory>

namespace CLI {
class FormatterBase;
class Validator;
}  // namespace CLI

namespace agoq::cli {

std::shared_ptr<CLI::FormatterBase> help_formatter();

// For ->check(): a number from 0 up, with nothing added to the help.
CLI::Validator not_negative();

}  // namespace agoq::cli
