"""Chat templates compared with transformers: text, ids and masks of generated conversations."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_templates import MACROS, TAGGED, plain

from agoq.chat import ChatEncoder, find_templates
from agoq.command import UserError
from agoq.tokenizer import Tokenizer, load_tokenizer

transformers = pytest.importorskip("transformers")

SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>",
           "<|eot_id|>", "[INST]", "[/INST]", "[TOOL_CALLS]", "<start_of_turn>", "<end_of_turn>", "<|User|>",
           "<|Assistant|>", "<|end|>", "<|user|>", "<|assistant|>", "<|start|>", "<|message|>", "<|return|>",
           "<|call|>"]
WORDS = ["river", "Zürich", "東京", "naïve", "42", "<b>bold</b>", "a & b", "\"quoted\"", "it's", "\U0001F41F", "{x: 1}", "\\n",
         "né", "assistant", "No.", "Yes.", "\t", "  two spaces", "line\nbreak", "e\u0301"]
TOOLS = [{"type": "function", "function": {"name": name, "description": text, "parameters": {
    "type": "object", "properties": {"q": {"type": "string", "enum": ["é", "<"]}}, "required": ["q"]}}}
    for name, text in (("find", "Finds <things> & more."), ("größe", "Misst."))]
Row = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer saved by transformers."""
    from tokenizers import Tokenizer as Inner
    from tokenizers import decoders, models, pre_tokenizers, trainers

    inner = Inner(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.train_from_iterator([" ".join(WORDS * 9)], trainers.BpeTrainer(
        vocab_size=420, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False))
    path = tmp_path_factory.mktemp("transformers")
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
                                         ).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def ours(folder: Path) -> Tokenizer:
    return load_tokenizer(str(folder))


def words(rng: random.Random, most: int = 6) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(1, most)))


def answer(rng: random.Random) -> Row:
    message: Row = {"role": "assistant", "content": words(rng)}
    if rng.random() < 0.4:
        message[rng.choice(["reasoning_content", "reasoning", "thinking"])] = words(rng)
    elif rng.random() < 0.2:
        message["content"] = f"<think>\n{words(rng)}\n</think>\n\n{words(rng)}"
    if rng.random() < 0.1:
        message |= {"name": None, "tool_calls": None}
    return message


def called(rng: random.Random) -> list[Row]:
    """A call of a tool, and its result."""
    calls = [{"id": f"call{at:05}", "type": "function", "function": {
        "name": rng.choice(["find", "größe"]), "arguments": {"q": words(rng), "n": rng.choice([1, None, 2.5, [True]])}}}
        for at in range(rng.choice([1, 1, 1, 2]))]
    message = {"role": "assistant", "tool_calls": calls} | rng.choice([{}, {"content": None}, {"content": words(rng)}])
    if rng.random() < 0.4:
        message["reasoning"] = words(rng)
    return [message, *({"role": "tool", "tool_call_id": call["id"], "content": words(rng)} for call in calls)]


def conversation(rng: random.Random) -> Row:
    with_tools = rng.random() < 0.35
    messages = [{"role": "system", "content": words(rng)}] if rng.random() < 0.4 else []
    for _ in range(rng.choice([1, 1, 2, 3])):
        messages.append({"role": "user", "content": words(rng)})
        for _ in range(rng.choice([0, 1, 2]) if with_tools else 0):
            messages += called(rng)
        messages.append(answer(rng))
    row: Row = {"messages": messages}
    if with_tools:
        row["tools"] = TOOLS[: rng.randint(0, 2)]
    if rng.random() < 0.15:
        row["documents"] = [{"title": words(rng, 2), "text": words(rng)}]
    if rng.random() < 0.2:
        row["chat_template_kwargs"] = {"enable_thinking": rng.random() < 0.5, "date": "1 Jan 2026"}
    return row


def conversations(count: int, seed: str) -> Iterator[Row]:
    rng = random.Random(seed)
    return (conversation(rng) for _ in range(count))


def expect(tokenizer: Any, row: Row, **settings: Any) -> Any:
    """What transformers makes of a row; None where the template refuses it."""
    try:
        return tokenizer.apply_chat_template(row["messages"], tools=row.get("tools"), documents=row.get("documents"),
                                             **row.get("chat_template_kwargs", {}), **settings)
    except Exception:  # of any kind
        return None


