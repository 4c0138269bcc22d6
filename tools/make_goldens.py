#!/usr/bin/env python3
"""Make the goldens that the C++ tests compare with: small models run by PyTorch and transformers.

    pip install -r python/requirements-reference.txt
    python tools/make_goldens.py [--output tests/goldens] [CASE ...]

A case is a folder:
  model/              a Hugging Face folder (config.json, safetensors in fp32)
  golden.json         shapes, the optimizer's settings, and how far fp32 lies from fp64 in PyTorch itself
  golden.safetensors  tokens, targets, positions [B, S] int32; doc_start [B*S] int32; loss_weights [B, S];
                      logits [B, S, V]; loss [1]; grad.<parameter>; losses20 and grad_norms20 [20]

doc_start is the index, in the flattened row of B*S tokens, of the first token of a token's document. The loss is
sum(w * nll) / sum(w). losses20[i] is the loss before update i of AdamW on this one batch; grad_norms20[i] is the
global norm before clipping. Everything is computed in fp64 with eager attention and stored as fp32.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import transformers
from safetensors.torch import save_file
from transformers import (AutoModelForCausalLM, LlamaConfig, MistralConfig, Olmo2Config, OlmoConfig, PreTrainedConfig,
                          Qwen2Config, Qwen3Config)

ADAMW = {"lr": 3e-3, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1, "clip_grad": 1.0, "steps": 20}
CLIP_EPSILON = 1e-6  # torch.nn.utils.clip_grad_norm_ scales by min(1, clip_grad / (norm + 1e-6))

Batch = dict[str, torch.Tensor]


@dataclass
class Case:
    """One golden: a configuration, the shape of its batch, and how its folder is written."""

    name: str
    config: PreTrainedConfig
    batch: int
    sequence: int
    seed: int
    masked: bool = False  # uneven 0/1 loss weights
    documents: list[list[int]] = field(default_factory=list)  # per sequence: lengths of its documents
    published: dict[str, Any] | None = None  # write config.json as released models have it, with these keys on top
    shard_size: str = "1GB"


def cases() -> list[Case]:
    common: dict[str, Any] = {"num_hidden_layers": 2, "max_position_embeddings": 256,
                              "bos_token_id": 0, "eos_token_id": 1}
    untied: dict[str, Any] = {**common, "tie_word_embeddings": False}
    llama = LlamaConfig(vocab_size=101, hidden_size=48, intermediate_size=200, num_attention_heads=6,
                        num_key_value_heads=2, head_dim=16, rms_norm_eps=1e-5, rope_theta=10000.0, **untied)
    tied = LlamaConfig(vocab_size=97, hidden_size=40, intermediate_size=88, num_attention_heads=5,
                       num_key_value_heads=1, head_dim=8, rms_norm_eps=1e-6, tie_word_embeddings=True, **common)
    llama3 = LlamaConfig(vocab_size=89, hidden_size=32, intermediate_size=72, num_attention_heads=4,
                         num_key_value_heads=2, head_dim=32, rms_norm_eps=1e-5,
                         rope_parameters={"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0,
                                          "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                          "original_max_position_embeddings": 128}, **untied)
    mistral = MistralConfig(vocab_size=64, hidden_size=32, intermediate_size=104, num_attention_heads=4,
                            num_key_value_heads=2, head_dim=8, rms_norm_eps=1e-5, sliding_window=11, **untied)
    qwen2 = Qwen2Config(vocab_size=101, hidden_size=48, intermediate_size=80, num_attention_heads=6,
                        num_key_value_heads=2, rms_norm_eps=1e-6, use_sliding_window=False, rope_theta=1e6, **untied)
    qwen3 = Qwen3Config(vocab_size=93, hidden_size=40, intermediate_size=96, num_attention_heads=4,
                        num_key_value_heads=2, head_dim=16, rms_norm_eps=1e-6, rope_theta=1e6, **untied)
    olmo = OlmoConfig(vocab_size=79, hidden_size=48, intermediate_size=88, num_attention_heads=6, pad_token_id=None,
                      tie_word_embeddings=True, **common)
    olmo2 = Olmo2Config(vocab_size=83, hidden_size=48, intermediate_size=104, num_attention_heads=6,
                        num_key_value_heads=2, head_dim=16, rms_norm_eps=1e-6, rope_theta=500000.0,
                        pad_token_id=None, **untied)
    packed = LlamaConfig(vocab_size=73, hidden_size=32, intermediate_size=56, num_attention_heads=4,
                         num_key_value_heads=2, head_dim=8, rms_norm_eps=1e-5, **untied)
    return [
        Case("llama_gqa", llama, batch=4, sequence=24, seed=1, masked=True),
        Case("llama_tied", tied, batch=2, sequence=33, seed=2),
        Case("llama3_rope", llama3, batch=1, sequence=96, seed=3, published={"pretraining_tp": 1}),
        Case("mistral", mistral, batch=2, sequence=40, seed=4, published={}),
        # A window that use_sliding_window=false switches off: a reader must not apply it.
        Case("qwen2", qwen2, batch=3, sequence=20, seed=5, masked=True, published={"sliding_window": 8}),
        Case("qwen3", qwen3, batch=2, sequence=28, seed=6, shard_size="60KB"),
        Case("olmo", olmo, batch=2, sequence=26, seed=8, masked=True, published={}),
        Case("olmo2", olmo2, batch=2, sequence=30, seed=9, masked=True, published={}),
        Case("packed", packed, batch=3, sequence=32, seed=7,
             documents=[[9, 1, 15, 7], [32], [3, 4, 5, 6, 7, 7]]),
    ]


@contextlib.contextmanager
def everything_in_fp64() -> Iterator[None]:
    """transformers computes norms, rotary angles and softmax in float32 by name: let that name mean float64."""
    with contextlib.ExitStack() as stack:
        for name in ("float32", "float"):
            stack.enter_context(mock.patch.object(torch, name, torch.float64))
        stack.enter_context(mock.patch.object(torch.Tensor, "float", torch.Tensor.double))
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float64)
        yield


def new_model(config: PreTrainedConfig) -> torch.nn.Module:
    return AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation="eager")


def randomize(model: torch.nn.Module, seed: int) -> None:
    """Weights under which every term matters: no norm weight is one, no bias zero, attention far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            draw = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.copy_(1 + 0.25 * draw if "norm" in name else 0.4 * draw)
            elif "embed_tokens" in name:
                parameter.copy_(draw * 0.5)
            else:
                parameter.copy_(draw * 1.2 / parameter.shape[1] ** 0.5)


