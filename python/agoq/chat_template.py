"""Renders conversations with a Hugging Face chat template, to the text that transformers makes."""

from __future__ import annotations

import datetime
import json
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from agoq.command import UserError

Message = dict[str, Any]
Span = tuple[int, int]  # characters [begin, end) of the rendered text

# Never part of a text that anyone wrote: they mark places in a rendering and are taken out again.
BEGIN, END = (f"{name}{secrets.token_hex(12)}" for name in ("begin", "end"))
BORDER = re.compile(f"({BEGIN}|{END})")


@dataclass(frozen=True)
class Conversation:
    """What a template is given."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    documents: list[dict[str, Any]] | None = None
    variables: dict[str, Any] = field(default_factory=dict)  # beside those: chat_template_kwargs
    prompt: bool = False  # end with the opening of the assistant's next message


class GenerationTag(Extension):
    """{% generation %} ... {% endgeneration %} encloses what the assistant writes."""

    tags = {"generation"}

    def __init__(self, environment: jinja2.Environment) -> None:
        super().__init__(environment)
        environment.extend(marking=False)

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_enclose"), [], [], body).set_lineno(line)

    def _enclose(self, caller: Callable[[], str]) -> str:
        return BEGIN + caller() + END if self.environment.marking else caller()  # type: ignore[attr-defined]


class PlainNamespace(jinja2.utils.Namespace):
    """Jinja's `namespace`, without underscored names, as transformers has it: they lead to Python's internals."""

    def __init__(*args: Any, **values: Any) -> None:  # `self` may be one of the values
        for name in dict(*args[1:], **values):
            PlainNamespace._check(name)
        jinja2.utils.Namespace.__init__(*args, **values)

    def __setitem__(self, name: str, value: Any) -> None:
        PlainNamespace._check(name)  # `self` has only the attributes that a template gave it
        super().__setitem__(name, value)

    @staticmethod
    def _check(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace cannot hold the underscored name {name!r}")


class PlainDict:
    """`dict` and `dict.fromkeys`, and nothing else of the type."""

    def __call__(self, *args: Any, **values: Any) -> dict[Any, Any]:
        return dict(*args, **values)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def to_json(value: Any, ensure_ascii: bool = False, indent: int | str | None = None,
            separators: tuple[str, str] | None = None, sort_keys: bool = False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def describe(error: Exception) -> str:
    """For the user: what a template said, or what went wrong inside it."""
    said = isinstance(error, jinja2.TemplateError) and not isinstance(error, jinja2.exceptions.SecurityError)
    return str(error) if said else f"{type(error).__name__}: {error}"


class ChatTemplate:
    """One template, compiled, in Jinja's sandbox."""

    def __init__(self, source: str, special: dict[str, str], name: str = "the chat template") -> None:
        self.environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols])
        self.environment.filters["tojson"] = to_json
        self.environment.globals |= {"raise_exception": raise_exception, "strftime_now": self._strftime_now,
                                     "dict": PlainDict(), "namespace": PlainNamespace}
        self.special = special
        self.now = datetime.datetime.now()
        try:
            tree = self.environment.parse(source)
            self.has_generation = any(is_generation(block) for block in tree.find_all(nodes.CallBlock))
            self.template = self.environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise UserError(f"{name} does not parse: line {error.lineno}: {error.message}") from None
        except (ValueError, SyntaxError, RecursionError) as error:  # of Python's own compiler
            raise UserError(f"{name} does not compile: {describe(error)}") from None

    def set_clock(self) -> None:
        """Renderings until the next call show this moment, so that they can be compared with each other."""
        self.now = datetime.datetime.now()

    def render(self, talk: Conversation) -> str:
        """The text. Whatever a template raises comes through."""
        return self._render(talk, marking=False)

    def render_marked(self, talk: Conversation) -> str:
        """The text with BEGIN and END around what {% generation %} encloses."""
        return self._render(talk, marking=True)

    def _render(self, talk: Conversation, marking: bool) -> str:
        self.environment.marking = marking  # type: ignore[attr-defined]
        variables = {**self.special, **talk.variables, "messages": talk.messages, "tools": talk.tools,
                     "documents": talk.documents, "add_generation_prompt": talk.prompt}
        return self.template.render(variables)

    def _strftime_now(self, pattern: str) -> str:
        return self.now.strftime(pattern)


def is_generation(block: nodes.CallBlock) -> bool:
    return isinstance(block.call.node, nodes.ExtensionAttribute) and block.call.node.name == "_enclose"


def generated_parts(marked: str) -> list[tuple[str, bool]]:
    """A marked text in parts; True: enclosed by {% generation %}, once or in several layers."""
    parts, depth = [], 0
    for part in BORDER.split(marked):
        if part in (BEGIN, END):
            depth += 1 if part == BEGIN else -1
        else:
            parts.append((part, depth > 0))
    return parts


def generated_spans(marked: str, text: str) -> list[Span] | None:
    """Where the enclosed parts lie in the text as rendered without marks.

    A template may trim what a macro returned, and marks keep it from seeing white space behind them. So each part may
    lack white space at its ends. None if that does not explain the text: then the template looked at what is marked.
    """
    spans, at = [], 0
    for part, generated in generated_parts(marked):
        core = part.strip()
        lead, tail = (part[: part.find(core)], part[part.find(core) + len(core):]) if core else (part, "")
        begin = at
        at += len(lead) if text.startswith(lead, at) else 0
        if not text.startswith(core, at):
            return None
        at += len(core)
        at += len(tail) if text.startswith(tail, at) else 0
        if generated:
            spans.append((begin, at))
    return spans if at == len(text) else None
