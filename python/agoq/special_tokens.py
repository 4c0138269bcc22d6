"""Special tokens that stand beside tokenizer.json, added with the order and the flags of transformers 5.

A folder may name them in tokenizer_config.json (added_tokens_decoder, eos_token, ..., extra_special_tokens, or
additional_special_tokens, its older name). Where that file has no added_tokens_decoder, special_tokens_map.json and
added_tokens.json count too. The order matters: a token that is new gets the next free id. src/train/data/vocabulary.cc
follows the same order to hash a vocabulary without Python.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from agoq.command import UserError
from agoq.json_file import Settings, read_json

if TYPE_CHECKING:
    from tokenizers import AddedToken

FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def as_token(value: Any, where: str) -> AddedToken:
    """A token given as its text, or as an object with `content` and flags."""
    from tokenizers import AddedToken

    if isinstance(value, str):
        return AddedToken(value, special=True)
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        raise UserError(f"{where}: {value!r} does not describe a token")
    return AddedToken(value["content"], **{flag: bool(value[flag]) for flag in FLAGS if value.get(flag) is not None})


def read_map(path: Path) -> Settings:
    tokens = read_json(path)
    return {key: value | {"special": True} if isinstance(value, dict) and key != "extra_special_tokens" else value
            for key, value in tokens.items()}


class SpecialTokens:
    """What the files beside tokenizer.json say of special tokens.

    in_file: the added tokens of tokenizer.json by id. defaults: named tokens, where the files do not name others.
    """

    def __init__(self, folder: Path, in_file: dict[int, AddedToken], defaults: dict[str, str]) -> None:
        config = read_json(folder / "tokenizer_config.json")
        self.where = str(folder / "tokenizer_config.json")
        legacy = "added_tokens_decoder" not in config
        of_map = read_map(folder / "special_tokens_map.json") if legacy else {}
        named, extra, by_older_name = self._split(config, of_map)
        named = {key: text for key, text in defaults.items() if key not in named} | named
        self.decoder = self._of_files(folder, config, of_map, in_file) if legacy else self._of_config(config)
        by_text = {token.content: token for token in self.decoder.values()}
        self.named: dict[str, AddedToken] = {}  # bos_token, eos_token, ...; others behind these
        for key in [*NAMED, *(key for key in named if key not in NAMED)]:
            if key in named:
                token = as_token(named[key], f"{self.where}, {key}")
                self.named[key] = by_text.get(token.content, token) if key in NAMED else token
        self.extra = [as_token(token, f"{self.where}, extra_special_tokens") for token in extra or by_older_name]
        self.splits_special_tokens = config.get("split_special_tokens") is True

    def texts(self) -> dict[str, str]:
        return {key: token.content for key, token in self.named.items()}

    def add_to(self, inner: Any) -> None:
        """Add what the tokenizer lacks; tokens that it has get the flags given here."""
        texts = {token.content for token in self.decoder.values()}
        texts |= {token.content for token in inner.get_added_tokens_decoder().values()}
        tokens = [token for _, token in sorted(self.decoder.items())]
        for token in [*self.named.values(), *self.extra]:
            if token.content not in texts and token not in tokens:  # of one text with several flags the last count
                tokens.append(token)
        named = set(self.texts().values())
        for token in tokens:
            if token.content in named:
                token.special = True
        inner.add_tokens(tokens)
        inner.encode_special_tokens = self.splits_special_tokens

    def _split(self, config: Settings, of_map: Settings) -> tuple[Settings, list[Any], list[Any]]:
        """Tokens that have a name; the rest; and what counts as the rest where that is empty.

        special_tokens_map.json wins; its extra tokens come on top.
        """
        settings = dict(config)
        if not settings.get("extra_special_tokens") and "additional_special_tokens" in settings:
            settings["extra_special_tokens"] = settings.pop("additional_special_tokens")
        groups: Settings = {}
        before, more = settings.pop("extra_special_tokens", None), of_map.get("extra_special_tokens")
        settings |= {key: value for key, value in of_map.items() if key != "extra_special_tokens"}
        extra: list[Any] = []
        for tokens in (before, more):
            if isinstance(tokens, dict):
                groups |= tokens
            elif isinstance(tokens, list):
                extra += [token for token in tokens if token not in extra]
            elif tokens is not None:
                raise UserError(f"{self.where}: extra_special_tokens must be a list or an object")
        named = {key: value for key, value in settings.items()
                 if value is not None and (key in NAMED or key.endswith("_token") and isinstance(value, (str, dict)))}
        return named | groups, extra, settings.get("additional_special_tokens") or []

    def _of_config(self, config: Settings) -> dict[int, AddedToken]:
        tokens = config["added_tokens_decoder"]
        where = f"{self.where}, added_tokens_decoder"
        try:
            return {int(number): as_token(token, where) for number, token in tokens.items()}
        except (AttributeError, ValueError):
            raise UserError(f"{where}: expected an object of ids and tokens") from None

    def _of_files(self, folder: Path, config: Settings, of_map: Settings,
                  in_file: dict[int, AddedToken]) -> dict[int, AddedToken]:
        """added_tokens.json; it does not say which tokens are special, and what counts for that is what is a string in
        tokenizer_config.json, or stands under a name in special_tokens_map.json."""
        from tokenizers import AddedToken

        path = folder / "added_tokens.json"
        tokens = read_json(path)
        if not all(isinstance(number, int) for number in tokens.values()):
            raise UserError(f"{path}: expected an object of tokens and ids")
        marks = [(config | of_map).get(key) for key in NAMED] + self._split(config, {})[1]
        marks += of_map.get("extra_special_tokens") or []
        special = {mark for mark in marks if isinstance(mark, str)}
        special |= {of_map[key].get("content") for key in NAMED if isinstance(of_map.get(key), dict)}
        added = {number: AddedToken(text, normalized=text not in special, special=text in special)
                 for text, number in tokens.items()}
        return added | in_file
