"""From pieces of documents to token ids, in this process or spread over several, in order."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import numpy as np

from agoq.command import UserError
from agoq.documents import Piece, Refusal, parse_object, split_text, text_of
from agoq.tokenizer import Tokenizer, load_tokenizer

BATCH = 1 << 19  # bytes or characters of a worker's share
AHEAD = 3  # shares waiting for each worker: bounds the memory


@dataclass(frozen=True)
class Encoded:
    """The tokens of one piece; the mask is there for conversations. A piece that was refused has none."""

    ids: np.ndarray
    mask: np.ndarray | None
    last: bool
    refusal: Refusal | None = None


@dataclass(frozen=True)
class Recipe:
    """What a worker needs to know to do its part."""

    tokenizer: str
    text_key: str | None = None  # JSON lines with the text under this key
    chat_templates: dict[str, str] | None = None  # JSON lines with conversations
    chat_format: str | None = None  # of these; None: each row shows its own
    eod: int | None = None  # appended to conversations; elsewhere the writer appends it


class Encoder:
    """Turns pieces into tokens as the recipe says."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.tokenizer: Tokenizer = load_tokenizer(recipe.tokenizer)
        self.chat: Any = None
        if recipe.chat_templates is not None:
            from agoq.chat import ChatEncoder  # needs jinja2, which plain text does not

            self.chat = ChatEncoder(self.tokenizer, recipe.chat_templates, recipe.eod, recipe.chat_format)

    def encode(self, pieces: list[Piece]) -> list[Encoded]:
        return self._encode_chats(pieces) if self.chat else self._encode_texts(pieces)

    def _encode_chats(self, pieces: list[Piece]) -> list[Encoded]:
        result = []
        for piece in pieces:
            try:
                ids, mask = self.chat.encode(parse_object(piece), piece.where)
                result.append(Encoded(ids, mask, True))
            except UnicodeEncodeError as error:
                result.append(refused(piece, surrogate_error(piece, error)))
            except UserError as error:
                result.append(refused(piece, error))
        return result

    def _encode_texts(self, pieces: list[Piece]) -> list[Encoded]:
        texts, owners, refusals = [], [], []
        for piece in pieces:
            try:
                parts = split_text(self._text(piece))
            except UserError as error:
                refusals.append(refused(piece, error))
                continue
            texts += parts
            owners += [(piece, at == len(parts) - 1) for at in range(len(parts))]
        encoded = self.tokenizer.encode(texts)
        return refusals + [Encoded(ids, None, end and piece.last)
                           for ids, (piece, end) in zip(encoded, owners, strict=True)]

    def _text(self, piece: Piece) -> str:
        text = text_of(piece, self.recipe.text_key) if self.recipe.text_key is not None else piece.payload
        assert isinstance(text, str)
        if not text.isascii():
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as error:
                raise surrogate_error(piece, error) from None
        return text


def refused(piece: Piece, error: UserError) -> Encoded:
    reason = str(error).removeprefix(f"{piece.where}: ")
    return Encoded(np.empty(0, np.int32), None, False, Refusal(piece.file, piece.line, reason))


def surrogate_error(piece: Piece, error: UnicodeEncodeError) -> UserError:
    code = f"\\u{ord(error.object[error.start]):04x}"
    return UserError(f"{piece.where}: the text holds {code}, half of a surrogate pair and no character: repair it")


def shares(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece.payload)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


_encoder: Encoder | None = None  # of a worker process, set once when it starts


def _start_worker(recipe: Recipe) -> None:
    global _encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupted command ends its workers itself
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _encoder = Encoder(recipe)


def _work(pieces: list[Piece]) -> list[Encoded]:
    assert _encoder is not None
    return _encoder.encode(pieces)


def encode_all(pieces: Iterable[Piece], recipe: Recipe, workers: int) -> Iterator[Encoded]:
    """Tokens of all pieces, in order."""
    if workers <= 1:
        encoder = Encoder(recipe)
        for share in shares(pieces):
            yield from encoder.encode(share)
        return
    waiting: deque[Future[list[Encoded]]] = deque()
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (recipe,))
    try:
        for share in shares(pieces):
            if len(waiting) >= AHEAD * workers:
                yield from waiting.popleft().result()
            waiting.append(pool.submit(_work, share))
        while waiting:
            yield from waiting.popleft().result()
    except BrokenProcessPool:
        raise UserError("a worker process was killed, most often for want of memory: use fewer --workers") from None
    finally:
        pool.shutdown(cancel_futures=True)
