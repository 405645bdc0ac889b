"""Self-attention that keeps its input in 8 bits and makes queries, keys and values again in the backward pass.

What `recompute` does for attention of any kind, written out for torch's own nn.MultiheadAttention: the output projection need not run
again, and heads are strided views where torch copies them. B batch, N tokens, E features, H heads, D = E / H.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ondevice_train.compression.quantise import dequantise, quantise


def _heads(x_BNE: Tensor, weight: Tensor, bias: Tensor | None, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, (B, H, N, D) each, views of one product."""
    batch, tokens, features = x_BNE.shape
    q, k, v = F.linear(x_BNE, weight, bias).view(batch, tokens, 3, heads, features // heads).permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def _attend(x_BNE: Tensor, weight: Tensor, bias: Tensor | None, out_weight: Tensor, out_bias: Tensor | None, heads: int) -> Tensor:
    """What torch's module computes, to the bit, without its copies of queries, keys and values."""
    mixed = F.scaled_dot_product_attention(*_heads(x_BNE, weight, bias, heads))
    return F.linear(mixed.transpose(1, 2).reshape(x_BNE.shape), out_weight, out_bias)


class _SelfAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_BNE: Tensor, weight: Tensor, bias: Tensor | None, out_weight: Tensor, out_bias: Tensor | None, heads: int
    ) -> Tensor:
        ctx.save_for_backward(quantise(x_BNE, x_BNE.shape[0] * x_BNE.shape[1]), weight, bias, out_weight)
        ctx.shape, ctx.heads = x_BNE.shape, heads
        return _attend(x_BNE, weight, bias, out_weight, out_bias, heads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BNE: Tensor) -> Any:  # type: ignore[override]
        packed, weight, bias, out_weight = ctx.saved_tensors
        batch, tokens, features = ctx.shape
        x = dequantise(packed, batch * tokens, (batch * tokens, features), grad_BNE.dtype)
        grad = grad_BNE.reshape(-1, features)
        q, k, v = (part.requires_grad_() for part in _heads(x.view(ctx.shape), weight, bias, ctx.heads))
        with torch.enable_grad():
            mixed = F.scaled_dot_product_attention(q, k, v)
        inner = (grad @ out_weight).view(batch, tokens, ctx.heads, -1).transpose(1, 2)
        parts = torch.autograd.grad(mixed, (q, k, v), inner)
        wants = ctx.needs_input_grad
        dout = grad.t() @ mixed.detach().transpose(1, 2).reshape(-1, features) if wants[3] else None
        dout_bias = grad.sum(0) if wants[4] else None
        joined = torch.stack(parts, 2).permute(0, 3, 2, 1, 4).reshape(-1, 3 * features)
        dx = (joined @ weight).view(ctx.shape) if wants[0] else None
        return dx, joined.t() @ x if wants[1] else None, joined.sum(0) if wants[2] else None, dout, dout_bias, None


def self_attends(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call of `module` is plain self-attention of an nn.MultiheadAttention: one (B, N, E) tensor, no mask, no weights asked for."""
    if type(module) is not nn.MultiheadAttention or len(args) != 3 or any(value is not args[0] for value in args):
        return False
    plain = module.batch_first and module.in_proj_weight is not None and module.bias_k is None and not module.add_zero_attn
    same = args[0].ndim == 3 and args[0].dtype == module.out_proj.weight.dtype and not torch.is_autocast_enabled(args[0].device.type)
    asked = {name for name, value in kwargs.items() if value is not None and value is not False}
    return plain and same and not asked and kwargs.get("need_weights") is False


def self_attention(module: nn.MultiheadAttention, x_BNE: Tensor, keeps: bool) -> Tensor:
    """The output of `module` for a call that `self_attends`; `keeps` `recompute_bytes` of x for a backward pass, or nothing."""
    out = module.out_proj
    attend = _SelfAttention.apply if keeps else _attend
    return attend(x_BNE, module.in_proj_weight, module.in_proj_bias, out.weight, out.bias, module.num_heads)
