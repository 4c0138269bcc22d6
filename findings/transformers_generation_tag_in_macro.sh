#!/usr/bin/env bash
# transformers 5.24.0, tokenizers 0.23.3, jinja2 3.1.6 (Python 3.11, no torch)
#
# apply_chat_template(..., return_assistant_tokens_mask=True) marks the wrong text if {% generation %} is rendered inside
# a macro, a {% set %} block or a {% filter %} block. Text and ids are right, and nothing warns. Seen:
#
#   plain   text marked as the assistant's: 'Four.;' 'Six.;'
#   macro   text marked as the assistant's: 'assist' 'assis'
#   set     text marked as the assistant's: 'assist' 'assis'
#   filter  text marked as the assistant's: 'assist' 'assis'
#
# Why: a span begins at the length of what the template has handed out so far. A macro, `set` or `filter` hands its text
# out only when it is complete, so the span begins where that text begins, not where the tag stands within it.
#
# Exits non-zero if the masks agree (then the behaviour has changed), or if the texts differ.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  transformers==5.24.0 tokenizers==0.23.3 jinja2==3.1.6 numpy
cd "$folder"
TRANSFORMERS_VERBOSITY=error venv/bin/python - <<'PYTHON'
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
inner = Tokenizer(models.BPE(vocab={letter: at for at, letter in enumerate(alphabet)}, merges=[]))  # a token is a byte
inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
inner.decoder = decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)

TALK = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "Four."},
        {"role": "user", "content": "3+3?"}, {"role": "assistant", "content": "Six."}]
TURN = ("{{ m.role }}: {% if m.role == 'assistant' %}{% generation %}{{ m.content }};{% endgeneration %}"
        "{% else %}{{ m.content }}{% endif %}{{ '\\n' }}")
TEMPLATES = {
    "plain": "{% for m in messages %}" + TURN + "{% endfor %}",
    "macro": "{% macro turn(m) %}" + TURN + "{% endmacro %}{% for m in messages %}{{ turn(m) }}{% endfor %}",
    "set": "{% for m in messages %}{% set turn %}" + TURN + "{% endset %}{{ turn }}{% endfor %}",
    "filter": "{% for m in messages %}{% filter trim %}" + TURN + "{% endfilter %}{{ '\\n' }}{% endfor %}",
}

texts, marked = set(), {}
for name, template in TEMPLATES.items():
    out = tokenizer.apply_chat_template(TALK, chat_template=template, return_dict=True, return_assistant_tokens_mask=True)
    text = tokenizer.decode(out["input_ids"])
    covered = "".join(letter if keep else "\0" for letter, keep in zip(text, out["assistant_masks"], strict=True))
    texts.add(text)
    marked[name] = [part for part in covered.split("\0") if part]
    print(f"{name:7} text marked as the assistant's:", *map(repr, marked[name]))

assert len(texts) == 1, texts
assert marked["plain"] == ["Four.;", "Six.;"], marked["plain"]
assert all(marked[name] != marked["plain"] for name in ("macro", "set", "filter")), "the behaviour has changed"
PYTHON
