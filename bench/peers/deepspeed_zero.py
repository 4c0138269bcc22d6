#!/usr/bin/env python3
"""DeepSpeed ZeRO stages 1, 2 and 3 with transformers' LLaMA: bf16 weights and gradients, fp32 master and moments, PyTorch's
fused AdamW on DeepSpeed's flat partitions. See worker.py for the interface.
"""

import contextlib

import deepspeed
import llama
import torch
import worker


def main():
    parser = worker.parser(__doc__)
    llama.add_options(parser)
    parser.add_argument("--stage", type=int, default=1, choices=[1, 2, 3])
    parser.add_argument("--grad-accumulation", default="bf16", choices=["bf16", "fp32"], help="in which micro-batches add up")
    worker.Worker(parser.parse_args()).run(build)


def settings(options):
    zero = {"stage": options.stage, "overlap_comm": True, "contiguous_gradients": True, "reduce_scatter": True}
    return {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": options.micro_batches, "bf16": {"enabled": True},
            "data_types": {"grad_accum_dtype": options.grad_accumulation}, "zero_optimization": zero, "gradient_clipping": worker.CLIP,
            "zero_allow_untested_optimizer": True, "steps_per_print": 10**9}


def build(w):
    chosen = settings(w.options)
    config = llama.config_of(w)
    torch.set_default_dtype(torch.bfloat16)
    whole = contextlib.nullcontext() if w.options.stage < 3 else deepspeed.zero.Init(config_dict_or_path=chosen)
    with torch.device(w.device), whole:
        model = llama.make(w, config)
    torch.set_default_dtype(torch.float32)
    llama.prepare_layers(w, model)
    optimizer = torch.optim.AdamW(model.parameters(), **worker.ADAM, fused=True)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=chosen)

    def step(batches):
        total = 0.0
        for tokens, targets in batches:
            loss = engine(tokens, targets)
            engine.backward(loss)
            engine.step()
            total += loss.detach() / len(batches)
        return total

    return step


if __name__ == "__main__":
    main()
