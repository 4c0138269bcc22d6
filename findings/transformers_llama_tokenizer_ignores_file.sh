#!/usr/bin/env bash
# transformers 5.24.0, tokenizers 0.23.3 (Python 3.11, no torch)
#
# AutoTokenizer reads only the vocabulary, the merges and the post-processor of a tokenizer.json whose class is
# LlamaTokenizer. Normalizer, pre-tokenizer and decoder of the file are replaced by built-in ones, and nothing warns. The
# same file under the class PreTrainedTokenizerFast is read as it is. Seen, for a file that lowers all letters and
# cuts text at spaces:
#
#   file                     ids of 'Go on'   [2, 5, 1, 5, 4]   g o ▁ o n
#   PreTrainedTokenizerFast  ids of 'Go on'   [2, 5, 1, 5, 4]   g o ▁ o n
#   LlamaTokenizer           ids of 'Go on'   [6, 6, 4]         ▁o ▁o n
#
# Without the normalizer 'G' is no token of the vocabulary. The built-in settings have no unknown token either, so the
# letter is left out, and what remains is joined across it.
#
# Exits non-zero if the ids agree, or differ from these.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0 tokenizers==0.23.3 numpy
cd "$folder"
TRANSFORMERS_VERBOSITY=error venv/bin/python - <<'PYTHON'
import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer

TEXT = "Go on"
vocabulary = ["<unk>", "\u2581", "g", "\u2581g", "n", "o", "\u2581o"]
inner = Tokenizer(models.BPE(vocab={token: at for at, token in enumerate(vocabulary)},
                             merges=[("\u2581", "g"), ("\u2581", "o")], unk_token="<unk>", fuse_unk=True))
inner.normalizer = normalizers.Lowercase()
inner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(" ", "isolated"),
                                               pre_tokenizers.Metaspace(prepend_scheme="never", split=True)])
inner.decoder = decoders.Metaspace(prepend_scheme="never")

folder = Path("model")
folder.mkdir()
inner.save(str(folder / "tokenizer.json"))
(folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
seen = {"file": inner.encode(TEXT).ids}
for name in ("PreTrainedTokenizerFast", "LlamaTokenizer"):
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name, "unk_token": "<unk>"}))
    seen[name] = AutoTokenizer.from_pretrained(str(folder))(TEXT, add_special_tokens=False)["input_ids"]
for name, ids in seen.items():
    print(f"{name:24} ids of {TEXT!r}   {str(ids):16}", *(vocabulary[at] for at in ids))
assert seen["file"] == seen["PreTrainedTokenizerFast"] == [2, 5, 1, 5, 4], seen
assert seen["LlamaTokenizer"] == [6, 6, 4], "the behaviour has changed"
PYTHON
