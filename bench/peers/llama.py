"""transformers' LlamaForCausalLM as the peers that train it have it in common. The head and the loss are ours by default,
because transformers' own hold fp32 logits of all tokens several times over."""

import torch
import torch.nn.functional as F
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

LOSS_CHUNK = 2048  # tokens whose logits exist at a time


def add_options(parser):
    parser.add_argument("--compile", action="store_true", help="torch.compile every layer")
    parser.add_argument("--memory-budget", type=float, default=1.0, help="share of what the compiler would keep for backward; the rest is recomputed")
    parser.add_argument("--recompute", type=float, default=0.0, help="share of the layers that are checkpointed")
    parser.add_argument("--loss", default="chunked", choices=["plain", "chunked"], help="transformers' own, or logits of some tokens at a time")
    parser.add_argument("--kernels", default="torch", choices=["torch", "liger"], help="of norms, RoPE and SwiGLU")


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
        return gradient * of_loss, weight_gradient * of_loss, None


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


def config_of(w):
    config = LlamaConfig(**{key: value for key, value in w.config.items() if key != "model_type"})
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
    return Llama(config, w.options.loss)


def prepare_layers(w, model):
    """Checkpoints as many layers as are asked for, evenly spread, and compiles all."""
    layers, share = model.model.layers, w.options.recompute
    torch._functorch.config.activation_memory_budget = w.options.memory_budget
    for i in range(len(layers)):
        if int((i + 1) * share) > int(i * share):
            layers[i] = checkpoint_wrapper(layers[i])
        if w.options.compile:
            layers[i].compile(dynamic=False)


def initialize(w, model, config):
    """Of a model whose memory is new."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0) if parameter.dim() == 1 else parameter.normal_(0, config.initializer_range)
    model.model.rotary_emb = LlamaRotaryEmbedding(config, device=w.device)


def accumulate(model, batches, backward):
    """The gradients of all micro-batches; the mean loss."""
    total = 0.0
    for tokens, targets in batches:
        loss = model(tokens, targets)
        backward(loss / len(batches))
        total += loss.detach() / len(batches)
    return total
