"""agoq data: what lands in .bin/.idx, and what is refused."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import random
import resource
import signal
from pathlib import Path

import numpy as np
import pytest
from conftest import Refuse, Run
from megatron import read_dataset

from agoq import data, documents
from agoq.command import UserError, run_command
from agoq.indexed import open_writer
from agoq.tokenizer import ByteTokenizer


def write_jsonl(path: Path, texts: list[str], key: str = "text") -> Path:
    path.write_text("".join(json.dumps({"id": at, key: text}) + "\n" for at, text in enumerate(texts)))
    return path


def as_bytes(texts: list[str], eod: bool = True) -> list[list[int]]:
    return [list(text.encode()) + [256] * eod for text in texts]


def test_jsonl_with_bytes(tmp_path: Path, run_process: Run) -> None:
    texts = ["plain", "Zürich 東京", "two\nlines\n", " "]
    source = write_jsonl(tmp_path / "a.jsonl", [*texts[:2], "", *texts[2:]])
    run_process("data", source, "--tokenizer", "byte", "--append-eod", "--output", tmp_path / "out" / "a")
    assert read_dataset(tmp_path / "out" / "a") == as_bytes(texts)
    about = json.loads((tmp_path / "out" / "a.json").read_text())
    assert about == {"tokenizer": "byte", "vocabulary": ByteTokenizer().vocabulary, "vocab_size": 257, "eod_id": 256,
                     "append_eod": True, "prepend_bos": False, "dtype": "uint16", "documents": 4,
                     "tokens": sum(len(text.encode()) + 1 for text in texts), "empty_documents": 1,
                     "sources": ["a.jsonl"]}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.bin", "a.idx", "a.json"]


def test_description_names_the_tokenizer_from_everywhere(tmp_path: Path, refuse: Refuse, tokenizer_folder: Path,
                                                         monkeypatch) -> None:
    monkeypatch.chdir(tokenizer_folder.parent)
    source = write_jsonl(tmp_path / "a.jsonl", ["text"])
    data.main(["--quiet", "--workers", "1", str(source), "--tokenizer", tokenizer_folder.name, "--output",
               str(tmp_path / "out")])
    about = json.loads((tmp_path / "out.json").read_text())
    assert (about["tokenizer"], about["eod_id"]) == (str(tokenizer_folder), 0)


def test_inputs_are_never_replaced(tmp_path: Path, refuse: Refuse) -> None:
    source = write_jsonl(tmp_path / "corpus.json", ["text"])
    before = source.read_bytes()
    assert "would replace the input" in refuse(source, "--tokenizer", "byte", "--output", tmp_path / "corpus")
    assert source.read_bytes() == before


def test_text_with_separator(tmp_path: Path, run: Run) -> None:
    source = tmp_path / "a.txt"
    source.write_bytes(b"\xef\xbb\xbffirst\n\nstill first\n<|end|>\r\nsecond <|end|> inside\n<|end|>\n<|end|>\n"
                       b"last, no line end")
    run("data", "--workers", 1, source, "--separator", "<|end|>", "--tokenizer", "byte", "--output", tmp_path / "a")
    assert read_dataset(tmp_path / "a") == as_bytes(
        ["first\n\nstill first\n", "second <|end|> inside\n", "last, no line end"], eod=False)


@pytest.mark.parametrize("suffix, pack", [(".gz", gzip.compress), (".xz", lzma.compress), (".bz2", bz2.compress)])
def test_compressed_files(tmp_path: Path, run: Run, refuse: Refuse, suffix: str, pack) -> None:
    plain = write_jsonl(tmp_path / "a.jsonl", ["one", "two"]).read_bytes()
    source = tmp_path / f"b.jsonl{suffix}"
    source.write_bytes(pack(plain))
    run("data", "--workers", 1, source, "--tokenizer", "byte", "--append-eod", "--output", tmp_path / "a")
    assert read_dataset(tmp_path / "a") == as_bytes(["one", "two"])
    source.write_bytes(pack(plain)[:-12])
    error = refuse(source, "--tokenizer", "byte", "--output", tmp_path / "b")
    assert f"b.jsonl{suffix}: damaged compressed file" in error
    for damaged in (pack(plain)[:8] + b"damaged" * 9, b"damaged"):
        source.write_bytes(damaged)
        error = refuse(source, "--tokenizer", "byte", "--output", tmp_path / "b")
        assert f"b.jsonl{suffix}: damaged compressed file" in error and "None" not in error


def test_workers_keep_order(tmp_path: Path, run_process: Run, tokenizer_folder: Path, sample: str) -> None:
    rng = random.Random(0)
    words = sample.split()
    texts = [" ".join(rng.choices(words, k=rng.randint(1, 2000))) for _ in range(240)]
    source = write_jsonl(tmp_path / "a.jsonl", texts)
    for workers in (1, 3):
        run_process("data", source, "--tokenizer", tokenizer_folder, "--append-eod", "--workers", workers, "--output",
                    tmp_path / str(workers))
    one = read_dataset(tmp_path / "1")
    assert one == read_dataset(tmp_path / "3")
    from tokenizers import Tokenizer

    inner = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    eod = inner.token_to_id("<|endoftext|>")
    assert one == [[*inner.encode(text).ids, eod] for text in texts]


def test_gpt2_files_equal_tokenizer_json(tmp_path: Path, run: Run, tokenizer_folder: Path, sample: str) -> None:
    gpt2 = tmp_path / "gpt2"
    gpt2.mkdir()
    for name in ("vocab.json", "merges.txt"):
        (gpt2 / name).write_bytes((tokenizer_folder / name).read_bytes())
    ids = [run("tokenizer", "--tokenizer", name, "encode", stdin=(sample + "<|endoftext|>").encode()).stdout
           for name in (gpt2, tokenizer_folder, tokenizer_folder / "tokenizer.json")]
    assert ids[0] == ids[1] == ids[2] and ids[0].split()[-1] == b"0"
    assert run("tokenizer", "--tokenizer", gpt2, "decode", stdin=ids[0]).stdout.decode() == sample


def test_long_texts_are_cut_without_changing_tokens(tokenizer_folder: Path, sample: str, monkeypatch) -> None:
    from tokenizers import Tokenizer

    inner = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    text = sample * 40
    whole = inner.encode(text).ids
    for size in (1, 50, 333, 5000):
        monkeypatch.setattr(documents, "PIECE", size)
        monkeypatch.setattr(documents, "LONGEST_PIECE", 100 * size + 1000)
        parts = documents.split_text(text)
        assert "".join(parts) == text and len(parts) > 1
        assert [token for part in parts for token in inner.encode(part).ids] == whole


def test_plain_text_streams_in_pieces(tmp_path: Path, sample: str, monkeypatch) -> None:
    monkeypatch.setattr(documents, "PIECE", 100)
    monkeypatch.setattr(documents, "LONGEST_PIECE", 800)
    source = tmp_path / "a.txt"
    source.write_text(sample * 20)
    seen: list[int] = []
    pieces = list(documents.text_pieces(source, None, seen.append))
    assert "".join(str(piece.payload) for piece in pieces) == sample * 20 and len(pieces) > 10
    assert [piece.last for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert sum(seen) == source.stat().st_size
    blank = tmp_path / "b.txt"
    blank.write_text("a\n\n" * 2000)  # no safe break anywhere: the longest piece bounds the memory
    assert max(len(piece.payload) for piece in documents.text_pieces(blank, None, seen.append)) <= 803


@pytest.mark.parametrize("line, message", [
    (b'{"text": "cut', "not valid JSON"),
    (b'{"body": "x"}', "no key 'text' (found 'body'): name the key of the text with --text-key"),
    (b'{"text": 7}', "'text' must be a string, found int"),
    (b'["text"]', "expected a JSON object, found list"),
    (b'{"text": "\xff"}', "invalid UTF-8: byte 0xff at byte 10"),
    (b'{"text": "\\ud800"}', "\\ud800, half of a surrogate pair"),
])
def test_malformed_lines_name_file_and_line(tmp_path: Path, refuse: Refuse, line: bytes, message: str) -> None:
    source = tmp_path / "bad.jsonl"
    source.write_bytes(b'{"text": "good"}\n\n' + line + b'\n{"text": "after"}\n')
    error = refuse(source, "--tokenizer", "byte", "--output", tmp_path / "out")
    assert error.startswith(f"{source}, line 3: ") and message in error
    assert [path.name for path in tmp_path.iterdir()] == ["bad.jsonl"]  # nothing half written


def test_errors_of_worker_processes_reach_the_user(tmp_path: Path, run_process: Run) -> None:
    source = tmp_path / "bad.jsonl"
    source.write_bytes(b'{"text": "good"}\n' * 9 + b"{}\n")
    done = run_process("data", source, "--tokenizer", "byte", "--workers", 2, "--output", tmp_path / "out", status=1)
    assert f"{source}, line 10: no key 'text' (found no keys)" in done.stderr.decode()


def test_invalid_utf8_in_text(tmp_path: Path, refuse: Refuse) -> None:
    source = tmp_path / "bad.txt"
    source.write_bytes(b"fine\nna\xefve\n")
    error = refuse(source, "--tokenizer", "byte", "--output", tmp_path / "out")
    assert f"{source}, line 2: invalid UTF-8: byte 0xef at byte 2" in error


@pytest.mark.parametrize("arguments, message", [
    (["missing.jsonl"], "no such file: missing.jsonl"),
    ([], "give input files, or --chat"),
    (["a.jsonl", "--workers", "0"], "--workers must be at least 1"),
    (["a.jsonl", "--separator", "x"], "--separator is for plain text"),
    (["a.jsonl", "--tokenizer", "nowhere"], "no tokenizer at 'nowhere'"),
    (["a.jsonl", "--tokenizer", "a.jsonl"], "not a tokenizer that can be read"),
    (["a.jsonl", "--prepend-bos"], "has no bos token"),
    (["a.jsonl", "--eod-token", "ab"], "is 2 tokens for this tokenizer, not one"),
    (["--chat", "a.jsonl"], "has no chat template"),
    (["a.txt", "--skip-bad", "1"], "--skip-bad is for rows of JSON lines"),
    (["a.jsonl", "--tokenizer", os.fsdecode(b"caf\xe9")], "caf\\udce9 is not UTF-8, so PREFIX.json cannot hold it"),
    (["a.jsonl", "--skip-bad", "-1"], "--skip-bad must be at least 0, not -1"),
    (["a.jsonl", "--chat-format", "alpaca"], "--chat-format and --chat-template are for conversations"),
    (["a.jsonl", "--output", "."], "--output '.' names no file"),
    (["empty.jsonl"], "the input holds no text"),
])
def test_refusals(tmp_path: Path, refuse: Refuse, monkeypatch, arguments: list[str], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "a.jsonl", ["text"])
    (tmp_path / "empty.jsonl").write_text("\n")
    assert message in refuse("--tokenizer", "byte", "--output", "out", *arguments)
    assert not list(tmp_path.glob("out*"))


def test_existing_dataset_is_kept_unless_told(tmp_path: Path, run: Run) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", ["first"])
    target = ["--workers", 1, "--tokenizer", "byte", "--output", tmp_path / "out"]
    run("data", source, *target)
    write_jsonl(source, ["second"])
    assert "exists already" in run("data", source, *target, status=1).stderr.decode()
    assert read_dataset(tmp_path / "out") == as_bytes(["first"], eod=False)
    (tmp_path / "out.mask").write_bytes(b"old")
    run("data", source, *target, "--overwrite")
    assert read_dataset(tmp_path / "out") == as_bytes(["second"], eod=False)
    assert not (tmp_path / "out.mask").exists()


def test_large_vocabulary_is_int32(tmp_path: Path) -> None:
    for vocab, largest in ((65499, 65498), (65500, 65499), (200000, 199999)):
        prefix = tmp_path / str(vocab)
        with open_writer(prefix, vocab, with_mask=False, overwrite=False) as writer:
            writer.add(np.array([0, largest]))
            writer.end_document()
            writer.finish({})
        assert read_dataset(prefix) == [[0, largest]]
        assert prefix.with_name(f"{vocab}.bin").stat().st_size == (4 if vocab < 65500 else 8)


def test_writer_refuses_ids_outside_the_vocabulary(tmp_path: Path) -> None:
    with (pytest.raises(UserError, match="outside its vocabulary of 10"),
          open_writer(tmp_path / "a", 10, with_mask=False, overwrite=False) as writer):
        writer.add(np.array([3, 10]))
    assert not list(tmp_path.iterdir())


def test_tokenizer_command(run: Run, run_process: Run, tokenizer_folder: Path, sample: str) -> None:
    for name, command in (("byte", run_process), (tokenizer_folder, run)):
        ids = command("tokenizer", "--tokenizer", name, "encode", stdin=sample.encode()).stdout
        assert command("tokenizer", "--tokenizer", name, "decode", stdin=ids).stdout.decode() == sample
        lines = command("tokenizer", "--tokenizer", name, "--json-lines", "encode", stdin=b'"a\\nb"\n"c"\n').stdout
        texts = command("tokenizer", "--tokenizer", name, "--json-lines", "decode", stdin=lines).stdout
        assert texts == b'"a\\nb"\n"c"\n'
    done = run("tokenizer", "--tokenizer", "byte", "decode", stdin=b"1 257", status=1)
    assert "'257' is not a token id: expected integers from 0 to 256" in done.stderr.decode()


def test_a_full_disk_names_the_dataset(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", ["x" * 100000])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, before[1]))  # a write beyond fails, as on a full disk
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            data.main(["--quiet", "--workers=1", str(source), "--tokenizer=byte", "--output", str(tmp_path / "out")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert caught.value.filename == str(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_faults_of_our_own_show_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise KeyError("x")

    monkeypatch.delenv("AGOQ_TRACEBACK", raising=False)
    with pytest.raises(SystemExit, match=r"^agoq data: error: KeyError: 'x'\nThis is a fault of AGoQ"):
        run_command("data", fail)
    monkeypatch.setenv("AGOQ_TRACEBACK", "1")
    with pytest.raises(KeyError):
        run_command("data", fail)


def test_names_that_are_not_utf8(tmp_path: Path, run_process: Run) -> None:
    source = Path(os.fsdecode(os.fsencode(tmp_path) + b"/na\xefve.jsonl"))
    write_jsonl(source, ["one"])
    run_process("data", source, "--tokenizer", "byte", "--quiet", "--workers", 1, "--output", source.with_suffix(""))
    about = json.loads(source.with_suffix(".json").read_bytes())
    assert about["sources"] == ["na\\udcefve.jsonl"]


def test_end_of_document_comes_once(tmp_path: Path, run: Run, tokenizer_folder: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", ["one<|endoftext|>", "two"])
    run("data", source, "--tokenizer", tokenizer_folder, "--append-eod", "--workers", 1, "--output", tmp_path / "a")
    assert [(ids[-1], ids.count(0)) for ids in read_dataset(tmp_path / "a")] == [(0, 1), (0, 1)]
