"""Finds what the assistant wrote in a rendered conversation.

A template with {% generation %} says so itself. Of any other, the text is compared with renderings of parts of the
conversation, and of the conversation with marks in the place of an answer.
"""

from __future__ import annotations

import os
import secrets
import string
from collections.abc import Iterator
from dataclasses import replace

from agoq.chat_template import ChatTemplate, Conversation, Message, Span, generated_parts, generated_spans
from agoq.command import UserError

MARK = f"answer{secrets.token_hex(12)}"  # never part of a text that anyone wrote; survives tojson
SPOKEN = ("content", "reasoning_content", "thinking", "reasoning")  # keys of what the assistant says


def assistant_spans(template: ChatTemplate, talk: Conversation, text: str, silent: set[int],
                    closings: tuple[str, ...] = ()) -> list[Span]:
    """Spans of the answers with what ends each turn, in order; without those of the messages `silent`.

    `closings` are the special tokens of the tokenizer. What {% generation %} encloses is taken as it is.
    """
    if template.has_generation:
        marked = template.render_marked(talk)
        spans = generated_spans(marked, text)
        if spans is not None:
            left_out = spans_of(template, talk, marked, silent)
            return [span for at, span in enumerate(spans) if at not in left_out]
    turns = Turns(template, talk, text, closings)
    spoken = [at for at, message in enumerate(talk.messages) if message["role"] == "assistant" and at not in silent]
    found = [trim_span(text, span, closings) for at in spoken for span in turns.spans(at)]
    return [(begin, end) for begin, end in found if begin < end]


def shorter(closing: str, closings: tuple[str, ...]) -> Iterator[str]:
    """What may close a turn, and each of its beginnings that ends at white space or a special token."""
    while closing:
        yield closing
        bare = closing.rstrip()
        token = max((token for token in closings if bare.endswith(token)), key=len, default="")
        closing = bare if bare != closing else bare.removesuffix(token) if token else ""


def trim_span(text: str, span: Span, closings: tuple[str, ...]) -> Span:
    """Leave out the white space behind a special token that ends the turn: the template writes it, not the model."""
    begin, end = span
    stripped = text[begin:end].rstrip()
    return (begin, begin + len(stripped)) if closings and stripped.endswith(closings) else span


def spans_of(template: ChatTemplate, talk: Conversation, marked: str, messages: set[int]) -> set[int]:
    """Which of the parts within {% generation %} change with these messages."""
    owned: set[int] = set()
    before = [part for part, generated in generated_parts(marked) if generated]
    for at in messages:
        for variant in variants(talk.messages[at]):
            try:
                changed = template.render_marked(with_message(talk, at, variant))
            except Exception:  # a template may refuse a variant for any reason
                continue
            after = [part for part, generated in generated_parts(changed) if generated]
            first = common_prefix(before, after)
            last = common_prefix(before[first:][::-1], after[first:][::-1])
            owned |= set(range(first, len(before) - last))
            break
        else:
            raise UserError(f"message {at + 1} has weight 0, and the chat template gives no way to tell its part of "
                            "{% generation %} from that of others")
    return owned


def common_prefix(one: list[str], other: list[str]) -> int:
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def variants(message: Message) -> Iterator[Message]:
    """The message with marks in place of what it says: as a plain answer, then in the form that it has."""
    yield {"role": message["role"], "content": MARK}
    marked = message | {key: marked_content(message[key]) for key in SPOKEN if key in message}
    if isinstance(message.get("tool_calls"), list):
        marked["tool_calls"] = [marked_call(call) for call in message["tool_calls"]]
    yield marked


def marked_content(content: object) -> object:
    if isinstance(content, list):
        return [part | {"text": MARK} if isinstance(part, dict) and "text" in part else part for part in content]
    return MARK if isinstance(content, str) and content.strip() else content


def marked_call(call: object) -> object:
    if not isinstance(call, dict):
        return call
    function = call.get("function")
    return call | ({"function": function | {"name": MARK}} if isinstance(function, dict) else {"name": MARK})


