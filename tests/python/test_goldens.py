"""The goldens themselves, against a second implementation: the model in numpy, fp64, written from the formulas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

GOLDENS = Path(__file__).resolve().parent.parent / "goldens"
CASES = sorted(path.parent.name for path in GOLDENS.glob("*/golden.json"))

Arrays = dict[str, np.ndarray]


def load_weights(folder: Path) -> Arrays:
    weights: Arrays = {}
    for path in sorted(folder.glob("*.safetensors")):
        weights |= {name: value.astype(np.float64) for name, value in load_file(path).items()}
    return weights


def load_case(name: str) -> tuple[dict[str, Any], Arrays, Arrays]:
    folder = GOLDENS / name
    config = json.loads((folder / "model" / "config.json").read_text())
    return config, load_weights(folder / "model"), load_file(folder / "golden.safetensors")


def inverse_frequencies(config: dict[str, Any], head_dim: int) -> np.ndarray:
    rope = config.get("rope_parameters") or {"rope_theta": config["rope_theta"], **(config["rope_scaling"] or {})}
    frequency = rope["rope_theta"] ** (-np.arange(0, head_dim, 2) / head_dim)
    if rope.get("rope_type") != "llama3":
        return frequency
    turns = rope["original_max_position_embeddings"] * frequency / (2 * np.pi)  # full turns within the old context
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    keep = np.clip((turns - low) / (high - low), 0, 1)  # 1: untouched, 0: stretched by the factor
    assert {0.0, 1.0} < set(keep), "all three bands of the formula must matter"
    return frequency * (keep + (1 - keep) / rope["factor"])


def norm(x: np.ndarray, weight: np.ndarray | None, epsilon: float) -> np.ndarray:
    """RMSNorm; without a weight, OLMo's LayerNorm."""
    if weight is None:
        x = x - x.mean(-1, keepdims=True)
    unit = x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon)
    return unit if weight is None else unit * weight


def rotate(x: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """x [T, heads, D] as complex numbers (first half real, second half imaginary), turned by angle [T, D/2]."""
    real, imaginary = np.split(x, 2, -1)
    turned = (real + 1j * imaginary) * np.exp(1j * angle)[:, None]
    return np.concatenate([turned.real, turned.imag], -1)


def visible(config: dict[str, Any], doc_start: np.ndarray) -> np.ndarray:
    query, key = np.indices((doc_start.size, doc_start.size))
    allowed = (key <= query) & (key >= doc_start[:, None])
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    return allowed & (query - key < window) if window else allowed


def attention(x: np.ndarray, w: Arrays, prefix: str, config: dict[str, Any], golden: Arrays) -> np.ndarray:
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    dim = config.get("head_dim") or config["hidden_size"] // heads

    def project(name: str) -> np.ndarray:
        return x @ w[f"{prefix}.{name}_proj.weight"].T + w.get(f"{prefix}.{name}_proj.bias", 0)

    def unit(projected: np.ndarray, name: str) -> np.ndarray:
        """The norm of q or k over its last dimension: a head (Qwen3), or all of them (OLMo 2)."""
        weight = w.get(f"{prefix}.{name}_norm.weight")
        if weight is None:
            return projected
        return norm(projected.reshape(len(x), -1, weight.size), weight, config["rms_norm_eps"])

    q, k, v = (tensor.reshape(len(x), -1, dim)
               for tensor in (unit(project("q"), "q"), unit(project("k"), "k"), project("v")))
    angle = golden["positions"].reshape(-1, 1) * inverse_frequencies(config, dim)
    q, k = rotate(q, angle), rotate(k, angle)
    k, v = (np.repeat(tensor, heads // groups, axis=1) for tensor in (k, v))
    score = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(dim)
    score = np.where(visible(config, golden["doc_start"]), score, -np.inf)
    probability = np.exp(score - score.max(-1, keepdims=True))
    probability /= probability.sum(-1, keepdims=True)
    return np.einsum("hqk,khd->qhd", probability, v).reshape(len(x), -1) @ w[f"{prefix}.o_proj.weight"].T


def logits_of(config: dict[str, Any], w: Arrays, golden: Arrays) -> np.ndarray:
    epsilon = config.get("rms_norm_eps", 1e-5)  # OLMo has no such key
    x = w["model.embed_tokens.weight"][golden["tokens"].ravel()]
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"

        def attend(x: np.ndarray, at: str = at) -> np.ndarray:
            return attention(x, w, f"{at}.self_attn", config, golden)

        def mlp(x: np.ndarray, at: str = at) -> np.ndarray:
            gate, up = x @ w[f"{at}.mlp.gate_proj.weight"].T, x @ w[f"{at}.mlp.up_proj.weight"].T
            return (gate / (1 + np.exp(-gate)) * up) @ w[f"{at}.mlp.down_proj.weight"].T

        if config["model_type"] == "olmo2":  # norms behind
            x = x + norm(attend(x), w[f"{at}.post_attention_layernorm.weight"], epsilon)
            x = x + norm(mlp(x), w[f"{at}.post_feedforward_layernorm.weight"], epsilon)
        else:
            x = x + attend(norm(x, w.get(f"{at}.input_layernorm.weight"), epsilon))
            x = x + mlp(norm(x, w.get(f"{at}.post_attention_layernorm.weight"), epsilon))
    head = w["model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"]
    return norm(x, w.get("model.norm.weight"), epsilon) @ head.T


def loss_of(logits: np.ndarray, golden: Arrays) -> float:
    largest = logits.max(-1)
    log_sum = np.log(np.exp(logits - largest[:, None]).sum(-1)) + largest
    nll = log_sum - np.take_along_axis(logits, golden["targets"].reshape(-1, 1), 1)[:, 0]
    weights = golden["loss_weights"].ravel()
    return float((nll * weights).sum() / weights.sum())


def test_every_case_is_present() -> None:
    assert set(CASES) >= {"llama_gqa", "llama_tied", "llama3_rope", "mistral", "qwen2", "qwen3", "olmo", "olmo2",
                         "packed"}


@pytest.mark.parametrize("name", CASES)
def test_logits_and_loss(name: str) -> None:
    config, weights, golden = load_case(name)
    logits = logits_of(config, weights, golden)
    expected = golden["logits"].reshape(logits.shape)
    np.testing.assert_allclose(logits, expected, rtol=1e-6, atol=1e-6)  # the golden is rounded to fp32
    np.testing.assert_allclose(loss_of(logits, golden), golden["loss"][0], rtol=1e-6)
    assert golden["losses20"][0] == golden["loss"][0]


@pytest.mark.parametrize("name", CASES)
def test_gradients_along_random_directions(name: str) -> None:
    config, weights, golden = load_case(name)
    assert {key[5:] for key in golden if key.startswith("grad.")} == set(weights)
    rng = np.random.default_rng(0)
    step = 1e-5
    for parameter, value in weights.items():
        gradient = golden[f"grad.{parameter}"].astype(np.float64)
        direction = rng.standard_normal(value.shape) + gradient / np.abs(gradient).max()
        sides = [loss_of(logits_of(config, weights | {parameter: value + sign * step * direction}, golden), golden)
                 for sign in (1, -1)]
        slope = (gradient * direction).sum()
        tolerance = 1e-6 * np.linalg.norm(gradient) * np.linalg.norm(direction)
        assert abs((sides[0] - sides[1]) / (2 * step) - slope) < tolerance, parameter
