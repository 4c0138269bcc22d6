// The built-in byte tokenizer as the files of a Hugging Face tokenizer, so that AutoTokenizer loads what runs on bytes
// export: ids 0 to 255 are the bytes of UTF-8 text, 256 ends a document.
#pragma once

#include "model/companions.h"

namespace agoq::train {

model::Companions byte_tokenizer_files();

}  // namespace agoq::train
