"""What a run exports loads in transformers."""

from __future__ import annotations

import json
import os
import random
import subprocess
from pathlib import Path

import pytest

PROGRAM = Path(os.environ.get("AGOQ_PROGRAM", Path(__file__).resolve().parent.parent.parent / "build/agoq"))
MODEL = {"model_type": "llama", "vocab_size": 264, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
         "num_attention_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "tie_word_embeddings": False}


def agoq(*arguments: object) -> str:
    done = subprocess.run([PROGRAM, *map(str, arguments)], capture_output=True, text=True, check=False,
                          env=os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"})
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not PROGRAM.is_file():
        pytest.skip(f"{PROGRAM} is not built")
    folder = tmp_path_factory.mktemp("export")
    (folder / "config.json").write_text(json.dumps(MODEL))
    (folder / "text.txt").write_text("a line of text\n" * 200)
    agoq("train", "--device", "cpu", "--model-config", folder / "config.json", "--data-path", folder / "text.txt",
         "--seq-length", 16, "--train-iters", 1, "--save", folder / "run")
    told = agoq("export", folder / "run", folder / "exported")
    assert "beside the weights: tokenizer.json, tokenizer_config.json" in told
    return folder / "exported"


def test_tokenizer_of_a_byte_run_is_bytes(exported: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    assert tokenizer.eos_token_id == 256
    assert len(tokenizer) == 257
    draw = random.Random(1)
    points = [*range(0x80), *range(0xA0, 0xD800, 97), *range(0xE000, 0x110000, 4099)]
    texts = ["", " a  b \n\t", "A , b . don't", "é 日本 🙂 \x00\x7f", "<|endoftext|> is text like any other",
             *("".join(map(chr, draw.choices(points, k=30))) for _ in range(100))]
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        assert ids == list(text.encode())
        assert tokenizer.decode(ids) == text
    assert tokenizer.decode([104, 105, 256], skip_special_tokens=True) == "hi"
    assert tokenizer.decode([0xC3]) == "�"
