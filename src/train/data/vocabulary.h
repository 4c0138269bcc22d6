// Which string each token id of a tokenizer stands for, read from its files without Python.
#pragma once

#include <optional>
#include <string>

namespace agoq::train {

// The hash of the vocabulary, added tokens included: 16 hexadecimal digits, as python/agoq/vocabulary.py defines it and
// `agoq data` writes it into PREFIX.json. Merges, normalizers and the like are not in it. `tokenizer` is "byte", a
// tokenizer.json, or a folder with one (or with GPT-2's vocab.json and merges.txt). None where there are no such files;
// an error that names the file where one cannot be read.
std::optional<std::string> vocabulary_hash(const std::string& tokenizer);

}  // namespace agoq::train
