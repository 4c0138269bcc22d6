// What goes with a model and is no weight, as a run keeps it: in a folder of its own in the run folder, so that the run
// works alone when the folder that it began with is gone.
#pragma once

#include <string>

#include "model/companions.h"
#include "train/config/config.h"
#include "train/coordinator.h"

namespace agoq::train {

// Of a run whose tokens are of `tokenizer` ("byte", a path, or empty: not known) and whose model came from a Hugging
// Face folder (or none, empty): the tokenizer's files, or the folder's where none is known, generation config and
// licence.
model::Companions companions_of(const std::string& tokenizer, const std::string& model_folder);

// Copies them into the run folder of `config` (resolved, its tokenizer settled) when the run begins, and leaves them as
// they are when it goes on, if it has them. From then on tokenizer and model folder are the run's own copies, on all
// ranks alike.
void keep_companions(const Coordinator& coordinator, TrainConfig& config, std::string& model_folder, bool goes_on);

}  // namespace agoq::train
