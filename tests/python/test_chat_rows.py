"""Rows of conversations in their forms, and what becomes of rows that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import CHATML, Refuse
from megatron import read_dataset

from agoq.chat_rows import read_row
from agoq.command import UserError

QUESTION, ANSWER = {"role": "user", "content": "Où?"}, {"role": "assistant", "content": "Là."}
SYSTEM = {"role": "system", "content": "Be brief."}
MESSAGES = {"messages": [QUESTION, ANSWER]}
SHAREGPT = {"conversations": [{"from": "human", "value": "Où?"}, {"from": "gpt", "value": "Là."}]}
ALPACA = {"instruction": "Où?", "input": "", "output": "Là."}


@pytest.mark.parametrize("row", [MESSAGES, SHAREGPT, ALPACA, ALPACA | {"input": None}, {
    "conversations": MESSAGES["messages"]}, MESSAGES | {"conversations": None}])
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_forms_are_told_apart(row: dict[str, Any], system: str | None) -> None:
    messages = read_row(row | {"system": system}, None).talk.messages
    has_system = system is not None and "messages" not in row
    assert messages == ([SYSTEM] if has_system else []) + [QUESTION, ANSWER]


def test_sharegpt_in_full() -> None:
    call = {"name": "find", "arguments": {"q": "é"}}
    turns = [("system", "Be brief."), ("user", "Où?"), ("function_call", json.dumps(call)), ("observation", "[1]"),
             ("Assistant", "Là."), ("human", "Et?"), ("chatgpt", "Ici.")]
    row = read_row({"conversations": [{"from": role, "value": text} for role, text in turns],
                    "tools": json.dumps([{"name": "find"}])}, None)
    assert row.talk.tools == [{"name": "find"}]
    assert row.talk.messages == [
        SYSTEM, QUESTION, {"role": "assistant", "tool_calls": [{"type": "function", "function": call}]},
        {"role": "tool", "content": "[1]"}, ANSWER, {"role": "user", "content": "Et?"},
        {"role": "assistant", "content": "Ici."}]
    weighted = {"conversations": [SHAREGPT["conversations"][0], SHAREGPT["conversations"][1] | {"weight": 0}]}
    assert read_row(weighted, None).silent == {1}


def test_alpaca_in_full() -> None:
    row = ALPACA | {"input": "Paris", "system": "Be brief.", "history": [["Qui?", "Moi."]]}
    assert read_row(row, None).talk.messages == [
        SYSTEM, {"role": "user", "content": "Qui?"}, {"role": "assistant", "content": "Moi."},
        {"role": "user", "content": "Où?\nParis"}, ANSWER]


@pytest.mark.parametrize("row, chat_format, message", [
    ({"text": 1}, None, "'messages' .* 'conversations' .ShareGPT.* 'instruction' and 'output' .Alpaca.; found 'text'"),
    ({}, None, "found no keys"),
    ({"messages": []}, None, "a key 'messages' with a list of messages that is not empty"),
    ({"messages": "x"}, None, "a key 'messages' with a list"),
    (MESSAGES, "sharegpt", "a key 'conversations' with a list"),
    (MESSAGES, "alpaca", "'instruction' must be a string, found NoneType"),
    ({"messages": ["x"]}, None, "message 1 needs a 'role'"),
    ({"messages": [{"content": "x"}]}, None, "message 1 needs a 'role'"),
    ({"messages": [{"role": 1, "content": "x"}]}, None, "message 1 needs a 'role'"),
    ({"conversations": [{"from": "alien", "value": "x"}]}, None, "message 1 is from 'alien': known are system, human"),
    ({"conversations": [{"from": "gpt", "value": None}]}, None, "message 1 of 'conversations' needs 'from' and"),
    ({"conversations": ["x"]}, None, "message 1 of 'conversations' needs"),
    ({"conversations": [{"from": "function_call", "value": "f(x)"}]}, None, "'value' must be a JSON object with"),
    (ALPACA | {"output": 7}, None, "'output' must be a string, found int"),
    (ALPACA | {"history": [["x"]]}, None, "entry 1 of 'history' must be a list of two strings"),
    (ALPACA | {"history": 3}, None, "entry 1 of 'history' must be"),
    (MESSAGES | {"tools": {"a": 1}}, None, "'tools' must be a list of objects"),
    (MESSAGES | {"tools": ["f"]}, None, "'tools' must be a list of objects"),
    (MESSAGES | {"tools": "f"}, None, "'tools' must be a list of objects, found a string that is not JSON"),
    (MESSAGES | {"documents": [1]}, None, "'documents' must be a list of objects"),
    (MESSAGES | {"chat_template_kwargs": 1}, None, "'chat_template_kwargs' must be an object, found int"),
    (MESSAGES | {"chat_template_kwargs": {"tools": []}}, None, "holds 'tools'.*: make 'tools' a key of the row"),
    (MESSAGES | {"chat_template_kwargs": {"tokenize": False}}, None, "holds 'tokenize', which is no variable"),
    (MESSAGES | {"chat_template_kwargs": {"chat_template": 1}}, None, "must be a string, found int"),
])
def test_rows_that_cannot_be_read(row: dict[str, Any], chat_format: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_row(row, chat_format)


def convert(source: Path, *arguments: object, kind: str = "--chat") -> Path:
    from agoq import data

    template = source.parent / "template.jinja"
    template.write_text(CHATML)
    prefix = source.parent / "out" / source.stem
    chat = ["--chat-template", str(template)] if kind == "--chat" else []
    data.main(["--quiet", "--workers", "1", "--tokenizer", "byte", "--output", str(prefix), *chat, *map(str, arguments),
               *([kind] if kind else []), str(source)])
    return prefix


def test_json_arrays_are_read_item_by_item(tmp_path: Path) -> None:
    rows = [MESSAGES, SHAREGPT, ALPACA]
    lines, array, packed = (tmp_path / name for name in ("lines.jsonl", "array.json", "packed.json"))
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    array.write_text("\n" + json.dumps(rows, indent=2) + "\n")
    packed.write_text(json.dumps(rows, ensure_ascii=False, separators=(",", ":")))
    assert read_dataset(convert(lines)) == read_dataset(convert(array)) == read_dataset(convert(packed))
    assert len(read_dataset(tmp_path / "out" / "lines")) == 3


@pytest.mark.parametrize("text, message", [
    ('[\n{"text": "a"},\n{"text": }]', "line 3: not valid JSON: Expecting value"),
    ('[{"text": "a"}\n{"text": "b"}]', "line 2: not valid JSON: expected ',' or ']'"),
    ('[\n\n{"text": "a"},\n7]', "line 4: expected a JSON object, found int"),
    ('[{"text": "a"}] {}', "line 1: not valid JSON: something stands behind the list"),
    ('[{"text": "a"},', "line 1: not valid JSON: Expecting value"),
    ("[" * 100000, "line 1: cannot be read as JSON"),
    ('{"text": ' + "[" * 100000, "line 1: JSON nested too deeply"),
    ('{"text": ' + "7" * 9999 + "}", "line 1: not valid JSON"),
    ("[]", "the input holds no text"),
])
def test_damaged_json(tmp_path: Path, refuse: Refuse, text: str, message: str) -> None:
    source = tmp_path / "a.json"
    source.write_text(text)
    assert message in refuse(source, "--tokenizer", "byte", "--output", tmp_path / "out")


def test_reasons_are_valid_utf8(tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text(json.dumps({"conversations": [{"from": "\ud800", "value": ""}]}) + "\n" + json.dumps(ALPACA))
    prefix = convert(source, "--skip-bad", 1)
    assert "is from '\\ud800'" in json.loads(prefix.with_suffix(".json").read_bytes())["skipped"][0]["reason"]


BAD = ["{", '{"text": 1}', '{"text": "\\ud800"}', "{}"]


@pytest.mark.parametrize("kind", ["", "--chat"])
def test_skip_bad(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    good = [{"text": "one"} | MESSAGES, {"text": "two"} | ALPACA]
    source = tmp_path / "a.jsonl"
    lines = [json.dumps(good[0]), *BAD[:2], json.dumps(good[1]), *BAD[2:]]
    source.write_text("\n".join(lines) + "\n")
    prefix = convert(source, "--skip-bad", 4, kind=kind)
    assert len(read_dataset(prefix)) == 2
    skipped = json.loads((tmp_path / "out" / "a.json").read_text())["skipped"]
    assert [(row["file"], row["line"]) for row in skipped] == [(str(source), at) for at in (2, 3, 5, 6)]
    assert "not valid JSON" in skipped[0]["reason"]
    out = capsys.readouterr()
    assert out.err.count("left out ") == 4 and f"left out {source}, line 3: " in out.err
    assert "left out 4 rows" in out.out
    with pytest.raises(UserError, match=r"line 6: .* \(--skip-bad 3 allows no more bad rows\)"):
        convert(source, "--skip-bad", 3, "--overwrite", kind=kind)
    with pytest.raises(UserError, match="a.jsonl, line 2: not valid JSON"):
        convert(source, "--overwrite", kind=kind)
    assert json.loads((tmp_path / "out" / "a.json").read_text())["documents"] == 2  # the dataset that was there stays


def test_all_rows_bad(tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text("{\n")
    with pytest.raises(UserError, match="all 1 rows were left out: nothing was written"):
        convert(source, "--skip-bad", 9)
