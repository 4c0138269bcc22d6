"""Tokenizer folders of every kind against AutoTokenizer, and text that grows token by token."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pytest
from conftest import SAMPLE, Refuse, Run
from megatron import read_dataset

from agoq.command import UserError
from agoq.text_stream import TextStream
from agoq.tokenizer import ByteTokenizer, load_tokenizer
from agoq.vocabulary import vocabulary_hash

NAMES = ["<|x|>", "<|y|>", "<end>", "[PAD]", "plain", "mill", "<|im_end|>", "<s>"]
TEXT = " ".join(["The mill<|x|> <|y|>  ran <end>", "[PAD]plain  plain", "<|im_end|>\n<s>Zürich", "東京 </s>"]) + " end "


def byte_level(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.train_from_iterator([SAMPLE], trainers.BpeTrainer(
        vocab_size=330, special_tokens=["<|endoftext|>", "<|im_end|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    write(inner, folder)


def like_llama2(folder: Path, bos: bool = True) -> None:
    """Words begin with a space mark; what the vocabulary lacks becomes byte tokens; decoding drops the first space."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors

    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    letters = sorted({letter for letter in SAMPLE if letter.isascii() and letter.isalpha()})
    merges = [("▁", letter) for letter in letters]
    vocabulary = {word: at for at, word in enumerate([*words, *letters, *("▁" + letter for letter in letters)])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                       decoders.Strip(" ", 1, 0)])
    if bos:
        inner.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A <s> $B", special_tokens=[("<s>", 1), ("</s>", 2)])
    inner.add_special_tokens(words[:3])
    write(inner, folder)


def write(inner: Any, folder: Path, **config: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    inner.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"} | config)


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def change_json(path: Path, **values: Any) -> None:
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | values)


def any_token(rng: random.Random, **more: Any) -> dict[str, Any]:
    flags = {name: rng.random() < 0.5 for name in ("lstrip", "rstrip", "single_word", "normalized", "special")}
    return {"content": rng.choice(NAMES)} | flags | more


def any_folder(folder: Path, rng: random.Random) -> None:
    """Special tokens strewn over the files that may hold them, in every form that these allow."""
    rng.choice([byte_level, like_llama2])(folder)
    config: dict[str, Any] = {}
    for key in rng.sample(["bos_token", "eos_token", "pad_token", "sep_token", "image_token"], rng.randint(0, 4)):
        config[key] = rng.choice([rng.choice(NAMES), any_token(rng, __type="AddedToken")])
    if rng.random() < 0.5:
        key = rng.choice(["additional_special_tokens", "extra_special_tokens"])
        config[key] = [rng.choice([rng.choice(NAMES), any_token(rng, __type="AddedToken")]) for _ in range(2)]
    if rng.random() < 0.3:
        config["extra_special_tokens"] = {"boi_token": rng.choice(NAMES)}
    if rng.random() < 0.2:
        config["split_special_tokens"] = True
    if rng.random() < 0.5:
        numbers = rng.sample(range(320, 360), 3)
        config["added_tokens_decoder"] = {str(number): any_token(rng) for number in numbers}
    change_json(folder / "tokenizer_config.json", **config)
    if rng.random() < 0.5:
        tokens = rng.sample(NAMES, 3)
        write_json(folder / "added_tokens.json", {token: 400 - at for at, token in enumerate(tokens)})
    if rng.random() < 0.5:
        named = {"eos_token": rng.choice(NAMES), "unk_token": any_token(rng), "extra_special_tokens": [NAMES[0]]}
        if isinstance(config.get("extra_special_tokens"), dict):
            del named["extra_special_tokens"]
        write_json(folder / "special_tokens_map.json", named)
    if rng.random() < 0.3:
        change_json(folder / "tokenizer.json", **cutting_and_filling())


def test_llama_folders_equal_autotokenizer(tmp_path: Path) -> None:
    """A class of transformers that cuts text in its own way, and tokens that it has by itself."""
    transformers = pytest.importorskip("transformers")
    rng = random.Random(8)
    classes = set()
    for at in range(16):
        folder = tmp_path / str(at)
        like_llama2(folder)
        config = {key: rng.choice([True, False]) for key in rng.sample(["legacy", "add_prefix_space"], rng.randint(0, 2))}
        if rng.random() < 0.5:
            config["added_tokens_decoder"] = {"1": {"content": "<s>", "special": True, "rstrip": rng.random() < 0.5}}
        change_json(folder / "tokenizer_config.json", tokenizer_class="LlamaTokenizerFast", **config)
        write_json(folder / "config.json", {"model_type": rng.choice(["llama", "llama", "mistral", "qwen3"])})
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
        ours = load_tokenizer(str(folder))
        classes.add(type(theirs).__name__)
        assert ours.special == theirs.special_tokens_map, config
        assert ours.inner.get_vocab() == theirs.get_vocab(), config  # type: ignore[attr-defined]
        for text in ("The mill", " The  mill", "\n<s>The</s>mill </s> ran 東京 <s>", " ", "", TEXT):
            ids = theirs(text, add_special_tokens=False)["input_ids"]
            assert ours.encode([text])[0].tolist() == ids, config
            assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True), config
            assert ours.encode_prompt(text, "auto") == [1, *ids]
    assert classes == {"LlamaTokenizer", "TokenizersBackend"}


