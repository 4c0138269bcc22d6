"""Chat templates: a conversation as the model sees it, and which of its tokens the assistant wrote."""

from __future__ import annotations

import datetime
import json
import secrets
from collections.abc import Callable
from typing import Any

import jinja2
import numpy as np
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from agoq.command import UserError
from agoq.tokenizer import Offsets, Tokenizer

Message = dict[str, Any]
Spans = list[tuple[int, int]]  # characters [begin, end) of the rendered text

# Never part of a text that anyone wrote: they mark places in a rendering and are taken out again.
BEGIN, END, CONTENT = (f"\x02{name}-{secrets.token_hex(8)}\x03" for name in ("begin", "end", "content"))


class GenerationTag(Extension):
    """{% generation %} ... {% endgeneration %} encloses what the assistant writes."""

    tags = {"generation"}

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Callable[[], str]) -> str:
        return BEGIN + caller() + END


class ChatTemplate:
    """Renders conversations with a Hugging Face chat template, in Jinja's sandbox."""

    def __init__(self, source: str, special: dict[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols])
        environment.filters["tojson"] = to_json
        environment.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
        self.special = special
        self.marks_generation = "endgeneration" in source
        try:
            self.template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise UserError(f"the chat template does not parse: line {error.lineno}: {error.message}") from None

    def render(self, messages: list[Message], prompt: bool = False, **variables: Any) -> str:
        """The text; with `prompt`, up to where the assistant's next message begins."""
        return self.template.render(messages=messages, add_generation_prompt=prompt, **self.special, **variables)

    def render_with_spans(self, messages: list[Message], **variables: Any) -> tuple[str, Spans]:
        """The text, and what of it the assistant wrote, with what ends its turn."""
        text = self.render(messages, **variables)
        if self.marks_generation:
            return take_out_marks(text)
        turns = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
        return text, [self._span(messages, at, text, variables) for at in turns]

    def _span(self, messages: list[Message], at: int, text: str, variables: dict[str, Any]) -> tuple[int, int]:
        prompt = self._render_if_possible(messages[:at], True, variables)
        upto = self._render_if_possible(messages[: at + 1], False, variables)
        begin = len(prompt) if prompt is not None and text.startswith(prompt) else None
        if begin is not None and upto is not None and text.startswith(upto) and len(upto) > begin:
            return begin, len(upto)
        place = self._place_of_content(messages, at, text, variables)
        if place is None:
            raise UserError("the chat template renders message "
                            f"{at + 1} differently alone and within the conversation, so what the assistant wrote "
                            "cannot be told apart: enclose it in {% generation %} ... {% endgeneration %}")
        return (place[0] if begin is None else min(begin, place[0])), place[1]

    def _place_of_content(self, messages: list[Message], at: int, text: str,
                          variables: dict[str, Any]) -> tuple[int, int] | None:
        """Where message `at` lies, found by rendering a mark in its place: templates may treat the last turn apart."""
        marked = [*messages[:at], messages[at] | {"content": CONTENT}, *messages[at + 1 :]]
        before, found, after = (self._render_if_possible(marked, False, variables) or "").partition(CONTENT)
        alone = (self._render_if_possible(marked[: at + 1], False, variables) or "").partition(CONTENT)
        closing = alone[2]
        fits = text.startswith(before) and text.endswith(after) and len(before) + len(after) <= len(text)
        if not found or not alone[1] or not fits or not after.startswith(closing):
            return None
        return len(before), len(text) - len(after) + len(closing)

    def _render_if_possible(self, messages: list[Message], prompt: bool, variables: dict[str, Any]) -> str | None:
        """None where the template refuses, as some do for a conversation that does not end as they expect."""
        try:
            return self.render(messages, prompt, **variables)
        except jinja2.TemplateError:
            return None


def to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def strftime_now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)


def take_out_marks(text: str) -> tuple[str, Spans]:
    clean, spans, length = [], [], 0
    for at, part in enumerate(text.split(BEGIN)):
        if at == 0:
            clean.append(part)
            length += len(part)
            continue
        inside, _, outside = part.partition(END)
        spans.append((length, length + len(inside)))
        clean.append(inside + outside)
        length += len(inside) + len(outside)
    return "".join(clean), spans


def trim_span(text: str, span: tuple[int, int], closings: tuple[str, ...]) -> tuple[int, int]:
    """Leave out the white space behind a special token that ends the turn: the template writes it, not the model."""
    begin, end = span
    stripped = text[begin:end].rstrip()
    return (begin, begin + len(stripped)) if closings and stripped.endswith(closings) else span


def mask_of(offsets: Offsets, spans: Spans) -> np.ndarray:
    """1 for the tokens that lie within a span or reach into one."""
    mask = np.zeros(len(offsets), np.uint8)
    bounds = np.array(offsets, dtype=np.int64).reshape(-1, 2)
    for begin, end in spans:
        mask |= (bounds[:, 0] < end) & (bounds[:, 1] > begin)
    return mask


def check_messages(value: dict[str, Any], where: str) -> list[Message]:
    messages = value.get("messages")
    if not isinstance(messages, list) or not messages:
        raise UserError(f"{where}: expected a key 'messages' with a list of messages that is not empty")
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str) or "content" not in message:
            raise UserError(f"{where}: message {number} needs a 'role' (a string) and a 'content'")
    return messages


class ChatEncoder:
    """Conversations to token ids and masks."""

    def __init__(self, tokenizer: Tokenizer, template: str, eod: int | None) -> None:
        self.tokenizer = tokenizer
        self.template = ChatTemplate(template, tokenizer.special)
        self.closings = tuple(text for text in tokenizer.special_texts() if text)
        self.eod = eod

    def encode(self, value: dict[str, Any], where: str) -> tuple[np.ndarray, np.ndarray]:
        messages = check_messages(value, where)
        variables = {"tools": value["tools"]} if value.get("tools") else {}
        try:
            text, spans = self.template.render_with_spans(messages, **variables)
        except jinja2.TemplateError as error:
            raise UserError(f"{where}: the chat template refuses this conversation: {error}") from None
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        spans = [trim_span(text, span, self.closings) for span in spans]
        ids, offsets = self.tokenizer.encode_with_offsets(text)
        mask = mask_of(offsets, spans)
        if self.eod is not None:
            closed = self.closings and text.endswith(self.closings)  # then the turn has its own end
            learned = bool(spans) and spans[-1][1] == len(text) and not closed
            ids, mask = [*ids, self.eod], np.append(mask, np.uint8(learned))
        return np.array(ids, dtype=np.int32), mask