def make_batch(case: Case) -> Batch:
    generator = torch.Generator().manual_seed(1000 + case.seed)
    shape = (case.batch, case.sequence)
    row = torch.randint(2, case.config.vocab_size, (case.batch, case.sequence + 1), generator=generator)
    weights = torch.ones(shape)
    if case.masked:  # sequence b keeps about (b + 1) / (B + 1) of its targets, and never none
        keep = (torch.arange(case.batch) + 1).view(-1, 1) / (case.batch + 1)
        weights = (torch.rand(shape, generator=generator) < keep).float()
        weights[:, -1] = 1
    lengths = case.documents or [[case.sequence]] * case.batch
    starts = torch.stack([torch.repeat_interleave(torch.tensor([sum(of[:i]) for i in range(len(of))]),
                                                  torch.tensor(of)) for of in lengths])
    if case.documents:  # each document ends with eos, whose target belongs to the next document and does not count
        for sequence, of in enumerate(lengths):
            ends = torch.tensor(of).cumsum(0) - 1
            row[sequence, ends] = case.config.eos_token_id
            weights[sequence, ends] = 0
    return {"tokens": row[:, :-1].contiguous(), "targets": row[:, 1:].contiguous(), "loss_weights": weights,
            "positions": torch.arange(case.sequence) - starts,
            "doc_start": (starts + torch.arange(case.batch).view(-1, 1) * case.sequence).flatten()}


def document_mask(batch: Batch, dtype: torch.dtype) -> torch.Tensor:
    """Additive mask [B, 1, S, S]: causal, and within the document."""
    size, sequence = batch["tokens"].shape
    documents = batch["doc_start"].view(size, sequence)
    allowed = (documents[:, :, None] == documents[:, None, :]) & torch.ones(sequence, sequence).tril().bool()
    return torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)[:, None]


def run_model(model: torch.nn.Module, case: Case, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    dtype = next(model.parameters()).dtype
    mask = document_mask(batch, dtype) if case.documents else None
    logits = model(batch["tokens"], position_ids=batch["positions"], attention_mask=mask, use_cache=False).logits
    assert logits.dtype == dtype
    nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten(), reduction="none")
    weights = batch["loss_weights"].flatten().to(dtype)
    return logits, (nll * weights).sum() / weights.sum()


def no_decay(name: str, parameter: torch.Tensor) -> bool:
    return parameter.ndim < 2 or "embed_tokens" in name


def train(model: torch.nn.Module, loss_of: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    named = list(model.named_parameters())
    groups = [{"params": [p for n, p in named if no_decay(n, p)], "weight_decay": 0.0},
              {"params": [p for n, p in named if not no_decay(n, p)], "weight_decay": ADAMW["weight_decay"]}]
    optimizer = torch.optim.AdamW(groups, lr=ADAMW["lr"], betas=tuple(ADAMW["betas"]), eps=ADAMW["eps"])
    losses, norms = [], []
    for _ in range(ADAMW["steps"]):
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), ADAMW["clip_grad"]))
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses), torch.stack(norms)


