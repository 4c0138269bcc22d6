"""What AGoQ is compared with: the peers' models compute what they should, and tables show what was measured."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

BENCH = Path(__file__).resolve().parent.parent.parent / "bench"
sys.path[:0] = [str(BENCH), str(BENCH / "peers")]

import gpu_vs_pytorch  # noqa: E402
import llama  # noqa: E402

CONFIG = {"vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
          "num_key_value_heads": 2, "max_position_embeddings": 64}


def make(**settings: Any) -> Any:
    """A model as peers/pytorch.py makes it, on the CPU in fp32; its linears are separate unless asked otherwise."""
    parser = argparse.ArgumentParser()
    llama.add_options(parser)
    options = SimpleNamespace(**vars(parser.parse_args([])) | {"seq_lengths": [32]} | settings)
    worker = SimpleNamespace(config=CONFIG, options=options, on_gpu=False, device=torch.device("cpu"))
    torch.manual_seed(3)
    config = llama.config_of(worker)
    model = llama.make(worker, config)
    llama.prepare_layers(worker, model)
    llama.initialize(worker, model, config)
    return model


def loss_of(model: Any) -> Any:
    source = torch.Generator().manual_seed(5)
    tokens, targets = (torch.randint(CONFIG["vocab_size"], (1, 32), generator=source) for _ in range(2))
    loss = model(tokens, targets)
    loss.backward()
    return loss.detach()


def test_fused_linears_compute_what_separate_ones_do() -> None:
    separate, fused = make(), make(fused_linears=True)
    weights = separate.state_dict()
    for i in range(CONFIG["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        for parts, whole in ((("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "self_attn.qkv_proj"),
                             (("mlp.gate_proj", "mlp.up_proj"), "mlp.gate_up_proj")):
            weights[f"{layer}{whole}.weight"] = torch.cat([weights.pop(f"{layer}{part}.weight") for part in parts])
    fused.load_state_dict(weights)
    torch.testing.assert_close(loss_of(fused), loss_of(separate))
    for name in ("model.embed_tokens.weight", "model.layers.0.mlp.down_proj.weight", "lm_head.weight"):
        torch.testing.assert_close(fused.get_parameter(name).grad, separate.get_parameter(name).grad)


def test_chunked_loss_is_that_of_transformers() -> None:
    chunked, plain = make(), make(loss="plain")
    plain.load_state_dict(chunked.state_dict())
    torch.testing.assert_close(loss_of(chunked), loss_of(plain))
    torch.testing.assert_close(chunked.lm_head.weight.grad, plain.lm_head.weight.grad)


@pytest.mark.parametrize("recipe", llama.FP8_RECIPES)
def test_layers_multiply_in_fp8_and_the_head_does_not(recipe: str) -> None:
    linear = pytest.importorskip("torchao.float8.float8_linear").Float8Linear
    model = make(fp8=recipe, fused_linears=True)
    converted = [name for name, module in model.named_modules() if isinstance(module, linear)]
    assert len(converted) == 4 * CONFIG["num_hidden_layers"]
    assert not any("head" in name for name in converted)
    assert float(loss_of(model)) == pytest.approx(float(loss_of(make(fused_linears=True))), rel=0.02)


def test_table_compares_with_each_peer_and_tells_of_one_more_layer() -> None:
    cases = [gpu_vs_pytorch.CASES["8 layers"], gpu_vs_pytorch.CASES["16 layers"]]
    peer, agoq = gpu_vs_pytorch.PEERS["best"], gpu_vs_pytorch.Agoq("AGoQ", ())
    rows = {(case, candidate): gpu_vs_pytorch.medians([{"ms": ms * case.layers, "gib": case.layers, "allocated_gib": 1.0, "loss": 2.0}])
            for case in cases for candidate, ms in ((peer, 30.0), (agoq, 20.0))}
    rows[cases[1], peer] = gpu_vs_pytorch.medians([{"failed": "out of memory"}])
    text = gpu_vs_pytorch.tables(rows, SimpleNamespace(cases=cases, peers=["best"]))
    assert "| AGoQ | 51200 | 160.0 | 8.0 | 1.0 | 1.500 | 0.0% |" in text
    assert "failed: out of memory" in text
    assert "One more layer, 8 layers to 16 layers:" in text
    assert "| AGoQ | 20.00 | 1.000 |" in text


def test_round_without_a_loss_is_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    options = SimpleNamespace(agoq="none")
    case = gpu_vs_pytorch.Case("tiny", "tiny", 2)
    for loss in (float("nan"), None):
        monkeypatch.setattr(gpu_vs_pytorch, "run_agoq", lambda *_, loss=loss: {"ms": 1.0, "loss": loss})
        assert "failed" in gpu_vs_pytorch.run(gpu_vs_pytorch.Agoq("AGoQ", ()), case, options)
