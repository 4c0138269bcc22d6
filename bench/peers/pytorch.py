#!/usr/bin/env python3
"""PyTorch: transformers' LLaMA, on one GPU or sharded over all by FSDP2 (fully_shard), with torch.compile or without.

With --state fp32, parameters are fp32 and sharded, computed with in bf16, and Adam's moments are fp32; with bf16 everything
is bf16, 8 bytes a parameter: the least that PyTorch has without further packages, but no master. Gradients are summed over
ranks after every micro-batch, so that they stay sharded. --fp8 needs the package torchao. See worker.py for the rest of the
interface.
"""

import llama
import torch
import worker
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard


def main():
    parser = worker.parser(__doc__)
    llama.add_options(parser)
    parser.add_argument("--shard", action="store_true", help="parameters, gradients and moments over all ranks (FSDP2)")
    parser.add_argument("--state", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--grad-reduce", default="bf16", choices=["bf16", "fp32"], help="in which gradients are summed over ranks")
    parser.add_argument("--keep-unsharded", action="store_true", help="a layer's weights stay whole between forward and backward (as in ZeRO-2)")
    options = parser.parse_args()
    if options.state == "fp32" and not options.shard:
        parser.error("--state fp32 computes in bf16 by FSDP2's casts: give --shard, also on one GPU")
    worker.Worker(options).run(build)


def build(w):
    torch.set_default_dtype(getattr(torch, {"fp32": "float32", "bf16": "bfloat16"}[w.options.state]))
    config = llama.config_of(w)
    with torch.device("meta"):
        model = llama.make(w, config)
    llama.prepare_layers(w, model)
    if w.options.shard:
        shard(w, model)
    elif w.options.compile:
        model.model.norm.compile(dynamic=False)
    model.to_empty(device=w.device)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    llama.initialize(w, model, config)
    optimizer = torch.optim.AdamW(model.parameters(), **worker.ADAM, fused=True)

    def step(batches):
        loss = llama.accumulate(model, batches, torch.Tensor.backward)
        torch.nn.utils.clip_grad_norm_(model.parameters(), worker.CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    return step


def shard(w, model):
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.bfloat16 if w.options.grad_reduce == "bf16" else torch.float32)
    keep = {"mp_policy": policy, "reshard_after_forward": not w.options.keep_unsharded}
    for layer in model.model.layers:
        fully_shard(layer, **keep)
    fully_shard([model.model.norm, model.lm_head], mp_policy=policy, reshard_after_forward=False)
    fully_shard(model, **keep)


if __name__ == "__main__":
    main()
