"""Chat templates and prompt masks: what counts must be what the assistant wrote, for templates of every habit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import CHATML, Refuse, Run
from megatron import read_dataset

from agoq.chat import ChatEncoder, ChatTemplate
from agoq.command import UserError
from agoq.tokenizer import ByteTokenizer, load_tokenizer

TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "café?"},
        {"role": "assistant", "content": "Yes, Zürich."}, {"role": "user", "content": "And 東京?"},
        {"role": "assistant", "content": "No."}]

WITH_GENERATION = """\
{%- for m in messages %}
  {%- if m.role == 'assistant' %}A: {% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{{ '\\n' }}
  {%- else %}{{ m.role[0] }}: {{ m.content }}{{ '\\n' }}{% endif %}
{%- endfor %}"""

# Only the last turn shows an (empty) thought, so an earlier turn renders differently alone than in the conversation.
THINKING = """\
{%- for m in messages %}<|im_start|>{{ m.role }}
{% if m.role == 'assistant' and loop.last %}<think>

</think>

{% endif %}{{ m.content | trim }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

NO_CLOSING = ("{% for m in messages %}{{ m.role | upper }}: {{ m.content }}\\n{% endfor %}"
              "{% if add_generation_prompt %}ASSISTANT: {% endif %}").replace("\\n", "{{ '\\n' }}")

STRICT = ("{% if messages[-1].role == 'user' and not add_generation_prompt %}"
          "{{ raise_exception('must end with the assistant') }}{% endif %}" + NO_CLOSING)


def counted(source: str, talk: list[dict[str, str]]) -> list[str]:
    text, spans = ChatTemplate(source, {}).render_with_spans(talk)
    return [text[begin:end] for begin, end in spans]


@pytest.mark.parametrize("source, expected", [
    (CHATML, ["Yes, Zürich.<|im_end|>\n", "No.<|im_end|>\n"]),
    (WITH_GENERATION, ["Yes, Zürich.<|im_end|>", "No.<|im_end|>"]),
    (THINKING, ["Yes, Zürich.<|im_end|>\n", "<think>\n\n</think>\n\nNo.<|im_end|>\n"]),
    (NO_CLOSING, ["Yes, Zürich.\n", "No.\n"]),
    (STRICT, ["Yes, Zürich.\n", "No.\n"]),
])
def test_spans(source: str, expected: list[str]) -> None:
    assert counted(source, TALK) == expected


def test_generation_tag_leaves_no_trace() -> None:
    text, _ = ChatTemplate(WITH_GENERATION, {}).render_with_spans(TALK)
    assert text == "s: Be brief.\nu: café?\nA: Yes, Zürich.<|im_end|>\nu: And 東京?\nA: No.<|im_end|>\n"


def test_content_that_repeats_or_is_empty() -> None:
    talk = [{"role": "user", "content": "No."}, {"role": "assistant", "content": "No."},
            {"role": "user", "content": "assistant"}, {"role": "assistant", "content": ""}]
    assert counted(CHATML, talk) == ["No.<|im_end|>\n", "<|im_end|>\n"]
    assert counted(CHATML, talk[:1]) == []


def test_template_that_cannot_be_told_apart_is_refused() -> None:
    counts_messages = "{{ messages | length }} {% for m in messages %}{{ m.content | length }}{% endfor %}"
    with pytest.raises(UserError, match=r"message 3 differently .* generation"):
        counted(counts_messages, TALK)


def test_templates_are_sandboxed() -> None:
    encoder = ChatEncoder(ByteTokenizer(), "{{ messages.append(1) }}", None)
    with pytest.raises(UserError, match="line 1: the chat template refuses"):
        encoder.encode({"messages": TALK}, "line 1")
    with pytest.raises(UserError, match="does not parse: line 1"):
        ChatTemplate("{% for %}", {})


def test_variables_of_the_template() -> None:
    source = "{{ bos_token }}{{ messages[0].content | tojson }}{{ tools[0].name }}"
    template = ChatTemplate(source, {"bos_token": "<s>"})
    assert template.render([{"role": "user", "content": "<é>"}], tools=[{"name": "f"}]) == '<s>"<é>"f'


def test_mask_of_tokens(tokenizer_folder: Path) -> None:
    tokenizer = load_tokenizer(str(tokenizer_folder))
    ids, mask = ChatEncoder(tokenizer, tokenizer.chat_template or "", None).encode({"messages": TALK}, "")
    kept = [int(i) for i, keep in zip(ids, mask, strict=True) if keep]
    assert tokenizer.inner.decode(kept, skip_special_tokens=False) == "Yes, Zürich.<|im_end|>No.<|im_end|>"  # type: ignore[attr-defined]
    assert tokenizer.inner.decode(list(ids), skip_special_tokens=False) == ChatTemplate(CHATML, {}).render(TALK)  # type: ignore[attr-defined]


def test_end_of_document_is_learned_only_where_nothing_else_ends_the_turn(tokenizer_folder: Path) -> None:
    tokenizer = load_tokenizer(str(tokenizer_folder))
    for source, learned in ((CHATML, 0), (NO_CLOSING, 1)):
        ids, mask = ChatEncoder(tokenizer, source, 0).encode({"messages": TALK}, "")
        assert ids[-1] == 0 and mask[-1] == learned
    _, mask = ChatEncoder(tokenizer, NO_CLOSING, 0).encode({"messages": TALK[:4]}, "")
    assert mask[-1] == 0


def test_chat_command(tmp_path: Path, run: Run, tokenizer_folder: Path) -> None:
    source = tmp_path / "chat.jsonl"
    source.write_text(json.dumps({"messages": TALK}) + "\n" + json.dumps({"messages": TALK[:3]}) + "\n")
    run("data", "--chat", source, "--tokenizer", tokenizer_folder, "--append-eod", "--workers", 2,
        "--output", tmp_path / "out")
    conversations = read_dataset(tmp_path / "out")
    mask = np.frombuffer((tmp_path / "out.mask").read_bytes(), np.uint8)
    assert [documents[-1] for documents in conversations] == [0, 0]
    assert len(mask) == sum(map(len, conversations)) and set(mask) == {0, 1}
    inner = load_tokenizer(str(tokenizer_folder)).inner  # type: ignore[attr-defined]
    flat = [token for conversation in conversations for token in conversation]
    kept = inner.decode([token for token, keep in zip(flat, mask, strict=True) if keep], skip_special_tokens=False)
    assert kept == "Yes, Zürich.<|im_end|>No.<|im_end|>Yes, Zürich.<|im_end|>"
    assert json.loads((tmp_path / "out.json").read_text())["target_tokens"] == int(mask.sum())


@pytest.mark.parametrize("line, message", [
    ("{}", "expected a key 'messages'"),
    ('{"messages": []}', "not empty"),
    ('{"messages": [{"role": "user"}]}', "message 1 needs a 'role'"),
    ('{"messages": [', "not valid JSON"),
])
def test_malformed_conversations(tmp_path: Path, refuse: Refuse, tokenizer_folder: Path, line: str,
                                 message: str) -> None:
    source = tmp_path / "chat.jsonl"
    source.write_text(json.dumps({"messages": TALK}) + "\n" + line + "\n")
    error = refuse("--chat", source, "--tokenizer", tokenizer_folder, "--output", tmp_path / "out")
    assert error.startswith(f"{source}, line 2: ") and message in error
    assert not list(tmp_path.glob("out*"))