def with_message(talk: Conversation, at: int, message: Message) -> Conversation:
    return replace(talk, messages=[*talk.messages[:at], message, *talk.messages[at + 1 :]])


class Turns:
    """Finds answers by comparing renderings; a template may treat the last turn apart from earlier ones."""

    def __init__(self, template: ChatTemplate, talk: Conversation, text: str, closings: tuple[str, ...]) -> None:
        self.template = template
        self.talk = talk
        self.text = text
        self.closings = closings

    def spans(self, at: int) -> list[Span]:
        """Where message `at` was written. Nothing: the template leaves it out."""
        before, upto = self._start(at), self._start(at + 1)
        if upto is not None and before == upto and self.text.startswith(upto):
            return []
        opening = self._opening(at, before)
        begin = self._begin(at, before, opening)
        end = None if begin is None else self._end(at, begin, upto)
        if begin is None or end is None:
            raise self._untold(at)
        whole = upto is None or self.text.startswith(upto)
        return [(begin, end)] if whole else self._without_results(at, begin, end, upto or "")

    @staticmethod
    def _untold(at: int) -> UserError:
        return UserError(
            f"the chat template renders message {at + 1} differently alone and within the conversation, or changes its "
            "text, so what the assistant wrote cannot be told apart: enclose it in {% generation %} ... "
            "{% endgeneration %}")

    def _opening(self, at: int, before: str | None) -> str | None:
        """The conversation before message `at`, and what the template writes to open the assistant's turn."""
        prompt = self._start(at, prompt=True)
        if prompt is None or prompt != before:
            return prompt
        # The template knows no add_generation_prompt. What it writes before a plain answer opens the turn, but white
        # space is the answer's own: the model is asked with the prompt, and has to write what comes behind it.
        answered = self._start(at, tail=next(variants(self.talk.messages[at])))
        plain, found, _ = (answered or "").partition(MARK)
        if answered and not found:  # it changes what an answer says, so nothing tells where the header ends
            raise self._untold(at)
        return plain if found and plain.startswith(prompt) and plain[len(prompt):].strip() else prompt

    def _begin(self, at: int, before: str | None, opening: str | None) -> int | None:
        if opening is not None and self.text.startswith(opening):
            return len(opening)
        header = opening[len(before):] if opening and before is not None and opening.startswith(before) else ""
        for whole, alone in self._marked(at):
            head, alone_head = whole.partition(MARK)[0], alone.partition(MARK)[0]
            if not header:  # white space before the answer is its own, as in `_opening`
                head = head if opening is None else head.rstrip()
            # What stands between the opening of the turn and the mark is the answer's, e.g. an empty thought.
            inner = alone_head[len(opening):] if opening and alone_head.startswith(opening) else ""
            for own in (inner, ""):
                begin = len(head) - len(own)
                if header and head.endswith(header + own) and self.text.startswith(head[:begin]):
                    return begin
            if self.text.startswith(head):
                return len(head)
        return self._parting(before, opening)

    def _parting(self, before: str | None, opening: str | None) -> int | None:
        """Where the text parts from the prompt, e.g. in a thought that the prompt closes and the answer continues."""
        if before is None or opening is None or not self.text.startswith(before):
            return None
        common = os.path.commonprefix([opening, self.text])[len(before):]
        whole = [common.rfind(token) + len(token) for token in (*self.closings, *string.whitespace) if token in common]
        return len(before) + max(whole) if whole else None

    def _end(self, at: int, begin: int, upto: str | None) -> int | None:
        if upto is not None and self.text.startswith(upto) and len(upto) > begin:
            return self._without_end_of_talk(at, begin, upto)
        for whole, alone in self._marked(at):
            tail, closing = whole.rpartition(MARK)[2], alone.rpartition(MARK)[2]
            end = len(self.text) - len(tail)
            if end < begin or not self.text.endswith(tail):
                continue
            parts = [*shorter(closing, self.closings), self._closing_of_user(at), ""]
            return end + next((len(part) for part in parts if part and tail.startswith(part)), 0)
        return None

    def _closing_of_user(self, at: int) -> str:
        """What ends the turn of the user before message `at`, if that is a token. It may end answers, too."""
        users = [number for number, message in enumerate(self.talk.messages[:at]) if message["role"] == "user"]
        text = self._start(users[-1], tail={"role": "user", "content": MARK}) if users else None
        closing = (text or "").partition(MARK)[2]
        return closing if closing.rstrip().endswith(self.closings) else ""

    def _without_end_of_talk(self, at: int, begin: int, upto: str) -> int:
        """Where the turn ends, if behind its own end stands a token that ends the conversation."""
        ends = [part for part in shorter(upto[begin:], self.closings) if part.endswith(self.closings)]
        if not self.closings or len(ends) < 2:
            return len(upto)
        followed = self._start(at + 1, tail={"role": "user", "content": MARK}) or ""
        return next((begin + len(part) for part in ends if followed.startswith(upto[:begin] + part)), len(upto))

    def _without_results(self, at: int, begin: int, end: int, upto: str) -> list[Span]:
        """The turn without the results of its calls, which a template may write within it."""
        messages = self.talk.messages
        after = next((number for number in range(at + 1, len(messages)) if messages[number]["role"] != "tool"),
                     len(messages))
        places = [place for number in range(at + 1, after) if (place := self._place(number)) is not None]
        if not places or places[0][0] < begin or places[-1][1] > end:
            return [(begin, end)]
        (first, _), (_, last) = places[0], places[-1]
        bare = self._try(replace(self.talk, messages=messages[: at + 1] + messages[after:]))
        for whole in (bare, upto):  # the turn without results
            if whole is not None and whole.startswith(self.text[:begin]):
                front = len(os.path.commonprefix([whole, self.text[:first]]))
                front -= next((size for token in self.closings for size in range(1, len(token))  # not within a token
                               if self.text.startswith(token, front - size)), 0)
                if front > begin:
                    return [(begin, front), (self._resumption(at, last, end, whole[front:]), end)]
        return [(begin, first), (self._resumption(at, last, end, ""), end)]

    def _resumption(self, at: int, last: int, end: int, rest: str) -> int:
        """Where, behind results, message `at` goes on: as the turn does without them, or with its content."""
        for begin in range(last, end):
            if rest.startswith(self.text[begin:end]):
                return begin
        place = self._place(at)
        return place[0] if place is not None and place[0] >= last else end

    def _place(self, number: int) -> Span | None:
        """Where the content of a message stands."""
        marked = with_message(self.talk, number, self.talk.messages[number] | {"content": MARK})
        head, found, tail = (self._try(marked) or "").partition(MARK)
        fits = found and self.text.startswith(head) and self.text.endswith(tail)
        return (len(head), len(self.text) - len(tail)) if fits else None

    def _marked(self, at: int) -> Iterator[tuple[str, str]]:
        """Renderings with marks in the place of message `at`: within the whole conversation, and as its end."""
        for variant in variants(self.talk.messages[at]):
            whole = self._try(with_message(self.talk, at, variant))
            if whole is not None and MARK in whole:
                yield whole, self._start(at, tail=variant) or ""

    def _start(self, length: int, prompt: bool = False, tail: Message | None = None) -> str | None:
        """The first messages of the conversation, and perhaps one more."""
        if length == len(self.talk.messages) and tail is None and prompt == self.talk.prompt:
            return self.text
        messages = self.talk.messages[:length] + ([tail] if tail else [])
        return self._try(replace(self.talk, messages=messages, prompt=prompt))

    def _try(self, talk: Conversation) -> str | None:
        """None where the template refuses, as some do for a conversation that does not end as they expect."""
        try:
            return self.template.render(talk)
        except Exception:  # it may refuse in any way
            return None
