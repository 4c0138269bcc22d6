"""Text to token ids and back: `python -m agoq.tokenizer --tokenizer X encode|decode|stream`."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np

from agoq.command import UserError, run_command
from agoq.json_file import read_json
from agoq.llama_tokenizer import DEFAULTS, is_llama, rebuild
from agoq.special_tokens import SpecialTokens
from agoq.text_stream import TextStream
from agoq.vocabulary import vocabulary_hash

BYTE_EOD = 256
MOST_IDS = 1 << 31
USUAL_EOD = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")
BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")

Offsets = list[tuple[int, int]]


class Tokenizer(Protocol):
    """Ids below vocab_size; offsets are positions of characters in the text."""

    name: str
    vocab_size: int
    eod: int | None
    bos: int | None
    special: dict[str, str]  # bos_token, eos_token, ... as chat templates name them

    @property
    def vocabulary(self) -> str:
        """Its hash."""

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]: ...

    def encode_with_offsets(self, text: str) -> tuple[list[int], Offsets]: ...

    def encode_prompt(self, text: str, bos: str) -> list[int]:
        """bos: `always` or `never`, or `auto` for what the tokenizer itself puts in front."""

    def decode(self, ids: Sequence[int]) -> str:
        """Ids that stand for no token, as models with a padded vocabulary make them, are no text."""

    def is_byte(self, number: int) -> bool:
        """Whether this id is a byte that is joined with its neighbours to characters."""

    def special_texts(self) -> set[str]: ...


class ByteTokenizer:
    """The 256 bytes of UTF-8, and 256 for the end of a document."""

    name = "byte"
    vocab_size = 257
    eod: int | None = BYTE_EOD
    bos: int | None = None

    def __init__(self) -> None:
        self.special: dict[str, str] = {}

    @property
    def vocabulary(self) -> str:
        names = [f"<0x{byte:02X}>" for byte in range(BYTE_EOD)] + ["<|endoftext|>"]
        return vocabulary_hash({name: number for number, name in enumerate(names)})

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32) for text in texts]

    def encode_with_offsets(self, text: str) -> tuple[list[int], Offsets]:
        encoded = [character.encode("utf-8") for character in text]
        offsets = [(at, at + 1) for at, part in enumerate(encoded) for _ in part]
        return list(b"".join(encoded)), offsets

    def encode_prompt(self, text: str, bos: str) -> list[int]:
        return list(text.encode("utf-8"))

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i < BYTE_EOD).decode("utf-8", errors="replace")

    def is_byte(self, number: int) -> bool:
        return False  # a character that is complete stays as it is

    def special_texts(self) -> set[str]:
        return set()


class FileTokenizer:
    """A Hugging Face tokenizer read from files. Only `encode_prompt` adds special tokens of its own accord."""

    def __init__(self, name: str, inner: Any, folder: Path) -> None:
        self.name = name
        self.inner = inner
        defaults = {"pad_token": inner.padding["pad_token"]} if inner.padding else {}
        inner.no_truncation()  # left by whoever saved the tokenizer: they would cut texts, or fill them up
        inner.no_padding()
        if is_llama(folder, inner):
            rebuild(inner, read_json(folder / "tokenizer_config.json"))
            defaults |= {key: text for key, text in DEFAULTS.items() if inner.token_to_id(text) is not None}
        special = SpecialTokens(folder, inner.get_added_tokens_decoder(), defaults)
        special.add_to(inner)
        vocabulary = inner.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values()) + 1  # ids may have gaps
        self.special = special.texts()
        usual = [token for token in USUAL_EOD if token in vocabulary]
        self.eod = vocabulary.get(self.special.get("eos_token", usual[0] if usual else ""))
        self.bos = vocabulary.get(self.special.get("bos_token", ""))

    @property
    def vocabulary(self) -> str:
        return vocabulary_hash(self.inner.get_vocab(with_added_tokens=True))

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        encodings = self.inner.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]

    def encode_with_offsets(self, text: str) -> tuple[list[int], Offsets]:
        encoding = self.inner.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def encode_prompt(self, text: str, bos: str) -> list[int]:
        ids = list(self.inner.encode(text, add_special_tokens=False).ids)
        if bos == "always":
            if self.bos is None:
                raise UserError(f"the tokenizer '{self.name}' names no bos token to begin the prompt with")
            return [self.bos, *ids]
        return [*self._own_prefix(), *ids] if bos == "auto" else ids

    def _own_prefix(self) -> list[int]:
        """What the post-processor puts in front of a text, of whatever it puts around it."""
        framed = self.inner.encode("a", add_special_tokens=True)
        own = framed.special_tokens_mask
        return list(framed.ids[: own.index(0)]) if 0 in own else []

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.inner.decode(list(ids), skip_special_tokens=True))

    def is_byte(self, number: int) -> bool:
        return BYTE_TOKEN.fullmatch(self.inner.id_to_token(number) or "") is not None

    def special_texts(self) -> set[str]:
        added = self.inner.get_added_tokens_decoder().values()
        return {token.content for token in added} | set(self.special.values())




def load_gpt2_files(vocabulary: Path, merges: Path) -> Any:
    from tokenizers import Tokenizer as Inner
    from tokenizers import decoders, models, pre_tokenizers

    inner = Inner(models.BPE.from_file(str(vocabulary), str(merges)))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([token for token in USUAL_EOD if inner.token_to_id(token) is not None])
    return inner


def require_gpt2(folder: Path) -> None:
    """Other families have such files too (Qwen), and cut text into words differently before they are looked up."""
    family = read_json(folder / "tokenizer_config.json").get("tokenizer_class", "GPT2Tokenizer")
    if str(family).removesuffix("Fast") != "GPT2Tokenizer":
        raise UserError(f"folder '{folder}' is a {family} without tokenizer.json: write one with "
                        "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)")


def find_gpt2_files(folder: Path) -> tuple[Path, Path] | None:
    vocabulary = sorted(folder.glob("*vocab.json"))
    merges = sorted([*folder.glob("*merges.txt"), *folder.glob("*vocab.bpe")])
    return (vocabulary[0], merges[0]) if len(vocabulary) == 1 and len(merges) == 1 else None


def load_tokenizer(name: str) -> Tokenizer:
    """`byte`, a tokenizer.json, or a folder with one (or with vocab.json and merges.txt, as GPT-2 has them)."""
    if name == "byte":
        return ByteTokenizer()
    from tokenizers import Tokenizer as Inner

    path = Path(name)
    if not path.exists():
        raise UserError(f"no tokenizer at '{name}': give `byte`, a tokenizer.json, or a folder that holds one")
    folder = path if path.is_dir() else path.parent
    file = path / "tokenizer.json" if path.is_dir() else path
    gpt2 = None if file.is_file() else find_gpt2_files(folder)
    if not file.is_file() and gpt2 is None:
        raise UserError(f"folder '{name}' holds neither tokenizer.json nor one vocab.json with merges.txt")
    if gpt2:
        require_gpt2(folder)
    try:
        inner = load_gpt2_files(*gpt2) if gpt2 else Inner.from_file(str(file))
    except Exception as error:  # the library raises plain Exception
        raise UserError(f"{name}: not a tokenizer that can be read: {error}") from None
    return FileTokenizer(name, inner, folder)


def parse_ids(text: str, vocab_size: int) -> list[int]:
    ids = []
    for word in text.split():
        if not word.isdecimal() or int(word) >= vocab_size:
            raise UserError(f"'{word}' is not a token id: expected integers from 0 to {vocab_size - 1}")
        ids.append(int(word))
    return ids


def join(ids: Iterable[int]) -> str:
    return " ".join(map(str, ids))


def read_text(line: str) -> str | None:
    try:
        text = json.loads(line)
    except ValueError:
        return None
    return text if isinstance(text, str) else None


def answer_lines(tokenizer: Tokenizer, action: str, bos: str, source: TextIO, sink: TextIO) -> None:
    for number, line in enumerate(source, 1):
        if action == "decode":
            answer = json.dumps(tokenizer.decode(parse_ids(line, tokenizer.vocab_size)))
        else:
            text = read_text(line)
            if text is None:
                raise UserError(f"line {number}: expected a JSON string")
            answer = join(tokenizer.encode_prompt(text, bos))
        print(answer, file=sink, flush=True)


def answer_stream(tokenizer: Tokenizer, bos: str, source: TextIO, sink: TextIO) -> None:
    """The first line holds a prompt, each further line the ids that continue it; an empty line ends the text."""
    prompt = read_text(next(source, ""))
    if prompt is None:
        raise UserError("line 1: expected a JSON string")
    ids = tokenizer.encode_prompt(prompt, bos)
    print(join(ids), file=sink, flush=True)
    stream = TextStream(tokenizer, ids)
    for line in source:
        ids = parse_ids(line, MOST_IDS)
        piece = "".join(map(stream.add, ids)) if ids else stream.rest()
        print(json.dumps(piece), file=sink, flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="agoq tokenizer", description="Turn text on standard input into token ids, or ids into text.")
    parser.add_argument("--tokenizer", required=True, metavar="NAME",
                        help="`byte`, a tokenizer.json, or a folder with tokenizer.json or vocab.json + merges.txt")
    parser.add_argument("--bos", choices=("auto", "always", "never"), default="never",
                        help="begin what is encoded with the bos token; auto: as the tokenizer does of its own accord "
                        "(default: never)")
    parser.add_argument("--json-lines", action="store_true",
                        help="answer line by line, for a program that keeps this process open; texts are JSON strings")
    parser.add_argument("action", choices=("encode", "decode", "stream"),
                        help="encode: text to ids, separated by spaces; decode: ids to text; stream: a prompt as a JSON "
                        "string in a line, answered by its ids, then a line for each id that continues it, answered by "
                        "a JSON string of the text that has become complete; an empty line asks for the rest")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    tokenizer = load_tokenizer(arguments.tokenizer)
    for stream in (sys.stdin, sys.stdout):
        stream.reconfigure(encoding="utf-8", newline="")  # type: ignore[union-attr]
    try:
        if arguments.action == "stream":
            answer_stream(tokenizer, arguments.bos, sys.stdin, sys.stdout)
        elif arguments.json_lines:
            answer_lines(tokenizer, arguments.action, arguments.bos, sys.stdin, sys.stdout)
        elif arguments.action == "encode":
            print(join(tokenizer.encode_prompt(sys.stdin.read(), arguments.bos)))
        else:
            sys.stdout.write(tokenizer.decode(parse_ids(sys.stdin.read(), tokenizer.vocab_size)))
    except UnicodeDecodeError as error:
        raise UserError(f"standard input is not UTF-8: {error}") from None


if __name__ == "__main__":
    run_command("tokenizer", main)
