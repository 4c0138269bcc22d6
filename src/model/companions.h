// What belongs to a model and holds no weights: tokenizer, chat templates, generation config, licence. Only files on a
// list of known names travel from folder to folder, and none through a link that leads out of its folder.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace agoq::model {

struct Companion {
  std::string name;  // in the new folder; may have one folder of its own, "additional_chat_templates/rag.jinja"
  std::string content;
};
using Companions = std::vector<Companion>;

// Tokenizer and chat templates of a Hugging Face folder, or of a tokenizer.json and the folder that it lies in. None
// where nothing is there. A link that leads out of the folder is told as a warning and passed over.
Companions tokenizer_files(const std::filesystem::path& tokenizer);
// generation_config.json of a folder.
Companions generation_files(const std::filesystem::path& folder);
// Licence, notice and use policy of a folder.
Companions licence_files(const std::filesystem::path& folder);

// Whether a tokenizer is among them that `agoq data` and `agoq generate` read.
bool has_tokenizer(const Companions& files);

// "tokenizer.json, LICENSE".
std::string names_of(const Companions& files);

// Into a folder that exists. Every file appears complete.
void write_companions(const Companions& files, const std::filesystem::path& folder);

}  // namespace agoq::model
