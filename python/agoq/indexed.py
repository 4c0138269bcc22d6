"""Megatron-LM's indexed datasets: PREFIX.bin holds token ids, PREFIX.idx says where each document lies.

    .idx   9 bytes  "MMIDIDX\\0\\0"
           u64      version, 1
           u8       type of the ids: 8 = uint16, 4 = int32
           u64      number of sequences n (here a document is one sequence)
           u64      number of document indices, n + 1
           int32    length of each sequence, in tokens       [n]
           int64    where each sequence starts, in bytes     [n]
           int64    first sequence of each document, then n  [n + 1]

Everything is little-endian. PREFIX.mask, where there is one, holds a byte for every token of the .bin: 1 when the
token counts in the loss as a target.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from agoq.command import UserError, naming

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
TYPE_CODES = {"uint16": 8, "int32": 4}
LARGEST_UINT16_VOCAB = 65500  # Megatron-LM's own limit
LARGEST_DOCUMENT = 2**31 - 1
CHUNK = 1 << 20
SUFFIXES = ("bin", "mask", "json", "idx")  # of the files of a dataset


def token_type(vocab_size: int) -> np.dtype[Any]:
    return np.dtype("<u2" if vocab_size < LARGEST_UINT16_VOCAB else "<i4")


class IndexedWriter:
    """Writes a dataset beside its final names and renames it when it is whole.

    Use through `open_writer`. Only the lengths of the documents stay in memory.
    """

    def __init__(self, prefix: Path, vocab_size: int, with_mask: bool) -> None:
        self.prefix = prefix
        self.dtype = token_type(vocab_size)
        self.vocab_size = vocab_size
        self.tokens = 0
        self.targets = 0
        self.empty_documents = 0
        self._lengths = array("i")
        self._open_tokens = 0  # tokens of the document that is being written
        self._bin = self._open("bin")
        self._mask = self._open("mask") if with_mask else None

    def path(self, suffix: str) -> Path:
        return self.prefix.with_name(f"{self.prefix.name}.{suffix}")

    @property
    def documents(self) -> int:
        return len(self._lengths)

    @property
    def masked(self) -> bool:
        return self._mask is not None

    @property
    def open_tokens(self) -> int:
        return self._open_tokens

    def add(self, ids: np.ndarray, mask: np.ndarray | None = None) -> None:
        """Append tokens to the open document; mask says which of them count as targets."""
        if ids.size and (ids.min() < 0 or ids.max() >= self.vocab_size):
            raise UserError(f"the tokenizer returned id {ids.max()}, outside its vocabulary of {self.vocab_size}")
        if self._mask is not None:
            if mask is None or mask.shape != ids.shape:
                raise ValueError("a masked dataset needs one mask value for each token")
            self._mask.write(mask.astype(np.uint8).tobytes())
            self.targets += int(mask.sum())
        self._bin.write(ids.astype(self.dtype).tobytes())
        self._open_tokens += ids.size

    def end_document(self) -> None:
        """Close the open document. One without tokens is counted and left out."""
        if self._open_tokens > LARGEST_DOCUMENT:
            raise UserError(f"document {self.documents} has {self._open_tokens} tokens; the index holds lengths "
                            f"up to {LARGEST_DOCUMENT}: split it")
        if self._open_tokens:
            self._lengths.append(self._open_tokens)
            self.tokens += self._open_tokens
        else:
            self.empty_documents += 1
        self._open_tokens = 0

    def finish(self, description: dict[str, Any]) -> None:
        """Write the index and PREFIX.json, make everything durable, and give the files their names."""
        with self._open("idx") as file:
            self._write_index(file)
            sync(file)
        with self._open("json") as file:
            file.write((json.dumps(description, indent=2) + "\n").encode())
            sync(file)
        kept = ["bin", "json"] + (["mask"] if self._mask else [])
        self.close()
        for suffix in ("idx", "mask"):  # of an older dataset of this name
            self.path(suffix).unlink(missing_ok=True)
        for suffix in [*kept, "idx"]:  # the index goes first and comes last: where it is, the dataset is whole
            self._aside(suffix).replace(self.path(suffix))
        sync_folder(self.prefix.parent)

    def close(self) -> None:
        for file in (self._bin, self._mask):
            if file and not file.closed:
                sync(file)
                file.close()

    def discard(self) -> None:
        """Remove what was written so far."""
        for file in (self._bin, self._mask):
            with contextlib.suppress(OSError):
                if file:
                    file.close()
        for suffix in SUFFIXES:
            self._aside(suffix).unlink(missing_ok=True)

    def _aside(self, suffix: str) -> Path:
        return self.path(f"{suffix}.partial")

    def _open(self, suffix: str) -> BinaryIO:
        return self._aside(suffix).open("wb", buffering=CHUNK)

    def _write_index(self, file: BinaryIO) -> None:
        lengths = np.frombuffer(self._lengths, dtype=np.int32) if self._lengths else np.empty(0, np.int32)
        count = len(lengths)
        file.write(MAGIC + struct.pack("<QBQQ", VERSION, TYPE_CODES[self.dtype.name], count, count + 1))
        file.write(lengths.astype("<i4").tobytes())
        start = 0
        for at in range(0, count, CHUNK):
            ends = start + np.cumsum(lengths[at : at + CHUNK], dtype=np.int64) * self.dtype.itemsize
            file.write(np.concatenate([[start], ends[:-1]]).astype("<i8").tobytes())
            start = int(ends[-1])
        for at in range(0, count + 1, CHUNK):
            file.write(np.arange(at, min(at + CHUNK, count + 1), dtype="<i8").tobytes())


def sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def open_writer(prefix: Path, vocab_size: int, with_mask: bool, overwrite: bool) -> Iterator[IndexedWriter]:
    """A writer whose files are removed unless `finish` was reached."""
    index = prefix.with_name(f"{prefix.name}.idx")
    if index.exists() and not overwrite:
        raise UserError(f"{index} exists already: choose another --output, or pass --overwrite")
    prefix.parent.mkdir(parents=True, exist_ok=True)
    writer = IndexedWriter(prefix, vocab_size, with_mask)
    try:
        with naming(prefix):
            yield writer
    finally:
        writer.discard()
