"""Chat templates and prompt masks: what counts must be what the assistant wrote, for templates of every habit."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CHATML, Refuse, Run
from megatron import read_dataset

from agoq.chat import ChatEncoder
from agoq.chat_rows import read_row
from agoq.chat_template import ChatTemplate
from agoq.command import UserError
from agoq.tokenizer import ByteTokenizer, Tokenizer, load_tokenizer

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


MACRO = """\
{%- macro turn(m) -%}
  {%- if m.role == 'assistant' -%}
    {%- set text -%}  {% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{%- endset -%}{{ text }}
  {%- else -%}{{ m.content }}{%- endif -%}
{%- endmacro -%}
{%- for m in messages %}{{ m.role }}: {{ turn(m) | trim }}{{ '\\n' }}{% endfor -%}"""


def encoder_of(source: str, tokenizer: Tokenizer | None = None, eod: int | None = None) -> ChatEncoder:
    return ChatEncoder(tokenizer or ByteTokenizer(), {"default": source}, eod)


def counted(source: str, talk: list[dict[str, Any]], **row: Any) -> list[str]:
    text, spans = encoder_of(source).render(read_row({"messages": talk} | row, None))
    return [text[begin:end] for begin, end in spans]


def rendered(source: str, talk: list[dict[str, Any]], **row: Any) -> str:
    return ChatTemplate(source, {}).render(read_row({"messages": talk} | row, None).talk)


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
    assert rendered(WITH_GENERATION, TALK) == (
        "s: Be brief.\nu: café?\nA: Yes, Zürich.<|im_end|>\nu: And 東京?\nA: No.<|im_end|>\n")


def test_content_that_repeats_or_is_empty() -> None:
    talk = [{"role": "user", "content": "No."}, {"role": "assistant", "content": "No."},
            {"role": "user", "content": "assistant"}, {"role": "assistant", "content": ""}]
    assert counted(CHATML, talk) == ["No.<|im_end|>\n", "<|im_end|>\n"]
    assert counted(CHATML, talk[:1]) == []


def test_template_that_cannot_be_told_apart_is_refused() -> None:
    counts_messages = "{{ messages | length }} {% for m in messages %}{{ m.content | length }}{% endfor %}"
    with pytest.raises(UserError, match=r"message 3 differently .* generation"):
        counted(counts_messages, TALK)
    counts_letters = "{{ messages[-1].content | length }}" + CHATML.split("{% if add_generation_prompt")[0]
    with pytest.raises(UserError, match=r"message 5 differently"):
        counted(counts_letters, TALK)
    changes_answers = "{% for m in messages %}{{ m.role | capitalize }}: {{ m.content | upper }}{{ '\\n' }}{% endfor %}"
    with pytest.raises(UserError, match=r"message 3 .* changes its text"):
        counted(changes_answers, TALK)
    prompted = changes_answers + "{% if add_generation_prompt %}Assistant: {% endif %}"
    assert counted(prompted, TALK) == ["YES, ZÜRICH.\n", "NO.\n"]


def test_a_conversation_that_begins_with_the_assistant() -> None:
    looks_first = "{{ 'system' if messages[0].role == 'system' }}" + CHATML
    assert counted(looks_first, TALK[2:]) == ["Yes, Zürich.<|im_end|>\n", "No.<|im_end|>\n"]


@pytest.mark.parametrize("source, message", [
    ("{{ messages.append(1) }}", "the chat template refuses this conversation: SecurityError"),
    ("{{ namespace(__class__=1) }}", "refuses this conversation: SecurityError"),
    ("{{ raise_exception('not so') }}", "refuses this conversation: not so"),
    ("{{ messages[0].content + 1 }}", "refuses this conversation: TypeError"),
    ("{{ 1 // 0 }}", "refuses this conversation: ZeroDivisionError"),
    ("{{ nothing.at.all }}", "'nothing' is undefined"),
    ("{{ nothing | tojson }}", "refuses this conversation: TypeError"),
    ("{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}", "refuses this conversation: RecursionError"),
])
def test_whatever_a_template_raises_names_the_line(source: str, message: str) -> None:
    with pytest.raises(UserError, match=f"^line 1: .*{re.escape(message)}"):
        encoder_of(source).encode({"messages": TALK}, "line 1")


@pytest.mark.parametrize("source, message", [
    ("{% for %}", "the chat template does not parse: line 1"),
    ("\n{{ 'x' | no_such_filter }}", "does not parse: line 2: No filter named"),
    ("{% generation %}", "does not parse: line 1"),
    ("(" * 3 + "{{ " + "(" * 5000 + " }}", "does not"),
])
def test_templates_that_do_not_compile(source: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        encoder_of(source)


def test_variables_of_the_template() -> None:
    user = [{"role": "user", "content": "<é>"}]
    assert rendered("{{ bos_token }}{{ messages[0].content | tojson }}{{ tools[0].name }}", user, tools=[{"name": "f"}],
                    chat_template_kwargs={"bos_token": "<s>"}) == '<s>"<é>"f'
    nothing = "{{ tools is none and documents is none and add_generation_prompt is false }}"
    assert rendered(nothing, user) == "True"
    assert rendered(nothing, user, tools=[], documents=[]) == "False"
    options = "ensure_ascii=true, indent=1, separators=(',', '='), sort_keys=true"
    source = "{{ {'b': '<é>', 'a': [1]} | tojson(" + options + ") }}"
    assert rendered(source, user) == '{\n "a"=[\n  1\n ],\n "b"="<\\u00e9>"\n}'
    assert rendered(CHATML, user, chat_template_kwargs={"add_generation_prompt": True}).endswith("assistant\n")


def test_nulls_are_absent_and_reasoning_has_the_names_that_templates_read() -> None:
    source = "{% for m in messages %}{{ m | tojson }}{% endfor %}"
    assert rendered(source, [{"role": "assistant", "content": None, "tool_calls": None}]) == '{"role": "assistant"}'
    for name in ("reasoning_content", "thinking", "reasoning"):
        message = {"role": "assistant", "content": "", name: "2 + 2"}
        assert json.loads(rendered(source, [message])) == message | {"thinking": "2 + 2", "reasoning_content": "2 + 2"}


def test_the_prompts_own_thought_is_not_the_answers() -> None:
    """enable_thinking=false makes the template write an empty thought, in the prompt as in the answer."""
    opening = "<|im_start|>assistant\n"
    source = THINKING.replace(opening + "{% endif %}", opening + "<think>\n\n</think>\n\n{% endif %}")
    assert counted(source, TALK)[-1] == "No.<|im_end|>\n"
    assert counted(source, TALK)[0] == "Yes, Zürich.<|im_end|>\n"


def test_weight_zero_leaves_an_answer_out() -> None:
    talk = [*TALK, {"role": "user", "content": "No?"}, {"role": "assistant", "content": "No."}]
    for source in (CHATML, WITH_GENERATION, NO_CLOSING, MACRO):
        everything = counted(source, talk)
        for left_out in (0, 1, 2):
            marked = [dict(message) for message in talk]
            marked[(2, 4, 6)[left_out]]["weight"] = 0
            marked[(2, 4, 6)[left_out - 1]]["weight"] = 1
            assert counted(source, marked) == everything[:left_out] + everything[left_out + 1 :]
    with pytest.raises(UserError, match="message 1 has weight 0.5"):
        counted(CHATML, [{"role": "assistant", "content": "x", "weight": 0.5}])


def test_weight_zero_of_a_call() -> None:
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}], "weight": 0}
    source = ("{% for m in messages %}{{ m.role }}:{% generation %}{{ m.content }}{% for c in m.tool_calls %}"
              "{{ c | tojson }}{% endfor %};{% endgeneration %}{% endfor %}")
    assert counted(source, [call, TALK[2], call]) == ["Yes, Zürich.;"]


def test_generation_within_macros_set_and_itself() -> None:
    assert counted(MACRO, TALK) == ["Yes, Zürich.<|im_end|>", "No.<|im_end|>"]
    nested = WITH_GENERATION.replace("{{ m.content }}", "{% generation %}{{ m.content }}{% endgeneration %}", 1)
    text, spans = encoder_of(nested).render(read_row({"messages": TALK}, None))
    assert "".join(text[begin:end] for begin, end in spans) == "Yes, Zürich.<|im_end|>No.<|im_end|>"
    measured = MACRO.replace("turn(m) | trim", "turn(m) | trim if turn(m) | length < 60 else 'long'")
    assert counted(measured, TALK) == ["Yes, Zürich.<|im_end|>\n", "No.<|im_end|>\n"]  # it sees marks: turns tell


def test_newline_inside_the_tag_counts(tokenizer_folder: Path) -> None:
    end = "{% endgeneration %}"
    source = WITH_GENERATION.replace(end + "{{ '\\n' }}", "{{ '\\n' }}" + end)
    encoder = encoder_of(source, load_tokenizer(str(tokenizer_folder)))
    text, spans = encoder.render(read_row({"messages": TALK}, None))
    assert [text[begin:end] for begin, end in spans] == ["Yes, Zürich.<|im_end|>\n", "No.<|im_end|>\n"]


def test_a_comment_with_the_tag_is_no_tag() -> None:
    assert counted("{# {% generation %} {% endgeneration %} #}" + CHATML, TALK) == counted(CHATML, TALK)


def test_named_templates() -> None:
    encoder = ChatEncoder(ByteTokenizer(), {"default": "plain", "tool_use": "tools", "rag": "rag"}, None)
    for row, text in (({}, "plain"), ({"tools": []}, "tools"), ({"tools": None}, "plain"), ({"tools": ""}, "plain"),
                      ({"chat_template_kwargs": {"chat_template": "rag"}}, "rag"),
                      ({"chat_template_kwargs": {"chat_template": "{{ messages | length }}"}}, "2")):
        assert encoder.render(read_row({"messages": TALK[:2]} | row, None))[0] == text
    with pytest.raises(UserError, match="here: .*none is the default: choose one with --chat-template: rag"):
        ChatEncoder(ByteTokenizer(), {"rag": "rag"}, None).encode({"messages": TALK}, "here")


def test_mask_of_tokens(tokenizer_folder: Path) -> None:
    tokenizer = load_tokenizer(str(tokenizer_folder))
    ids, mask = encoder_of(CHATML, tokenizer).encode({"messages": TALK}, "")
    kept = [int(i) for i, keep in zip(ids, mask, strict=True) if keep]
    assert tokenizer.inner.decode(kept, skip_special_tokens=False) == "Yes, Zürich.<|im_end|>No.<|im_end|>"  # type: ignore[attr-defined]
    assert tokenizer.inner.decode(list(ids), skip_special_tokens=False) == rendered(CHATML, TALK)  # type: ignore[attr-defined]


def test_end_of_document_is_learned_only_where_nothing_else_ends_the_turn(tokenizer_folder: Path) -> None:
    tokenizer = load_tokenizer(str(tokenizer_folder))
    for source, learned in ((CHATML, 0), (NO_CLOSING, 1)):
        ids, mask = encoder_of(source, tokenizer, 0).encode({"messages": TALK}, "")
        assert ids[-1] == 0 and mask[-1] == learned
    _, mask = encoder_of(NO_CLOSING, tokenizer, 0).encode({"messages": TALK[:4]}, "")
    assert mask[-1] == 0


def test_end_of_document_comes_once(tokenizer_folder: Path) -> None:
    """A template that ends turns with the end-of-document token, with or without white space behind it."""
    tokenizer = load_tokenizer(str(tokenizer_folder))
    for source in (CHATML, CHATML.replace("+ '\\n' }}{% endfor", "}}{% endfor")):
        source = source.replace("<|im_end|>", "<|endoftext|>")
        ids, mask = encoder_of(source, tokenizer, 0).encode({"messages": TALK}, "")
        assert ids.tolist() == encoder_of(source, tokenizer).encode({"messages": TALK}, "")[0].tolist()
        assert ids.tolist().count(0) == len(TALK) and mask[np.flatnonzero(ids == 0)].tolist() == [0, 0, 1, 0, 1]


def test_chat_command(tmp_path: Path, run_process: Run, tokenizer_folder: Path) -> None:
    source = tmp_path / "chat.jsonl"
    source.write_text(json.dumps({"messages": TALK}) + "\n" + json.dumps({"messages": TALK[:3]}) + "\n")
    run_process("data", "--chat", source, "--tokenizer", tokenizer_folder, "--append-eod", "--workers", 2, "--output",
                tmp_path / "out")
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
    ('{"messages": [{"role": "user"}]}', "the chat template refuses this conversation"),
    ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "\\ud800, half of a surrogate pair"),
    ('{"messages": [', "not valid JSON"),
])
def test_malformed_conversations(tmp_path: Path, refuse: Refuse, tokenizer_folder: Path, line: str,
                                 message: str) -> None:
    source = tmp_path / "chat.jsonl"
    source.write_text(json.dumps({"messages": TALK}) + "\n" + line + "\n")
    error = refuse("--chat", source, "--tokenizer", tokenizer_folder, "--output", tmp_path / "out")
    assert error.startswith(f"{source}, line 2: ") and message in error
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("name, content, message", [
    ("template.jinja", b"caf\xe9", "template.jinja: invalid UTF-8 at byte 3"),
    ("template.jinja", b"{% for %}", "the chat template does not parse: line 1"),
    ("missing.jinja", None, "--chat-template: no such file: {0}/missing.jinja"),
    ("folder", b"", "--chat-template: no such file: {0}/folder"),
    ("tokenizer_config.json", b'{"chat_template": 7}', "'chat_template' must be a string, or a list of objects"),
    ("tokenizer_config.json", b'{"chat_template": ["x"]}', "'chat_template' must be a string, or a list of objects"),
    ("tokenizer_config.json", b'{"chat_template": [{"name": "a"}]}', "'chat_template' must be a string, or a list"),
    ("tokenizer_config.json", b"{}", "has no chat template"),
    ("tokenizer_config.json", b'{"chat_template": "{{"}', "the chat template does not parse"),
])
def test_templates_that_cannot_be_read(tmp_path: Path, refuse: Refuse, tokenizer_folder: Path, name: str,
                                       content: bytes | None, message: str) -> None:
    (tmp_path / "tokenizer.json").write_bytes((tokenizer_folder / "tokenizer.json").read_bytes())
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": TALK}) + "\n")
    (tmp_path / "folder").mkdir()
    if content:
        (tmp_path / name).write_bytes(content)
    choice = [] if name.endswith(".json") else ["--chat-template", tmp_path / name]
    error = refuse("--chat", tmp_path / "chat.jsonl", "--tokenizer", tmp_path, "--output", tmp_path / "out", *choice)
    assert message.format(tmp_path) in error


def test_a_refused_row_in_a_worker(tmp_path: Path, run_process: Run, tokenizer_folder: Path) -> None:
    """What a template raises in another process, and a template that does not compile, end with one line."""
    source, template = tmp_path / "chat.jsonl", tmp_path / "template.jinja"
    source.write_text(json.dumps({"messages": TALK}) + "\n")
    for text, message in (("{{ 1 // 0 }}", "line 1: the chat template refuses this conversation: ZeroDivisionError"),
                          ("{{", "the chat template does not parse")):
        template.write_text(text)
        done = run_process("data", "--chat", source, "--chat-template", template, "--tokenizer", tokenizer_folder,
                           "--quiet", "--workers", 2, "--output", tmp_path / "out", status=1)
        assert message in done.stderr.decode() and done.stderr.count(b"\n") == 1
