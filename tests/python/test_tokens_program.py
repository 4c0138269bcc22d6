"""The program and the Python side know the same tokens: hashes, refusals, and the text that a model writes."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import PROGRAM, SAMPLE, Run
from test_tokenizer import any_folder, byte_level, change_json, like_llama2, write_json

from agoq.tokenizer import load_tokenizer

pytestmark = pytest.mark.skipif(not PROGRAM.is_file(), reason="the program is not built")

Agoq = Callable[..., subprocess.CompletedProcess[str]]
PADDED = 640  # more than any tokenizer here has
MODEL = {"model_type": "llama", "vocab_size": PADDED, "hidden_size": 32, "intermediate_size": 64,
         "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 128,
         "rms_norm_eps": 1e-5, "initializer_range": 0.3, "tie_word_embeddings": False, "eos_token_id": None}


@pytest.fixture
def agoq() -> Agoq:
    def call(*arguments: object, status: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run([PROGRAM, *map(str, arguments)], capture_output=True, encoding="utf-8", check=False,
                              stdin=subprocess.DEVNULL,
                              env=os.environ | {"OMP_NUM_THREADS": "1", "AGOQ_PYTHON": sys.executable})
        assert done.returncode == status, done.stderr
        return done
    return call


def tokenize(run: Run, folder: Path, tokenizer: Path, *arguments: str) -> Path:
    source = folder / "sample.txt"
    source.write_text(SAMPLE)
    prefix = folder / f"data-{tokenizer.name}{len(arguments)}"
    run("data", source, "--tokenizer", tokenizer, "--workers", 1, "--output", prefix, *arguments)
    return prefix


def begin(agoq: Agoq, folder: Path, data: Path, name: str = "run", *arguments: object) -> Path:
    """A run of one step, of random weights."""
    write_json(folder / "config.json", MODEL)
    agoq("train", "--device", "cpu", "--model-config", folder / "config.json", "--data-path", data, "--seq-length", 16,
         "--train-iters", 1, "--save", folder / name, "--valid-fraction", 0.2, *arguments)
    return folder / name


def test_the_program_hashes_vocabularies_alike(tmp_path: Path, agoq: Agoq, tokenizer_folder: Path) -> None:
    rng = random.Random(7)
    folders = [tmp_path / str(at) for at in range(12)]
    for folder in folders:
        any_folder(folder, rng)
    gpt2 = tmp_path / "gpt2"
    gpt2.mkdir()
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(tokenizer_folder / name, gpt2)
    write_json(gpt2 / "tokenizer_config.json", {"additional_special_tokens": ["<|x|>"]})
    hashes = set()
    for folder in [*folders, gpt2, tokenizer_folder]:
        what = {path.name: path.read_text() for path in folder.glob("*token*config.json")}
        ours = load_tokenizer(str(folder)).vocabulary
        assert f"tokenizer: vocabulary {ours}\n" in agoq("inspect", folder).stdout, what
        hashes.add(ours)
    assert len(hashes) > 8


def test_unigram_vocabulary(tmp_path: Path, agoq: Agoq) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0), ("b", -2.0)], unk_id=0)).save(str(tmp_path / "tokenizer.json"))
    write_json(tmp_path / "tokenizer_config.json", {"eos_token": "</s>"})
    assert f"vocabulary {load_tokenizer(str(tmp_path)).vocabulary}\n" in agoq("inspect", tmp_path).stdout


def test_tokens_of_another_vocabulary_are_refused(tmp_path: Path, agoq: Agoq, run: Run) -> None:
    """Also where the run folder was moved, and the tokenizer is gone."""
    mine, other = tmp_path / "mine", tmp_path / "other"
    byte_level(mine)
    like_llama2(other)
    data, others = tokenize(run, tmp_path, mine), tokenize(run, tmp_path, other)
    moved = tmp_path / "elsewhere" / "run"
    moved.parent.mkdir()
    begin(agoq, tmp_path, data).rename(moved)
    copy = tmp_path / "copy"
    mine.rename(copy)
    agoq("eval", moved, "--data-path", data)
    for command in (("eval", moved, "--data-path", others),
                    ("train", "--finetune", moved, "--data-path", others, "--seq-length", 16),
                    ("generate", moved, "--tokenizer", other, "--prompt", "a")):
        error = agoq(*command, status=1).stderr
        for tokenizer, path in ((copy, moved / "tokenizer"), (other, other)):  # the run has a copy of its own
            assert f"tokens of {path} (vocabulary {load_tokenizer(str(tokenizer)).vocabulary})" in error
    assert agoq("generate", moved, "--tokenizer", copy, "--prompt", "a", "--max-new-tokens", 3).stdout[0] == "a"
    (tmp_path / "data-mine0.json").unlink()  # as files of Megatron-LM's
    assert agoq("eval", moved, "--data-path", data).stderr.count("nothing tells which vocabulary") == 1


def test_text_for_a_model_without_tokenizer(tmp_path: Path, agoq: Agoq, run: Run) -> None:
    byte_level(tmp_path / "t")
    agoq("export", begin(agoq, tmp_path, tokenize(run, tmp_path, tmp_path / "t")), tmp_path / "model")
    for file in (tmp_path / "model").glob("*token*.json"):
        file.unlink()
    data = ("--data-path", tmp_path / "sample.txt", "--seq-length", 16)
    for command in (("eval", tmp_path / "model", *data), ("train", "--model", tmp_path / "model", *data)):
        assert "brings no tokenizer" in agoq(*command, status=1).stderr
    assert "bits a byte" in agoq("eval", tmp_path / "model", *data, "--tokenizer", "byte").stdout
    agoq("train", "--model", tmp_path / "model", *data, "--tokenizer", "byte", "--train-iters", 1, "--save",
         tmp_path / "bytes")
    assert "bits a byte" in agoq("eval", tmp_path / "bytes", *data).stdout


def test_ids_of_a_padded_vocabulary_end_nothing(tmp_path: Path, agoq: Agoq, run: Run) -> None:
    like_llama2(tmp_path / "t")
    data = tokenize(run, tmp_path, tmp_path / "t")
    save = begin(agoq, tmp_path, data, "run", "--sample-tokens", 40, "--sample-prompt", "The")
    assert json.loads((save / "summary.json").read_text())["valid_loss"] > 0
    out = agoq("generate", save, "--prompt", "The", "--max-new-tokens", 60, "--temperature", 3).stdout
    assert out.startswith("The") and len(out) > 10


def test_a_text_ends_at_any_eos(tmp_path: Path, agoq: Agoq, run: Run) -> None:
    like_llama2(tmp_path / "t")
    save = begin(agoq, tmp_path, tokenize(run, tmp_path, tmp_path / "t"))
    agoq("export", save, tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tmp_path / "t" / name, tmp_path / "model")
    ask = ("generate", tmp_path / "model", "--prompt", "The", "--max-new-tokens", 20)
    assert len(agoq(*ask).stdout) > len("The\n")
    assert agoq(*ask, "--eod-token", *range(PADDED)).stdout == "The\n"
    assert f"--eod-token {PADDED} is outside" in agoq(*ask, "--eod-token", 1, PADDED, status=1).stderr
    write_json(tmp_path / "model" / "generation_config.json", {"eos_token_id": list(range(PADDED))})
    assert agoq(*ask).stdout == "The\n"
    (tmp_path / "model" / "generation_config.json").unlink()
    change_json(tmp_path / "model" / "config.json", eos_token_id=list(range(PADDED)))
    assert agoq(*ask).stdout == "The\n"


def test_prompts_begin_as_in_training(tmp_path: Path, agoq: Agoq, run: Run) -> None:
    def continued(source: Path, prompt: str, *arguments: object) -> str:
        out = agoq("generate", source, "--prompt", prompt, "--max-new-tokens", 12, "--temperature", 0,
                   *arguments).stdout
        return out.removeprefix(prompt)

    like_llama2(tmp_path / "own")  # its post-processor begins texts with <s>
    like_llama2(tmp_path / "none", bos=False)
    for name in ("own", "none"):
        change_json(tmp_path / name / "tokenizer_config.json", bos_token="<s>")
    with_bos = begin(agoq, tmp_path, tokenize(run, tmp_path, tmp_path / "none", "--prepend-bos"), "with")
    without = begin(agoq, tmp_path, tokenize(run, tmp_path, tmp_path / "own"), "without")
    plain = tokenize(run, tmp_path, tmp_path / "own", "--append-eod")
    change_json(plain.with_suffix(".json"), prepend_bos=None)
    untold = begin(agoq, tmp_path, plain, "untold")
    # The three models differ by nothing that a step of one learning rate could tell, so each is compared with itself.
    for source, begins in ((with_bos, True), (without, False), (untold, True)):
        asked = {bos: continued(source, "<s>The" if bos else "The", "--prompt-bos", "never") for bos in (True, False)}
        assert asked[True] != asked[False]
        assert continued(source, "The") == asked[begins]