def evaluate(model: torch.nn.Module, case: Case, batch: Batch) -> Batch:
    """Logits, loss, gradients, and the losses of 20 updates (the model's weights change)."""
    logits, loss = run_model(model, case, batch)
    loss.backward()
    result = {"logits": logits.detach(), "loss": loss.detach().view(1)}
    result |= {f"grad.{name}": p.grad.clone() for name, p in model.named_parameters()}
    result["losses20"], result["grad_norms20"] = train(model, lambda: run_model(model, case, batch)[1])
    return result


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b).norm() / b.norm())


def noise(single: Batch, double: Batch) -> dict[str, float]:
    """How far PyTorch's own fp32 lies from its fp64."""
    grads = {name: relative(single[name], double[name]) for name in double if name.startswith("grad.")}
    losses = (single["losses20"].double() - double["losses20"]).abs()
    return {"logits_max_abs": float((single["logits"].double() - double["logits"]).abs().max()),
            "loss_abs": float((single["loss"].double() - double["loss"]).abs()),
            "grad_max_relative_l2": max(grads.values()), "losses20_max_abs": float(losses.max())}


def as_published(folder: Path, extra: dict[str, Any]) -> None:
    """Rewrite config.json with the key names of released models: rope_theta, rope_scaling, torch_dtype."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = rope if rope["rope_type"] != "default" else None
    config["torch_dtype"] = config.pop("dtype")
    config.pop("layer_types", None)
    path.write_text(json.dumps(config | extra, indent=2, sort_keys=True) + "\n")


def write_model(model: torch.nn.Module, case: Case, folder: Path) -> None:
    model.save_pretrained(folder, max_shard_size=case.shard_size)
    if case.published is not None:
        as_published(folder, case.published)


def check_folder(folder: Path, case: Case, batch: Batch, expected: torch.Tensor) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    with torch.no_grad():
        logits, _ = run_model(model, case, batch)
    assert torch.equal(logits, expected), f"{folder} does not load as the model that wrote it"


def write_golden(case: Case, batch: Batch, result: Batch, summary: dict[str, Any], folder: Path) -> None:
    integers = {name: value.to(torch.int32) for name, value in batch.items() if name != "loss_weights"}
    floats = {name: value.to(torch.float32).contiguous() for name, value in result.items()}
    save_file({**integers, "loss_weights": batch["loss_weights"], **floats}, folder / "golden.safetensors")
    (folder / "golden.json").write_text(json.dumps(summary, indent=2) + "\n")


def make(case: Case, output: Path) -> None:
    folder = output / case.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    batch = make_batch(case)
    model = new_model(case.config)
    assert model.dtype == torch.float32
    randomize(model, case.seed)
    write_model(model, case, folder / "model")
    with everything_in_fp64():
        twin = new_model(case.config)
        twin.load_state_dict(model.state_dict())
        double = evaluate(twin, case, batch)
    single = evaluate(model, case, batch)
    check_folder(folder / "model", case, batch, single["logits"])
    gap = noise(single, double)
    summary = {
        "case": case.name, "batch": case.batch, "sequence": case.sequence, "optimizer": ADAMW,
        "clip_epsilon": CLIP_EPSILON,
        "no_weight_decay": [name for name, p in model.named_parameters() if no_decay(name, p)],
        "fp32_noise": gap, "torch": torch.__version__.split("+")[0], "transformers": transformers.__version__}
    write_golden(case, batch, double, summary, folder)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    losses, norms = double["losses20"], double["grad_norms20"]
    print(f"{case.name:12} {size / 1024:6.0f} KiB  loss {losses[0]:.4f} -> {losses[-1]:.4f}  "
          f"norm {norms[0]:.2f} -> {norms[-1]:.2f}  fp32 noise: "
          + ", ".join(f"{name} {value:.1e}" for name, value in gap.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).resolve().parent.parent / "tests" / "goldens"
    parser.add_argument("--output", type=Path, default=default, help="folder of the cases (default: tests/goldens)")
    parser.add_argument("cases", nargs="*", metavar="CASE", help="only these: " + ", ".join(c.name for c in cases()))
    arguments = parser.parse_args()
    unknown = set(arguments.cases) - {case.name for case in cases()}
    if unknown:
        parser.error(f"unknown case: {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)  # sums in a fixed order
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for case in cases():
        if not arguments.cases or case.name in arguments.cases:
            make(case, arguments.output)


if __name__ == "__main__":
    main()
