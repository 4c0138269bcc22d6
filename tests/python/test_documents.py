"""Packed documents: the loss of `agoq eval` is that of transformers with a block-diagonal mask."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agoq.indexed import open_writer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

PROGRAM = Path(os.environ.get("AGOQ_PROGRAM", Path(__file__).resolve().parents[2] / "build" / "agoq"))
if not PROGRAM.exists():
    pytest.skip(f"{PROGRAM} is not built", allow_module_level=True)

VOCAB, LENGTH, END = 97, 24, 5


def conversations() -> list[tuple[np.ndarray, np.ndarray]]:
    """Ids and masks; END stands behind every turn, as in ChatML, and every second turn counts."""
    random = np.random.default_rng(3)
    result = []
    for _ in range(40):
        ids, mask = [], []
        for turn in range(random.integers(2, 5)):
            turn_ids = [*random.integers(6, VOCAB, random.integers(1, 6)), END]
            ids += turn_ids
            mask += [turn % 2] * len(turn_ids)
        result.append((np.array(ids), np.array(mask)))
    return result


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    torch.manual_seed(1)
    config = transformers.LlamaConfig(vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                                      num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
                                      initializer_range=0.3, eos_token_id=END)
    made = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    folder = tmp_path_factory.mktemp("model")
    made.save_pretrained(folder)
    return made, folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    with open_writer(tmp_path / "chat", VOCAB, True, False) as writer:
        for ids, mask in conversations():
            writer.add(ids, mask)
            writer.end_document()
        writer.finish({})
    (tmp_path / "chat.json").unlink()
    return tmp_path / "chat"


def loss_of_transformers(model: Any, document: np.ndarray, reset: bool) -> float:
    """Over whole windows of LENGTH tokens; document[i] is the number of the document that token i belongs to."""
    ids = np.concatenate([ids for ids, _ in conversations()])
    counts = np.concatenate([mask for _, mask in conversations()])
    total, targets = 0.0, 0
    for first in range(0, len(ids) - LENGTH, LENGTH):
        window = slice(first, first + LENGTH)
        after = slice(first + 1, first + LENGTH + 1)
        part = document[window] if reset else np.zeros(LENGTH, int)
        sees = (part[:, None] == part[None, :]) & np.tri(LENGTH, dtype=bool)
        positions = np.arange(LENGTH) - np.array([np.flatnonzero(part == own)[0] for own in part])
        with torch.no_grad():
            logits = model(torch.tensor(ids[None, window]), attention_mask=torch.tensor(sees[None, None]),
                           position_ids=torch.tensor(positions[None])).logits[0].double()
        nll = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[after]), reduction="none").numpy()
        total += float(nll @ counts[after])
        targets += int(counts[after].sum())
    return total / targets


def evaluate(folder: Path, data: Path | str, *flags: str) -> tuple[float, str]:
    done = subprocess.run([PROGRAM, "eval", folder, "--data-path", data, "--seq-length", str(LENGTH), "--device", "cpu",
                           "--compute-dtype", "fp32", "--json", *flags], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["loss"], done.stderr


def borders() -> np.ndarray:
    return np.repeat(np.arange(len(conversations())), [len(ids) for ids, _ in conversations()])


def test_the_index_divides_documents_not_the_end_token(model: tuple[Any, Path], data: Path) -> None:
    made, folder = model
    apart = loss_of_transformers(made, borders(), True)
    ids = np.concatenate([ids for ids, _ in conversations()])
    at_tokens = loss_of_transformers(made, np.cumsum(np.r_[0, ids[:-1] == END]), True)
    together = loss_of_transformers(made, borders(), False)
    assert min(abs(apart - at_tokens), abs(apart - together)) > 0.01  # the test can tell them apart

    assert evaluate(folder, data)[0] == pytest.approx(apart, abs=1e-5)  # by itself, because there is a mask
    assert evaluate(folder, data, "--reset-position-ids", "--reset-attention-mask")[0] == pytest.approx(apart, abs=1e-5)
    assert evaluate(folder, data, "--no-reset-position-ids",
                    "--no-reset-attention-mask")[0] == pytest.approx(together, abs=1e-5)


def test_a_flat_file_is_divided_by_the_end_token_with_a_warning(model: tuple[Any, Path], data: Path) -> None:
    made, folder = model
    ids = np.concatenate([ids for ids, _ in conversations()])
    data.with_suffix(".idx").unlink()
    loss, warning = evaluate(folder, f"{data}.bin")
    at_tokens = loss_of_transformers(made, np.cumsum(np.r_[0, ids[:-1] == END]), True)
    assert loss == pytest.approx(at_tokens, abs=1e-5)
    assert "chat.bin does not store where documents begin" in warning and f"token {END} " in warning
