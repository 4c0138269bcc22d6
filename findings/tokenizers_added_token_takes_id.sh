#!/usr/bin/env bash
# tokenizers 0.23.3 (Python 3.11)
#
# add_tokens() gives a new token the number of tokens as its id, whether or not that id is taken. In a vocabulary whose
# ids have gaps, which from_file() and the models accept, a new token can so get the id of another one; nothing warns.
# Ids of the old token then decode as the new one. Seen, with a: 0, b: 1, c: 4:
#
#   ids after add_tokens(["x", "y"])   {'a': 0, 'b': 1, 'c': 4, 'x': 3, 'y': 4}
#   'c' encodes as [4], which decodes as 'y'
#
# Exits non-zero if ids of two tokens are no longer equal.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check tokenizers==0.23.3
"$folder/venv/bin/python" - <<'PYTHON'
from tokenizers import Tokenizer, models

tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "c": 4}, unk_token="a"))
tokenizer.add_tokens(["x", "y"])
ids = {token: tokenizer.token_to_id(token) for token in "abcxy"}
print('ids after add_tokens(["x", "y"])  ', ids)
encoded = tokenizer.encode("c").ids
print(f"'c' encodes as {encoded}, which decodes as {tokenizer.decode(encoded)!r}")
assert ids["y"] == ids["c"] == 4, "the behaviour has changed"
assert tokenizer.decode(encoded) == "y", "the behaviour has changed"
PYTHON
