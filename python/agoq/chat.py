"""Conversations to token ids, and which of the tokens the assistant wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from agoq.chat_rows import ChatRow, Row, read_row
from agoq.chat_spans import assistant_spans
from agoq.chat_template import ChatTemplate, Span, describe
from agoq.command import UserError
from agoq.documents import read_text
from agoq.json_file import read_json
from agoq.tokenizer import Offsets, Tokenizer

Templates = dict[str, str]  # by name; 'default' is taken, and 'tool_use' where a conversation comes with tools


def read_templates(folder: Path) -> Templates:
    """The templates of a Hugging Face folder. Files of their own go before those in tokenizer_config.json."""
    files = {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    if (folder / "chat_template.jinja").is_file():
        files.setdefault("default", folder / "chat_template.jinja")
    if files:
        return {name: read_text(path) for name, path in files.items()}
    config = folder / "tokenizer_config.json"
    value = read_json(config).get("chat_template")
    if value is None or isinstance(value, str):
        return {} if value is None else {"default": value}
    entries: list[Any] = value if isinstance(value, list) and value else [None]
    if not all(isinstance(entry, dict) and isinstance(entry.get("name"), str) and isinstance(entry.get("template"), str)
               for entry in entries):
        raise UserError(f"{config}: 'chat_template' must be a string, or a list of objects with 'name' and 'template'")
    return {entry["name"]: entry["template"] for entry in entries}


def find_templates(tokenizer: Tokenizer, choice: str | None) -> Templates:
    """The tokenizer's templates, or the one that the user chose: one of these by its name, or a file."""
    folder = None if tokenizer.name == "byte" else Path(tokenizer.name)
    templates = read_templates(folder if folder.is_dir() else folder.parent) if folder else {}
    if choice is not None:
        if choice not in templates and not Path(choice).is_file():
            names = f"; named templates of the tokenizer: {', '.join(sorted(templates))}" if templates else ""
            raise UserError(f"--chat-template: no such file: {choice}{names}")
        return {"default": templates[choice] if choice in templates else read_text(Path(choice))}
    if not templates:
        raise UserError(f"the tokenizer '{tokenizer.name}' has no chat template (chat_template.jinja, or the key "
                        "chat_template of tokenizer_config.json): give one with --chat-template")
    return templates


def mask_of(offsets: Offsets, spans: list[Span]) -> np.ndarray:
    """1 for the tokens that lie within a span or reach into one."""
    mask = np.zeros(len(offsets), np.uint8)
    bounds = np.array(offsets, dtype=np.int64).reshape(-1, 2)
    for begin, end in spans:
        mask |= (bounds[:, 0] < end) & (bounds[:, 1] > begin)
    return mask


def ends_with(eod: int, ids: list[int], offsets: Offsets, text: str) -> bool:
    """Whether the last token that is more than white space is the end-of-document token."""
    for token, (begin, end) in zip(reversed(ids), reversed(offsets), strict=True):
        if token == eod or text[begin:end].strip():
            return token == eod
    return False


class ChatEncoder:
    """Rows of conversations to token ids and masks. The end-of-document token `eod`, if any, ends each once."""

    def __init__(self, tokenizer: Tokenizer, templates: Templates, eod: int | None,
                 chat_format: str | None = None) -> None:
        self.tokenizer = tokenizer
        self.templates = templates
        self.chat_format = chat_format
        self.closings = tuple(text for text in tokenizer.special_texts() if text)
        self.eod = eod
        self.compiled: dict[str, ChatTemplate] = {}
        for name, source in templates.items():
            self._compile(source, "the chat template" + ("" if len(templates) == 1 else f" '{name}'"))

    def encode(self, value: Row, where: str) -> tuple[np.ndarray, np.ndarray]:
        try:
            row = read_row(value, self.chat_format)
            text, spans = self.render(row)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        text.encode("utf-8")  # raises for half of a surrogate pair, which JSON can hold
        ids, offsets = self.tokenizer.encode_with_offsets(text)
        mask = mask_of(offsets, spans)
        if self.eod is not None and not ends_with(self.eod, ids, offsets, text):
            closed = self.closings and text.rstrip().endswith(self.closings)  # then the turn has its own end
            learned = bool(spans) and spans[-1][1] == len(text) and not closed
            ids, mask = [*ids, self.eod], np.append(mask, np.uint8(learned))
        return np.array(ids, dtype=np.int32), mask

    def render(self, row: ChatRow) -> tuple[str, list[Span]]:
        """The text, and what of it the assistant wrote, with what ends its turns."""
        template = self._choose(row)
        template.set_clock()
        try:
            text = template.render(row.talk)
        except Exception as error:  # a template is a program and may fail in any way
            raise UserError(f"the chat template refuses this conversation: {describe(error)}") from None
        return text, assistant_spans(template, row.talk, text, row.silent, self.closings)

    def _choose(self, row: ChatRow) -> ChatTemplate:
        if row.template is not None:
            return self._compile(self.templates.get(row.template, row.template), "the row's chat template")
        if row.talk.tools is not None and "tool_use" in self.templates:
            return self._compile(self.templates["tool_use"])
        if "default" not in self.templates:
            raise UserError("the tokenizer's chat templates are named, and none is the default: choose one with "
                            f"--chat-template: {', '.join(sorted(self.templates))}")
        return self._compile(self.templates["default"])

    def _compile(self, source: str, name: str = "the chat template") -> ChatTemplate:
        if source not in self.compiled:
            self.compiled[source] = ChatTemplate(source, self.tokenizer.special, name)
        return self.compiled[source]


def checked_templates(tokenizer: Tokenizer, choice: str | None) -> Templates:
    """Templates that compile: a fault is told before worker processes start."""
    templates = find_templates(tokenizer, choice)
    ChatEncoder(tokenizer, templates, None)
    return templates