def cutting_and_filling() -> dict[str, Any]:
    """What transformers leaves in tokenizer.json where a call asked for it."""
    return {"truncation": {"direction": "Right", "max_length": 16, "strategy": "LongestFirst", "stride": 0},
            "padding": {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 2,
                        "pad_type_id": 0, "pad_token": "[PAD]"}}


def test_folders_equal_autotokenizer(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    rng = random.Random(5)
    sizes = set()
    for at in range(80):
        folder = tmp_path / str(at)
        any_folder(folder, rng)
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
        ours = load_tokenizer(str(folder))
        what = {path.name: path.read_text() for path in folder.iterdir() if path.name != "tokenizer.json"}
        ids = theirs(TEXT, add_special_tokens=False, truncation=False, padding=False)["input_ids"]
        assert ours.encode([TEXT])[0].tolist() == ours.encode_with_offsets(TEXT)[0] == ids, what
        assert ours.inner.get_vocab() == theirs.get_vocab(), what  # type: ignore[attr-defined]
        assert ours.vocabulary == vocabulary_hash(theirs.get_vocab()), what
        assert ours.special == theirs.special_tokens_map, what
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True), what
        assert repr(ours.inner.get_added_tokens_decoder()) == repr(theirs.added_tokens_decoder), what  # type: ignore[attr-defined]
        framed = theirs(TEXT, truncation=False, padding=False)["input_ids"]
        prompt = ours.encode_prompt(TEXT, "auto")
        assert prompt == framed[:len(prompt)] and prompt[-len(ids):] == ids, what
        sizes.add(len(ids))
    assert len(sizes) > 5  # the folders do differ


def test_nothing_cuts_or_fills_texts(tmp_path: Path, run: Run) -> None:
    byte_level(tmp_path / "t")
    change_json(tmp_path / "t" / "tokenizer.json", **cutting_and_filling())
    (tmp_path / "a.txt").write_text(SAMPLE * 3)
    run("data", "--workers", 1, tmp_path / "a.txt", "--tokenizer", tmp_path / "t", "--output", tmp_path / "out")
    ids = run("tokenizer", "--tokenizer", tmp_path / "t", "encode", stdin=(SAMPLE * 3).encode()).stdout
    assert read_dataset(tmp_path / "out") == [list(map(int, ids.split()))]
    assert load_tokenizer(str(tmp_path / "t")).decode(list(map(int, ids.split()))) == SAMPLE * 3


@pytest.mark.parametrize("name, value, message", [
    ("tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "a"}}}, "expected an object of ids and tokens"),
    ("tokenizer_config.json", {"added_tokens_decoder": {"5": {"text": "a"}}}, "does not describe a token"),
    ("tokenizer_config.json", {"eos_token": {"content": 5}}, "eos_token: {'content': 5} does not describe a token"),
    ("tokenizer_config.json", {"extra_special_tokens": "a"}, "must be a list or an object"),
    ("added_tokens.json", {"a": "b"}, "expected an object of tokens and ids"),
    ("added_tokens.json", ["a"], "expected a JSON object"),
])
def test_files_that_say_nothing_sensible_are_named(tmp_path: Path, name: str, value: Any, message: str) -> None:
    byte_level(tmp_path)
    write_json(tmp_path / name, value)
    with pytest.raises(UserError, match=message) as caught:
        load_tokenizer(str(tmp_path))
    assert name in str(caught.value)


def test_other_families_need_their_tokenizer_json(tmp_path: Path, tokenizer_folder: Path) -> None:
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((tokenizer_folder / name).read_bytes())
    assert load_tokenizer(str(tmp_path)).vocab_size == 400
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "Qwen2Tokenizer"})
    with pytest.raises(UserError, match=r"is a Qwen2Tokenizer without tokenizer.json"):
        load_tokenizer(str(tmp_path))


