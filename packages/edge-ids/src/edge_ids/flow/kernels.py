"""Attention and feed-forward for training, with their gradients written out: the big matrices in the fastest number format that the CPU has.

Half of GraphIDS's training time goes into matrices that are 2,048 wide (feed-forward) or 512 x 512 per head (attention). Autograd makes several copies of each; here they
are made once and overwritten. On a CPU with bfloat16 arithmetic they are bfloat16, everything around them (weights, residual sums, norms, gradients of the weights)
stays float32. Scoring never goes through here.

Shapes: N rows, D width, M hidden width, B windows, L flows per window, H heads, d = D / H, Z = B x H.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from edge_shared.errors import InputError
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

PRECISIONS = ("auto", "float32", "bfloat16")


def resolve(precision: str) -> str:
    """``float32`` or ``bfloat16``; ``auto`` takes bfloat16 where the CPU computes in it (AVX-512 BF16, AMX).

    Raises:
        InputError: for an unknown name.
    """
    if precision not in PRECISIONS:
        raise InputError(f"--precision {precision}: choose one of {', '.join(PRECISIONS)}")
    if precision != "auto":
        return precision
    return "bfloat16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "float32"


@contextmanager
def reduced(model: nn.Module, precision: str) -> Iterator[None]:
    """Let the layers of `model` that can train with bfloat16 matrices inside do so meanwhile; ``float32`` leaves them to torch's own kernels."""
    layers = [module for module in model.modules() if hasattr(module, "dtype")]
    for layer in layers:
        layer.dtype = torch.bfloat16 if precision == "bfloat16" else None  # type: ignore[assignment]
    try:
        yield
    finally:
        for layer in layers:
            layer.dtype = None  # type: ignore[assignment]


def feed_forward(x: Tensor, w1_MD: Tensor, b1_M: Tensor, w2_DM: Tensor, b2_D: Tensor, dtype: torch.dtype) -> Tensor:
    """W2 ReLU(W1 x + b1) + b2 of (..., D), computed in `dtype`, returned in the type of `x`."""
    result: Tensor = _FeedForward.apply(x, w1_MD, b1_M, w2_DM, b2_D, dtype)  # type: ignore[no-untyped-call]
    return result


def attention(q_BLD: Tensor, k_BLD: Tensor, v_BLD: Tensor, bias_LL: Tensor | None, heads: int, dtype: torch.dtype) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v of each head, (B, L, D), computed in `dtype`, returned in the type of `q_BLD`."""
    result: Tensor = _Attention.apply(q_BLD, k_BLD, v_BLD, bias_LL, heads, dtype)  # type: ignore[no-untyped-call]
    return result


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w1_MD: Tensor, b1_M: Tensor, w2_DM: Tensor, b2_D: Tensor, dtype: torch.dtype) -> Tensor:
        x_ND = x.reshape(-1, x.shape[-1]).to(dtype)
        w1, w2 = w1_MD.to(dtype), w2_DM.to(dtype)
        h_NM = torch.addmm(b1_M.to(dtype), x_ND, w1.t()).clamp_(min=0)
        ctx.save_for_backward(x_ND, h_NM, w1, w2)
        return (h_NM @ w2.t()).to(x.dtype).add_(b2_D).reshape(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, h_NM, w1, w2 = ctx.saved_tensors
        wide = grad.dtype
        dy_ND = grad.reshape(-1, grad.shape[-1])
        db2 = dy_ND.sum(0)
        dy_ND = dy_ND.to(h_NM.dtype)
        dw2 = dy_ND.t() @ h_NM
        dh_NM = dy_ND @ w2
        torch.ops.aten.threshold_backward.grad_input(dh_NM, h_NM, 0, grad_input=dh_NM)
        dw1 = dh_NM.t() @ x_ND
        # A product with ones: `sum` would first make a wide copy of the matrix.
        db1 = (dh_NM.new_ones(1, len(dh_NM)) @ dh_NM)[0]
        return (dh_NM @ w1).to(wide).reshape(grad.shape), dw1.to(wide), db1.to(wide), dw2.to(wide), db2, None


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_BLD: Tensor, k_BLD: Tensor, v_BLD: Tensor, bias_LL: Tensor | None, heads: int, dtype: torch.dtype) -> Tensor:
        scale = (q_BLD.shape[-1] // heads) ** -0.5
        q, k, v = (_split(part, heads, dtype) for part in (q_BLD * scale, k_BLD, v_BLD))
        if bias_LL is None:
            logits_ZLL = q @ k.transpose(1, 2)
        else:
            logits_ZLL = torch.baddbmm(bias_LL.to(dtype), q, k.transpose(1, 2))
        p_ZLL = torch.softmax(logits_ZLL, -1)
        ctx.save_for_backward(q, k, v, p_ZLL)
        ctx.heads, ctx.scale = heads, scale
        return _merge(p_ZLL @ v, heads, q_BLD.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, p_ZLL = ctx.saved_tensors
        do = _split(grad, ctx.heads, p_ZLL.dtype)
        dv = p_ZLL.transpose(1, 2) @ do
        ds_ZLL = torch._softmax_backward_data(do @ v.transpose(1, 2), p_ZLL, -1, p_ZLL.dtype)
        dq, dk = ds_ZLL @ k, ds_ZLL.transpose(1, 2) @ q
        wide = grad.dtype
        return _merge(dq, ctx.heads, wide).mul_(ctx.scale), _merge(dk, ctx.heads, wide), _merge(dv, ctx.heads, wide), None, None, None


def _split(x_BLD: Tensor, heads: int, dtype: torch.dtype) -> Tensor:
    """(B, L, D) to contiguous (Z, L, d)."""
    return x_BLD.unflatten(-1, (heads, -1)).transpose(1, 2).flatten(0, 1).to(dtype).contiguous()


def _merge(x_ZLd: Tensor, heads: int, dtype: torch.dtype) -> Tensor:
    """The inverse of `_split`."""
    return x_ZLd.unflatten(0, (-1, heads)).transpose(1, 2).flatten(2).to(dtype)
