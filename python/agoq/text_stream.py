"""Text that grows token by token: the pieces joined are what all ids decode to at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agoq.tokenizer import Tokenizer

REPLACEMENT = "\ufffd"  # stands for bytes that are no character, or not yet one


class TextStream:
    """What a model writes behind a prompt.

    The prompt's ids are decoded too, because a tokenizer like LLaMA-2's drops the space of the first token only:
    "The" and " miller" decode to "The miller", and alone " miller" decodes to "miller".
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self.tokenizer = tokenizer
        self.ids = list(prompt)
        self.text = self.shown = tokenizer.decode(self.ids)

    def add(self, number: int) -> str:
        """The text that can be shown now; empty while it may still change."""
        self.ids.append(number)
        text = self.tokenizer.decode(self.ids)
        if text == self.text:  # a special token, or none at all
            return ""
        self.text = text
        # One more byte can change how all the byte tokens before it decode (byte fallback).
        open_bytes = self.tokenizer.is_byte(number) or text.endswith(REPLACEMENT)
        return "" if open_bytes or not text.startswith(self.shown) else self.rest()

    def rest(self) -> str:
        """What is left once there are no more tokens."""
        fresh = self.text[len(self.shown):]
        self.shown = self.text
        return fresh
