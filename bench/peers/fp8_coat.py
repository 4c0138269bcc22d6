#!/usr/bin/env python3
"""COAT (the package fp8-coat): its LLaMA, whose layers multiply in 8-bit floats and save 8-bit activations, on one GPU.

Norms, products and SwiGLU are COAT's own, as its defaults have them: Triton's kernels, whose configurations its autotuner chooses
by timing in the first step. Attention is PyTorch's. The head and the loss are those of the other peers (llama.py). Weights are bf16,
without a master, with PyTorch's fused AdamW and bf16 moments: COAT's own optimizer is a CUDA extension that the package does not
build, takes fp32 weights, and comes without its headers.

fp8-coat asks for a Triton older than today's PyTorch and for transformers 4.45.2, which the other peers do not run with. So it has
a folder of its own:

  pip install --no-deps --target FOLDER fp8-coat transformers==4.45.2 tokenizers==0.20.3 huggingface_hub==0.26.5
  PYTHONPATH=FOLDER bench/peers/fp8_coat.py --model config.json --seq-lengths 8192

See worker.py for the rest of the interface.
"""

import llama
import torch
import worker
from coat.models.coat_llama import CoatLlamaConfig, CoatLlamaModel
from coat.utils._fp8manager import FP8Manager


class CoatLlama(torch.nn.Module):
    """Called with token and target ids [1, S], it gives the mean loss."""

    def __init__(self, config):
        super().__init__()
        self.model = CoatLlamaModel(config)
        self.lm_head = torch.nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.train()

    def forward(self, tokens, targets):
        hidden = self.model(input_ids=tokens, use_cache=False).last_hidden_state
        return llama.HeadLoss.apply(hidden, self.lm_head.weight, targets)


def main():
    parser = worker.parser(__doc__)
    parser.add_argument("--compile", action="store_true", help="torch.compile RoPE, attention and the last norm; COAT's own kernels stay as they are")
    parser.add_argument("--keep-weights", action="store_true", help="weights in 8-bit floats are kept for backward instead of being cast again")
    options = parser.parse_args()
    worker.Worker(options).run(build)


def build(w):
    torch.set_default_dtype(torch.bfloat16)
    config = llama.config_of(w, CoatLlamaConfig)
    config.coat_fp8_args = {"weight_memory_efficient": not w.options.keep_weights}
    with torch.device(w.device):
        model = CoatLlama(config)
    if w.options.compile:
        for part in (*(layer.self_attn for layer in model.model.layers), model.model.norm):
            part.compile(dynamic=False)
    llama.initialize(w, model, config)
    optimizer = torch.optim.AdamW(model.parameters(), **worker.ADAM, fused=True)

    def backward(loss):
        loss.backward()
        FP8Manager.is_first_microbatch = False

    def step(batches):
        FP8Manager.is_first_microbatch = True  # weights are new
        loss = llama.accumulate(model, batches, backward)
        torch.nn.utils.clip_grad_norm_(model.parameters(), worker.CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    return step


if __name__ == "__main__":
    main()