def compare(theirs: Any, encoder: ChatEncoder, tagged: str, row: Row) -> bool:
    """Ids and mask of a row; equal ids are equal text, for a byte-level tokenizer loses nothing.

    `tagged` shows transformers where the answers are. False: both refuse the row.
    """
    out = expect(theirs, row, chat_template=tagged, return_assistant_tokens_mask=True)
    if out is None:
        with pytest.raises(UserError, match="^here: the chat template refuses"):
            encoder.encode(row, "here")
        return False
    ids, mask = encoder.encode(row, "here")
    assert ids.tolist() == out["input_ids"], (row, theirs.decode(ids), theirs.decode(out["input_ids"]))
    if mask.tolist() != out["assistant_masks"]:  # the pieces of text, to read
        text = theirs.decode(ids)
        assert shares(text, encoder, mask) == shares(text, encoder, out["assistant_masks"]), row
        assert mask.tolist() == out["assistant_masks"], row
    return True


def shares(text: str, encoder: ChatEncoder, mask: Any) -> list[str]:
    """For a failing test: the pieces of text that a mask covers."""
    offsets = encoder.tokenizer.encode_with_offsets(text)[1]
    covered = np.zeros(len(text) + 1, bool)
    for (begin, end), keep in zip(offsets, mask, strict=True):
        covered[begin:end] |= bool(keep)
    bounds = np.flatnonzero(np.diff(np.concatenate([[False], covered, [False]]).astype(int)))
    return [text[a:b] for a, b in zip(bounds[::2], bounds[1::2], strict=True)]


@pytest.mark.parametrize("name", TAGGED)
def test_templates(name: str, theirs: Any, ours: Tokenizer) -> None:
    tagged = TAGGED[name]
    with_tags = ChatEncoder(ours, {"default": tagged}, None)
    without = ChatEncoder(ours, {"default": plain(tagged)}, None)
    rendered = 0
    for at, row in enumerate(conversations(80, name)):
        rendered += compare(theirs, without, tagged, row)
        if at < 20:
            compare(theirs, with_tags, tagged, row)
    assert rendered >= 30


def test_macros(theirs: Any, ours: Tokenizer) -> None:
    """Tags inside macros and `set` cover what they enclose, as tags outside do."""
    encoder = ChatEncoder(ours, {"default": MACROS}, None)
    trimmed = "{{- (m.content or '') if m.thinking is defined else (m.content or '').lstrip() -}}"
    tagged = TAGGED["channels"].replace("{{- m.content or '' -}}", trimmed)
    assert sum(compare(theirs, encoder, tagged, row) for row in conversations(60, "macros")) == 60


def test_named_templates_as_transformers_saves_them(tmp_path: Path, folder: Path) -> None:
    """In files of their own, and as older versions did within tokenizer_config.json."""
    sources = {"default": TAGGED["qwen"], "tool_use": TAGGED["mistral"], "rag": TAGGED["channels"]}
    saved = transformers.AutoTokenizer.from_pretrained(folder)
    for name, chosen in (("all", sources), ("one", sources["default"]), ("unnamed", {"rag": sources["rag"]})):
        saved.chat_template = chosen
        for in_files in (True, False):
            path = tmp_path / f"{name}-{in_files}"
            saved.save_pretrained(path, save_jinja_files=in_files)
            theirs, ours = transformers.AutoTokenizer.from_pretrained(path), load_tokenizer(str(path))
            for choice in (None, "rag"):
                if choice and name == "one":
                    continue
                encoder = ChatEncoder(ours, find_templates(ours, choice), None)
                for row in conversations(6, name):
                    out = expect(theirs, row, chat_template=choice, return_assistant_tokens_mask=True)
                    if out is None:
                        with pytest.raises(UserError, match="^here: "):
                            encoder.encode(row, "here")
                        continue
                    ids, mask = encoder.encode(row, "here")
                    assert (ids.tolist(), mask.tolist()) == (out["input_ids"], out["assistant_masks"])


def test_template_files_go_before_the_config(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "additional_chat_templates").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": "config"}))
    (tmp_path / "chat_template.jinja").write_bytes(b"\xef\xbb\xbffile\r\n\xc3\xa9 {{ 'x\r\ny' }}\n\n")
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("tools {{ eos_token }}{{ pad_token }}")
    theirs, ours = transformers.AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(str(tmp_path))
    encoder = ChatEncoder(ours, find_templates(ours, None), None)
    for tools in (None, [], TOOLS):
        row = {"messages": [{"role": "user", "content": "x"}], "tools": tools}
        assert encoder.encode(row, "")[0].tolist() == expect(theirs, row)["input_ids"]