def test_hash_by_its_description() -> None:
    value = hashlib.sha256(b"0 1:a\n7 3:new\n7 2:\xc3\xa9\n").hexdigest()[:16]
    assert vocabulary_hash({"new": 7, "é": 7, "a": 0}) == value
    assert vocabulary_hash({"new": 8, "é": 7, "a": 0}) != value


def test_data_says_which_vocabulary_it_belongs_to(tmp_path: Path, run: Run) -> None:
    like_llama2(tmp_path / "t")
    change_json(tmp_path / "t" / "tokenizer_config.json", bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    (tmp_path / "a.txt").write_text(SAMPLE)
    run("data", "--workers", 1, tmp_path / "a.txt", "--tokenizer", tmp_path / "t", "--prepend-bos", "--append-eod",
        "--output", tmp_path / "out")
    about = json.loads((tmp_path / "out.json").read_text())
    tokenizer = load_tokenizer(str(tmp_path / "t"))
    vocabulary = tokenizer.inner.get_vocab()  # type: ignore[attr-defined]
    assert vocabulary["<pad>"] == about["vocab_size"] - 1
    assert about["vocabulary"] == vocabulary_hash(vocabulary)
    assert (about["prepend_bos"], about["append_eod"]) == (True, True)
    assert [document[0] for document in read_dataset(tmp_path / "out")] == [1]


def stream(tokenizer: Any, prompt: list[int], ids: list[int]) -> list[str]:
    growing = TextStream(tokenizer, prompt)
    return [*(growing.add(number) for number in ids), growing.rest()]


def test_pieces_of_a_stream_are_the_whole(tmp_path: Path) -> None:
    """Any ids, also those that make no character and those that no token has."""
    byte_level(tmp_path / "a")
    like_llama2(tmp_path / "b")
    rng = random.Random(6)
    for tokenizer in (ByteTokenizer(), *(load_tokenizer(str(tmp_path / name)) for name in "ab")):
        for _ in range(60):
            prompt = tokenizer.encode_prompt(rng.choice(["The mill", "Zür", "", "\n"]), "never")
            written = tokenizer.encode_prompt(rng.choice([" 東京 ran", "é", "  two", "the \U0001F989."]), "never")
            ids = [number for token in written for number in [token, *rng.choices(range(500), k=rng.choice([0, 0, 1]))]]
            pieces = stream(tokenizer, prompt, ids)
            assert "".join(pieces) == tokenizer.decode(prompt + ids)[len(tokenizer.decode(prompt)):]
    words = load_tokenizer(str(tmp_path / "b"))
    space_t, h = (words.inner.token_to_id(token) for token in ("▁t", "h"))  # type: ignore[attr-defined]
    tokyo = [3 + byte for byte in "東".encode()]
    assert stream(words, [h], [space_t, h, 999, 2, *tokyo, h]) == [" t", "h", "", "", "", "", "", "東h", ""]
    assert stream(words, [], [*tokyo, 3 + 0xE4]) == ["", "", "", "", "\ufffd" * 4]  # as all ids at once decode


def test_begin_of_text(tmp_path: Path, run: Run, refuse: Refuse) -> None:
    like_llama2(tmp_path / "own")
    like_llama2(tmp_path / "none", bos=False)
    change_json(tmp_path / "own" / "tokenizer_config.json", bos_token="</s>")
    a = load_tokenizer(str(tmp_path / "own")).encode(["a"])[0].tolist()
    for name, bos, before in (("own", "auto", [1]), ("own", "never", []), ("own", "always", [2]), ("none", "auto", [])):
        ids = run("tokenizer", "--tokenizer", tmp_path / name, "--bos", bos, "encode", stdin=b"a").stdout
        assert list(map(int, ids.split())) == before + a
    done = run("tokenizer", "--tokenizer", tmp_path / "none", "--bos", "always", "encode", stdin=b"a", status=1)
    assert b"names no bos token" in done.stderr


def test_stream_command(tmp_path: Path, run: Run, run_process: Run) -> None:
    like_llama2(tmp_path)
    tokyo = [3 + byte for byte in "東".encode()]
    lines = "\n".join(['"h"', *map(str, tokyo), "999", "", ""])
    done = run_process("tokenizer", "--tokenizer", tmp_path, "stream", stdin=lines.encode())
    ids, *pieces = done.stdout.decode().splitlines()
    assert list(map(int, ids.split())) == load_tokenizer(str(tmp_path)).encode_prompt("h", "never")
    assert [json.loads(piece) for piece in pieces] == ["", "", "", "", "東"]
    assert b"expected a JSON string" in run("tokenizer", "--tokenizer", tmp_path, "stream", stdin=b"1\n", status=1).stderr
