"""Text and conversations to Megatron-LM's .bin/.idx: `python -m agoq.data INPUT... --output PREFIX`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from agoq.command import UserError, printable, run_command
from agoq.documents import COMPRESSED, Piece, Refusal, json_pieces, text_pieces
from agoq.encode import Encoded, Recipe, encode_all
from agoq.indexed import SUFFIXES, IndexedWriter, open_writer
from agoq.tokenizer import Tokenizer, load_tokenizer

EXAMPLES = """\
examples:
  agoq data corpus.jsonl --tokenizer Llama-3.1-8B --append-eod --output data/corpus
  agoq data books.txt.xz --separator '<|endoftext|>' --tokenizer byte --append-eod --output data/books
  agoq data --chat messages.jsonl --tokenizer Qwen2.5-7B-Instruct --output data/chat

Each line of a JSON lines file is an object with the text under --text-key; each line of a --chat file is an object
with a conversation: "messages": [{"role": ..., "content": ...}, ...], or in the form of ShareGPT or Alpaca. A file may
also hold one JSON array of such objects (docs/chat.md). Any other file is UTF-8 text. Files that end with .gz, .xz or
.bz2 are unpacked as they are read. Written: PREFIX.bin, PREFIX.idx, PREFIX.json, and for --chat PREFIX.mask.
"""

CHAT_FORMATS = ("messages", "sharegpt", "alpaca")


def parse_arguments(command_line: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="agoq data", description="Tokenize text or conversations for training.", epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="*", type=Path, metavar="INPUT", help="JSON lines (.jsonl) or plain text files")
    parser.add_argument("--chat", nargs="+", type=Path, default=[], metavar="FILE",
                        help="JSON lines with conversations; only what the assistant says counts in the loss")
    parser.add_argument("--tokenizer", required=True, metavar="NAME",
                        help="`byte`, a tokenizer.json, or a folder with tokenizer.json or vocab.json + merges.txt")
    parser.add_argument("--output", required=True, type=Path, metavar="PREFIX", help="where to write PREFIX.bin, ...")
    parser.add_argument("--text-key", default="text", metavar="KEY",
                        help="key of the text in JSON lines (default: text)")
    parser.add_argument("--separator", metavar="LINE", help="a line that ends a document in plain text; "
                        "without it each file is one document")
    parser.add_argument("--append-eod", action="store_true", help="end each document with the end-of-document "
                        "token, unless it ends with it already")
    parser.add_argument("--eod-token", metavar="TOKEN", help="that token, where the tokenizer does not say which it is")
    parser.add_argument("--prepend-bos", action="store_true", help="begin each document with the tokenizer's bos token")
    parser.add_argument("--chat-format", choices=CHAT_FORMATS, help="form of the conversations: 'messages', "
                        "'conversations' (ShareGPT), or 'instruction' and 'output' (default: each row shows its own)")
    parser.add_argument("--chat-template", metavar="FILE", help="use this template, or the one of this name where the "
                        "tokenizer has several (default: 'tool_use' for rows with tools, else 'default')")
    parser.add_argument("--skip-bad", type=int, default=0, metavar="N", help="leave out up to N rows that cannot be "
                        "read, and list them on stderr and in PREFIX.json (default: 0, the first one is an error)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N",
                        help="processes that tokenize (default: one for each core)")
    parser.add_argument("--overwrite", action="store_true", help="replace a dataset of the same name")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser.parse_args(command_line)


def is_json_lines(path: Path) -> bool:
    name = path.with_suffix("") if path.suffix in COMPRESSED else path
    return name.suffix in (".jsonl", ".json", ".ndjson")


def check_inputs(arguments: argparse.Namespace) -> list[Path]:
    if bool(arguments.inputs) == bool(arguments.chat):
        raise UserError("give input files, or --chat with files of conversations (one of the two)")
    if arguments.workers < 1:
        raise UserError(f"--workers must be at least 1, not {arguments.workers}")
    if arguments.skip_bad < 0:
        raise UserError(f"--skip-bad must be at least 0, not {arguments.skip_bad}")
    if not arguments.output.name:
        raise UserError(f"--output '{arguments.output}' names no file: give the start of one, as data/corpus")
    if not arguments.chat and (arguments.chat_format or arguments.chat_template):
        raise UserError("--chat-format and --chat-template are for conversations: give their files with --chat")
    if arguments.chat and arguments.prepend_bos:
        raise UserError("--prepend-bos has no meaning with --chat: the chat template writes the bos token")
    files: list[Path] = arguments.inputs or arguments.chat
    kinds = {is_json_lines(path) for path in files}
    if arguments.inputs and len(kinds) > 1:
        raise UserError("JSON lines and plain text files in one call: convert them one kind at a time")
    if arguments.separator is not None and True in kinds:
        raise UserError("--separator is for plain text; in JSON lines each line is a document")
    if arguments.skip_bad and False in kinds and not arguments.chat:
        raise UserError("--skip-bad is for rows of JSON lines; plain text has none")
    tokenizer = os.path.abspath(arguments.tokenizer)
    if tokenizer != printable(tokenizer):
        raise UserError(f"--tokenizer: the path {printable(tokenizer)} is not UTF-8, so PREFIX.json cannot hold it: "
                        "rename the folder")
    outputs = {arguments.output.with_name(f"{arguments.output.name}.{suffix}").resolve() for suffix in SUFFIXES}
    for path in files:
        if not path.is_file():
            raise UserError(f"no such file: {path}")
        if path.resolve() in outputs:
            raise UserError(f"--output {arguments.output} would replace the input {path}: choose another name")
    return files


def find_eod(tokenizer: Tokenizer, arguments: argparse.Namespace) -> int | None:
    if arguments.eod_token is not None:
        ids = tokenizer.encode([arguments.eod_token])[0]
        if len(ids) != 1:
            raise UserError(f"--eod-token '{arguments.eod_token}' is {len(ids)} tokens for this tokenizer, not one")
        return int(ids[0])
    if arguments.append_eod and tokenizer.eod is None:
        raise UserError("the tokenizer does not say which token ends a document: name it with --eod-token")
    return tokenizer.eod


def find_templates(tokenizer: Tokenizer, arguments: argparse.Namespace) -> dict[str, str] | None:
    if not arguments.chat:
        return None
    from agoq.chat import checked_templates  # needs jinja2, which plain text does not

    return checked_templates(tokenizer, arguments.chat_template)


def find_bos(tokenizer: Tokenizer, arguments: argparse.Namespace) -> int | None:
    if arguments.prepend_bos and tokenizer.bos is None:
        raise UserError(f"--prepend-bos: the tokenizer '{tokenizer.name}' has no bos token")
    return tokenizer.bos if arguments.prepend_bos else None


def read_pieces(files: list[Path], arguments: argparse.Namespace, advance: Callable[[int], Any]) -> Iterator[Piece]:
    for path in files:
        if arguments.chat or is_json_lines(path):
            yield from json_pieces(path, advance)
        else:
            yield from text_pieces(path, arguments.separator, advance)


class Skipped:
    """Rows that were left out, as many as the user allows."""

    def __init__(self, allowed: int) -> None:
        self.allowed = allowed
        self.rows: list[Refusal] = []

    def add(self, row: Refusal) -> None:
        if len(self.rows) == self.allowed:
            limit = f" (--skip-bad {self.allowed} allows no more bad rows)" if self.allowed else ""
            raise UserError(f"{row}{limit}")
        self.rows.append(row)
        tqdm.write(f"left out {printable(str(row))}", file=sys.stderr)

    def describe(self) -> list[dict[str, Any]]:
        return [{"file": printable(row.file), "line": row.line, "reason": printable(row.reason)} for row in self.rows]


def write_documents(encoded: Iterator[Encoded], writer: IndexedWriter, skipped: Skipped, bos: int | None,
                    eod: int | None) -> None:
    """Documents one after the other; bos and eod frame those that hold tokens. Conversations come complete."""
    ended = False  # by a token `eod` of the text itself
    for part in encoded:
        if part.refusal is not None:
            skipped.add(part.refusal)
            continue
        if part.ids.size and bos is not None and not writer.open_tokens:
            writer.add(np.array([bos]))
        writer.add(part.ids, part.mask)
        ended = part.ids[-1] == eod if part.ids.size else ended
        if part.last:
            if eod is not None and writer.open_tokens and not ended:
                writer.add(np.array([eod]))
            writer.end_document()
            ended = False


def describe(writer: IndexedWriter, tokenizer: Tokenizer, eod: int | None, arguments: argparse.Namespace,
             skipped: Skipped, files: list[Path]) -> dict[str, Any]:
    """What PREFIX.json says; docs/data.md says what is read of it."""
    name = tokenizer.name if tokenizer.name == "byte" else os.path.abspath(tokenizer.name)
    description: dict[str, Any] = {
        "tokenizer": name, "vocabulary": tokenizer.vocabulary, "vocab_size": tokenizer.vocab_size, "eod_id": eod,
        "append_eod": arguments.append_eod, "dtype": writer.dtype.name, "documents": writer.documents,
        "tokens": writer.tokens, "empty_documents": writer.empty_documents}
    if writer.masked:
        description["target_tokens"] = writer.targets
    else:  # a chat template says itself how a conversation begins
        description["prepend_bos"] = arguments.prepend_bos
    if skipped.rows:
        description["skipped"] = skipped.describe()
    return description | {"sources": [printable(path.name) for path in files]}


def progress(files: list[Path], quiet: bool) -> tqdm[Any]:
    total = sum(path.stat().st_size for path in files)
    return tqdm(total=total, unit="B", unit_scale=True, unit_divisor=1024, disable=quiet, dynamic_ncols=True,
                desc="tokenizing", mininterval=0.25)


def main(command_line: list[str] | None = None) -> None:
    arguments = parse_arguments(command_line)
    files = check_inputs(arguments)
    tokenizer = load_tokenizer(arguments.tokenizer)
    templates = find_templates(tokenizer, arguments)
    bos, eod = find_bos(tokenizer, arguments), find_eod(tokenizer, arguments)
    appended = eod if arguments.append_eod else None
    text_key = arguments.text_key if is_json_lines(files[0]) else None
    recipe = Recipe(arguments.tokenizer, text_key, templates, arguments.chat_format, appended)
    skipped = Skipped(arguments.skip_bad)
    with (open_writer(arguments.output, tokenizer.vocab_size, templates is not None, arguments.overwrite) as writer,
          progress(files, arguments.quiet) as bar):
        pieces = read_pieces(files, arguments, bar.update)
        encoded = encode_all(pieces, recipe, arguments.workers)
        write_documents(encoded, writer, skipped, bos, None if templates else appended)
        if not writer.documents:
            raise UserError("the input holds no text: nothing was written" if not skipped.rows else
                            f"all {len(skipped.rows):,} rows were left out: nothing was written")
        writer.finish(describe(writer, tokenizer, eod, arguments, skipped, files))
    report(writer, skipped)


def report(writer: IndexedWriter, skipped: Skipped) -> None:
    print(f"{writer.path('bin')}: {writer.tokens:,} tokens in {writer.documents:,} documents ({writer.dtype.name})")
    if writer.empty_documents:
        print(f"left out {writer.empty_documents:,} documents without any text")
    if skipped.rows:
        print(f"left out {len(skipped.rows):,} rows that cannot be used; {writer.path('json')} lists them")
    if writer.masked:
        share = 100 * writer.targets / writer.tokens
        print(f"{writer.targets:,} tokens ({share:.1f}%) count in the loss" + (
            "" if writer.targets else ": no answer of the assistant was found"))


if __name__ == "__main__":
    run_command("data", main)
