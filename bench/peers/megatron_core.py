#!/usr/bin/env python3
"""Megatron-core: data parallel with or without its distributed optimizer, tensor parallel with sequence parallel.

Without apex and Transformer Engine, which have to be compiled, Megatron-core falls back to modules of its own. Attention is then
a plain softmax over an S x S matrix, so PyTorch's fused attention stands in its place; PyTorch's RMSNorm stands in for the one
that refuses sequence parallelism; AdamW is PyTorch's fused one. Compiled (torch.compile): SwiGLU and cross entropy, as Megatron-core has
it, and RoPE. Weights are bf16, master and moments fp32, gradients summed over ranks beside the backward pass, weights gathered
beside the forward pass.
--precision-aware (moments and gradients in bf16, 16-bit remainders in place of the master) needs Transformer Engine's optimizer.
See worker.py for the interface.
"""

import contextlib

import torch
import worker
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.models.common.embeddings import rope_utils
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.module import Float16Module
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules

# Norms alone cannot be recomputed without Transformer Engine.
KEEPS = {"all": {}, "no-mlp": {"recompute_granularity": "selective", "recompute_modules": ["mlp"]}}


def main():
    parser = worker.parser(__doc__)
    parser.add_argument("--tensor-parallel", type=int, default=1)
    parser.add_argument("--distributed-optimizer", action="store_true")
    parser.add_argument("--precision-aware", action="store_true")
    parser.add_argument("--grad-reduce", default="bf16", choices=["bf16", "fp32"], help="in which gradients are held and summed")
    parser.add_argument("--keep", default="all", choices=KEEPS, help="what forward keeps for backward")
    parser.add_argument("--recompute", type=float, default=0.0, help="share of the layers that are recomputed whole")
    worker.Worker(parser.parse_args()).run(build)


def build(w):
    parallel_state.initialize_model_parallel(w.options.tensor_parallel, create_gloo_process_groups=False)
    model_parallel_cuda_manual_seed(1)
    rope_utils._apply_rotary_pos_emb_bshd = torch.compile(rope_utils._apply_rotary_pos_emb_bshd, dynamic=False)
    config = transformer_config(w)
    gpt = GPTModel(config, block(config), w.config["vocab_size"], max(w.options.seq_lengths), position_embedding_type="rope",
                   rotary_base=int(w.config["rope_theta"]), parallel_output=True)
    model = DistributedDataParallel(config, ddp_config(w), Float16Module(config, gpt.to(w.device)))
    optimizer = get_megatron_optimizer(optimizer_config(w), [model], use_gloo_process_groups=False)
    if not w.options.precision_aware:
        fuse_adam(optimizer)

    def step(batches):
        model.zero_grad_buffer()
        optimizer.zero_grad()
        total = 0.0
        for i, (tokens, targets) in enumerate(batches):
            with contextlib.nullcontext() if i == len(batches) - 1 else model.no_sync():
                positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
                loss = model(tokens, positions, None, labels=targets).float().mean() / len(batches)
                loss.backward()
                total += loss.detach()
        finalize_model_grads([model])
        optimizer.step()
        return total

    return step


def transformer_config(w):
    c, layers = w.config, w.config["num_hidden_layers"]
    recompute = {"recompute_granularity": "full", "recompute_method": "block", "recompute_num_layers": round(w.options.recompute * layers)}
    return TransformerConfig(
        num_layers=layers, hidden_size=c["hidden_size"], ffn_hidden_size=c["intermediate_size"], num_attention_heads=c["num_attention_heads"],
        num_query_groups=c["num_key_value_heads"], kv_channels=c.get("head_dim"), normalization="RMSNorm", layernorm_epsilon=c["rms_norm_eps"],
        gated_linear_unit=True, activation_func=torch.nn.functional.silu, add_bias_linear=False, bias_activation_fusion=True,
        attention_dropout=0.0, hidden_dropout=0.0, bias_dropout_fusion=True, masked_softmax_fusion=False, cross_entropy_loss_fusion=True,
        gradient_accumulation_fusion=False, persist_layer_norm=False, bf16=True, params_dtype=torch.bfloat16,
        tensor_model_parallel_size=w.options.tensor_parallel, sequence_parallel=w.options.tensor_parallel > 1,
        **(recompute if w.options.recompute > 0 else KEEPS[w.options.keep]))


def block(config):
    layer = get_gpt_layer_local_spec(normalization="RMSNorm")
    layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = rms_norm
    layer.submodules.self_attention.submodules.core_attention = FusedAttention
    return TransformerBlockSubmodules(layer_specs=[layer] * config.num_layers, layer_norm=rms_norm)


def rms_norm(config, hidden_size, eps=1e-5, **_):
    norm = torch.nn.RMSNorm(hidden_size, eps)
    norm.weight.sequence_parallel = config.sequence_parallel  # its gradient is summed over the tensor ranks
    return norm


class FusedAttention(torch.nn.Module):
    """In place of DotProductAttention: q [S, 1, Hq, D], k and v [S, 1, Hkv, D] -> [S, 1, Hq D]."""

    def __init__(self, *_, **__):
        super().__init__()

    def forward(self, query, key, value, *_, **__):
        q, k, v = (t.permute(1, 2, 0, 3) for t in (query, key, value))
        return worker.causal_attention(q, k, v).permute(2, 0, 1, 3).flatten(2)


def ddp_config(w):
    divided = w.options.distributed_optimizer
    return DistributedDataParallelConfig(grad_reduce_in_fp32=w.options.grad_reduce == "fp32", overlap_grad_reduce=True,
                                         average_in_collective=True, overlap_param_gather=divided, use_distributed_optimizer=divided)


def optimizer_config(w):
    (beta1, beta2), precise = worker.ADAM["betas"], w.options.precision_aware
    low = {"use_precision_aware_optimizer": True} | dict.fromkeys(("exp_avg_dtype", "exp_avg_sq_dtype", "main_grads_dtype"), torch.bfloat16)
    return OptimizerConfig(optimizer="adam", lr=worker.ADAM["lr"], weight_decay=worker.ADAM["weight_decay"], adam_beta1=beta1, adam_beta2=beta2,
                           adam_eps=worker.ADAM["eps"], bf16=True, params_dtype=torch.bfloat16, clip_grad=worker.CLIP,
                           use_distributed_optimizer=w.options.distributed_optimizer, overlap_param_gather=w.options.distributed_optimizer,
                           **(low if precise else {}))


def fuse_adam(optimizer):
    """One kernel for all parameters in place of one for each operation."""
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        for group in part.optimizer.param_groups:
            group["fused"], group["foreach"] = True, False


if __name__ == "__main__":
    main()
