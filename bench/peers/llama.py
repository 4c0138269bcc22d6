"""transformers' LlamaForCausalLM as the peers that train it have it in common. The head and the loss are ours by default,
because transformers' own hold fp32 logits of all tokens several times over."""

import dataclasses

import torch
import torch.nn.functional as F
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb
from worker import causal_attention

LOSS_CHUNK = 2048  # tokens whose logits exist at a time
FP8_RECIPES = ("tensorwise", "rowwise", "rowwise_with_gw_hp")  # torchao's names


def add_options(parser):
    parser.add_argument("--compile", action="store_true", help="torch.compile every layer")
    parser.add_argument("--memory-budget", type=float, default=1.0, help="share of what the compiler would keep for backward; the rest is recomputed")
    parser.add_argument("--recompute", type=float, default=0.0, help="share of the layers that are checkpointed")
    parser.add_argument("--loss", default="chunked", choices=["plain", "chunked"], help="transformers' own, or logits of some tokens at a time")
    parser.add_argument("--kernels", default="torch", choices=["torch", "liger"], help="of norms, RoPE and SwiGLU")
    parser.add_argument("--fused-linears", action="store_true", help="one product for q, k and v, and one for gate and up")
    parser.add_argument("--fp8", choices=FP8_RECIPES, help="products of the layers in 8-bit floats by torchao; the head stays bf16")


class Llama(LlamaForCausalLM):
    """Called with token and target ids [1, S], it gives the mean loss."""

    def __init__(self, config, loss):
        super().__init__(config)
        if loss == "chunked":
            self.lm_head.forward = lambda hidden, targets=None: HeadLoss.apply(hidden, self.lm_head.weight, targets)
        self.chunked = loss == "chunked"
        self.train()

    def forward(self, tokens, targets):
        if not self.chunked:
            return super().forward(input_ids=tokens, labels=tokens, shift_labels=targets).loss
        return self.lm_head(self.model(input_ids=tokens).last_hidden_state, targets)


class FusedAttention(torch.nn.Module):
    """LlamaAttention with one product for q, k and v."""

    def __init__(self, config):
        super().__init__()
        self.dim = config.head_dim
        self.heads = [config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads]
        self.qkv_proj = torch.nn.Linear(config.hidden_size, sum(self.heads) * self.dim, bias=False)
        self.o_proj = torch.nn.Linear(self.heads[0] * self.dim, config.hidden_size, bias=False)

    def forward(self, hidden_states, position_embeddings, **_):
        qkv = self.qkv_proj(hidden_states).unflatten(-1, (-1, self.dim))
        q, k, v = (part.transpose(1, 2) for part in qkv.split(self.heads, dim=2))
        q, k = apply_rotary_pos_emb(q, k, *position_embeddings)
        # a copy of v, so that backward need not keep all of qkv
        attended = causal_attention(q, k, v.contiguous())
        return self.o_proj(attended.transpose(1, 2).flatten(2)), None


class FusedMLP(torch.nn.Module):
    """LlamaMLP with one product for gate and up."""

    def __init__(self, config):
        super().__init__()
        self.gate_up_proj = torch.nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down_proj = torch.nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)


class HeadLoss(torch.autograd.Function):
    """Mean cross entropy of hidden states [1, S, H] behind the head's weight [V, H]. Gradients are made with the loss, while a
    chunk's logits are at hand."""

    @staticmethod
    def forward(ctx, hidden, weight, targets):
        gradient, weight_gradient, loss = torch.empty_like(hidden), torch.zeros_like(weight), 0.0
        chunks = (t.flatten(0, 1).split(LOSS_CHUNK) for t in (hidden, gradient, targets))
        for h, dh, t in zip(*chunks):
            logits = h @ weight.T
            part = fused(cross_entropy_and_gradient, logits)(logits, t, 1 / targets.numel())
            loss = loss + part[0]
            torch.mm(part[1], weight, out=dh)
            weight_gradient.addmm_(part[1].T, h)
        ctx.save_for_backward(gradient, weight_gradient)
        return loss

    @staticmethod
    def backward(ctx, of_loss):
        gradient, weight_gradient = ctx.saved_tensors
        return gradient.mul_(of_loss), weight_gradient.mul_(of_loss), None


def cross_entropy_and_gradient(logits, targets, scale):
    wide = logits.float()
    log_sum = wide.logsumexp(-1, keepdim=True)
    at_target = torch.arange(logits.shape[-1], device=logits.device) == targets[:, None]
    loss = (log_sum.squeeze(-1) - wide.gather(-1, targets[:, None]).squeeze(-1)).sum() * scale
    return loss, (((wide - log_sum).exp() - at_target.float()) * scale).to(logits.dtype)


COMPILED = {}


def fused(function, like):
    """As one kernel, where there is a compiler for the device."""
    if not like.is_cuda:
        return function
    return COMPILED.setdefault(function, torch.compile(function, dynamic=False))


def config_of(w, kind=LlamaConfig):
    config = kind(**{key: value for key, value in w.config.items() if key != "model_type"})
    config.max_position_embeddings = max(config.max_position_embeddings, *w.options.seq_lengths)
    config.use_cache = False
    config._attn_implementation = "sdpa"
    return config


def make(w, config):
    """The model, on whatever device and of whatever type is the default. Liger's kernels, which only a GPU runs, must be in place
    before."""
    if w.options.kernels == "liger" and w.on_gpu:
        from liger_kernel.transformers import apply_liger_kernel_to_llama

        apply_liger_kernel_to_llama(rope=True, rms_norm=True, swiglu=True, cross_entropy=False, fused_linear_cross_entropy=False)
    model = Llama(config, w.options.loss)
    if w.options.fused_linears:
        for layer in model.model.layers:
            layer.self_attn, layer.mlp = FusedAttention(config), FusedMLP(config)
    return model


def prepare_layers(w, model):
    """Has all multiply in 8-bit floats if asked to, checkpoints as many layers as are asked for, evenly spread, and compiles all."""
    layers, share = model.model.layers, w.options.recompute
    torch._functorch.config.activation_memory_budget = w.options.memory_budget
    for i in range(len(layers)):
        if w.options.fp8:
            multiply_in_fp8(w, layers[i])
        if int((i + 1) * share) > int(i * share):
            layers[i] = checkpoint_wrapper(layers[i])
        if w.options.compile:
            layers[i].compile(dynamic=False)


def multiply_in_fp8(w, layer):
    """All of its products. The recipes are torchao's own: sums of forward are fast ones, sums of backward are not."""
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    recipe = Float8LinearConfig.from_recipe_name(w.options.fp8)
    convert_to_float8_training(layer, config=dataclasses.replace(recipe, emulate=not w.on_gpu))


def initialize(w, model, config):
    """Of a model whose memory is new."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0) if parameter.dim() == 1 else parameter.normal_(0, config.initializer_range)
    with torch.device(w.device):
        model.model.rotary_emb = LlamaRotaryEmbedding(config=config)


def accumulate(model, batches, backward):
    """The gradients of all micro-batches; the mean loss."""
    total = 0.0
    for tokens, targets in batches:
        loss = model(tokens, targets)
        backward(loss / len(batches))
        total += loss.detach() / len(batches)
    return total
