"""Reading documents: JSON lines and plain text, streamed, with the file and line of whatever is wrong."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from agoq.command import UserError, naming

PIECE = 1 << 20  # characters; a longer text is tokenized piece by piece, cut at the next line break that is safe
LONGEST_PIECE = 8 * PIECE  # without a safe one, at any line break
COMPRESSED: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
SPACE = re.compile(r"[ \t\r\n]*")  # of JSON
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

# A single line break between two words is a border that byte-level tokenizers never merge over: cutting there changes
# no token. Tokenizers that put a space before every text (LLaMA 2) get one more token at a cut, once in a MiB.
SAFE_BREAK = re.compile(r"(?<=\S\n)(?=\S)")


@dataclass(frozen=True)
class Piece:
    """Part of a document: its bytes as they stand in the file (JSON lines), or its text."""

    file: str
    line: int
    payload: str | bytes
    last: bool  # the document ends here

    @property
    def where(self) -> str:
        return f"{self.file}, line {self.line}"


@dataclass(frozen=True)
class Refusal:
    """Why a row cannot be used."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}: {self.reason}"


def read_lines(path: Path, advance: Callable[[int], Any]) -> Iterator[tuple[int, bytes]]:
    """Numbered lines with their line ends; `advance` is told the bytes of the file consumed so far."""
    try:
        with naming(path), path.open("rb") as raw:
            opener = COMPRESSED.get(path.suffix)
            stream = io.BufferedReader(opener(raw)) if opener else raw
            told = 0
            for number, line in enumerate(cast(BinaryIO, stream), 1):
                yield number, line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line
                if number % 256 == 0 or len(line) > PIECE:
                    told = tell(raw, told, advance)
            tell(raw, told, advance)
    except (EOFError, lzma.LZMAError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the operating system; gzip and bz2 raise OSError, too
        raise UserError(f"{path}: damaged compressed file: {error}") from None


def tell(raw: BinaryIO, told: int, advance: Callable[[int], Any]) -> int:
    position = raw.tell()
    advance(position - told)
    return position


def decode_utf8(line: bytes, where: str) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: invalid UTF-8: byte 0x{line[error.start]:02x} at byte {error.start} of the line; "
                        "convert the file to UTF-8") from None


def read_text(path: Path) -> str:
    """A whole file as text, as it stands."""
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: invalid UTF-8 at byte {error.start}; convert the file to UTF-8") from None


def json_pieces(path: Path, advance: Callable[[int], Any]) -> Iterator[Piece]:
    """A document for every line that is not blank, or every item of a JSON array; parsing is left to the workers."""
    lines = read_lines(path, advance)
    first = True
    for number, line in lines:
        if first and line.lstrip().startswith(b"["):
            yield from array_pieces(path, number, b"".join([line, *(later for _, later in lines)]))
        elif line.strip():
            first = False
            yield Piece(str(path), number, line, last=True)


def array_pieces(path: Path, line: int, source: bytes) -> Iterator[Piece]:
    """The items of the JSON array that begins in this line of the file; it is held in memory as a whole."""
    text = decode_utf8(source, f"{path}, from line {line}")
    decoder = json.JSONDecoder()
    at = skip_space(text, text.index("[") + 1)
    line += text.count("\n", 0, at)
    while not text.startswith("]", at):
        try:
            _, end = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            line += text.count("\n", at, error.pos)
            raise UserError(f"{path}, line {line}: not valid JSON: {error.msg}") from None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {line}: cannot be read as JSON: {error}") from None
        yield Piece(str(path), line, text[at:end].encode(), last=True)
        border = skip_space(text, end)
        following = skip_space(text, border + 1) if text.startswith(",", border) else border
        line += text.count("\n", at, following)
        if following == border and not text.startswith("]", border):
            raise UserError(f"{path}, line {line}: not valid JSON: expected ',' or ']' between the items of the list")
        at = following
    if text[at + 1 :].strip():
        raise UserError(f"{path}, line {line}: not valid JSON: something stands behind the list")


def skip_space(text: str, at: int) -> int:
    found = SPACE.match(text, at)
    return found.end() if found else at


def text_pieces(path: Path, separator: str | None, advance: Callable[[int], Any]) -> Iterator[Piece]:
    """The file as one document, or as several that end with a line equal to `separator`."""
    parts: list[str] = []
    first, size = 1, 0
    for number, raw in read_lines(path, advance):
        line = decode_utf8(raw, f"{path}, line {number}")
        at_separator = separator is not None and line.rstrip("\r\n") == separator
        if at_separator or size >= LONGEST_PIECE or (size >= PIECE and breaks_safely(parts[-1], line)):
            yield Piece(str(path), first, "".join(parts), last=at_separator)
            parts, first, size = [], number + at_separator, 0
        if not at_separator:
            parts.append(line)
            size += len(line)
    if parts or separator is None:
        yield Piece(str(path), first, "".join(parts), last=True)


def breaks_safely(before: str, after: str) -> bool:
    return SAFE_BREAK.search(before[-2:] + after[:1]) is not None


def split_text(text: str) -> list[str]:
    """Cut a long text at safe line breaks into parts of at least PIECE characters."""
    parts, start = [], 0
    while len(text) - start > PIECE:
        found = SAFE_BREAK.search(text, start + PIECE, start + LONGEST_PIECE)
        end = found.start() if found else text.find("\n", start + LONGEST_PIECE) + 1
        if end == 0:
            break
        parts.append(text[start:end])
        start = end
    return [*parts, text[start:]]


def parse_object(piece: Piece) -> dict[str, Any]:
    assert isinstance(piece.payload, bytes)
    line = decode_utf8(piece.payload, piece.where)
    try:
        value = json.loads(line)
    except ValueError as error:
        raise UserError(f"{piece.where}: not valid JSON: {error}") from None
    except RecursionError:
        raise UserError(f"{piece.where}: JSON nested too deeply") from None
    if not isinstance(value, dict):
        raise UserError(f"{piece.where}: expected a JSON object, found {type(value).__name__}")
    return value


def text_of(piece: Piece, key: str) -> str:
    """The text of a JSON line."""
    value = parse_object(piece)
    if key not in value:
        found = ", ".join(map(repr, value)) or "no keys"
        raise UserError(f"{piece.where}: no key '{key}' (found {found}): name the key of the text with --text-key")
    if not isinstance(value[key], str):
        raise UserError(f"{piece.where}: '{key}' must be a string, found {type(value[key]).__name__}")
    return cast(str, value[key])
