"""Attention and feed-forward for training, with their gradients written out: few passes over the big matrices, in the fastest number format that the CPU has.

Nearly all of GraphIDS's training time goes into matrices that are 2,048 wide (feed-forward) or 512 x 512 per head (attention). Here
- each of them has one place in memory that is used again for the next flows, so that it stays in the cache and the system clears no new pages;
- the sum of a softmax, and the gradient of a bias, are one more column of a product that is computed anyway;
- thin products have the thin side as rows, which the CPU's matrix kernels like better;
- what only looks at signs, or sets to zero, works on the numbers' bits: no conversion to float32 and back;
- on a CPU with bfloat16 arithmetic they are bfloat16; all between them (weights, residual sums, norms, gradients of the weights) stays float32.
Scoring never goes through here.

Shapes: N rows, D width, M hidden width, B windows, L flows per window, H heads, d = D / H, Z = B x H.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from edge_shared.errors import InputError
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

PRECISIONS = ("auto", "float32", "bfloat16")

SAFE = 2.0**100
"""Sums of a softmax up to this, and down to its inverse, are taken as they are; beyond, each row's largest logit is subtracted first, as usual."""

PART = 4
"""Attention matrices that go through all of their steps together, before the next: measured fastest of 2, 4, 8 and all."""

ROWS = 1024
"""Flows that go through a feed-forward layer together, likewise: measured fastest of 256, 512, 1,024 and 4,096 in float32."""

LANES = 16
"""Columns of a narrow factor are filled up to a multiple of this: float32 products with 16 are measured 2.6 times as fast as with 13."""

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


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


class Workspace:
    """The big matrices of one layer, or of several that need them one after the other, and the number format they have."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._held: dict[str, Tensor] = {}
        self._bias: tuple[Tensor, Tensor] | None = None

    def take(self, name: str, *shape: int) -> Tensor:
        """A matrix with anything in it; the next call with this name may give the same one."""
        held = self._held.get(name)
        if held is None or held.shape != shape:
            held = self._held[name] = torch.empty(shape, dtype=self.dtype)
        return held

    def open_bits(self, bias_LL: Tensor) -> Tensor:
        """All bits where the bias is 0, none where it is -inf; kept for as long as the same bias comes."""
        if self._bias is None or self._bias[0] is not bias_LL:
            self._bias = (bias_LL, (bias_LL == 0).to(_BITS[self.dtype.itemsize]).neg_())
        return self._bias[1]


@contextmanager
def reduced(model: nn.Module, precision: str) -> Iterator[None]:
    """Let the layers of `model` that can train in these kernels do so meanwhile, with bfloat16 or float32 matrices."""
    layers = [module for module in model.modules() if hasattr(module, "own")]
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    shared = Workspace(dtype)
    for layer in layers:
        layer.own, layer.shared = Workspace(dtype), shared  # type: ignore[assignment]
    try:
        yield
    finally:
        for layer in layers:
            layer.own = layer.shared = None  # type: ignore[assignment]


def feed_forward(x: Tensor, w1_MD: Tensor, b1_M: Tensor, w2_DM: Tensor, b2_D: Tensor, own: Workspace, shared: Workspace) -> Tensor:
    """W2 ReLU(W1 x + b1) + b2 of (..., D), computed in the workspaces' format, returned in the type of `x`.

    `own` must not be used again before the gradient has been taken; `shared` may.
    """
    result: Tensor = _FeedForward.apply(x, w1_MD, b1_M, w2_DM, b2_D, own, shared)  # type: ignore[no-untyped-call]
    return result


def attention(
    x_BLD: Tensor, memory_BLD: Tensor | None, in_weight: Tensor, in_bias: Tensor, out_weight: Tensor, out_bias: Tensor, bias_LL: Tensor | None,
    heads: int, own: Workspace, shared: Workspace,
) -> Tensor:  # fmt: skip
    """Multi-head attention with its projections, from `x` to `memory` (None: to itself); formats and workspaces as in `feed_forward`.

    The weights are those of `torch.nn.MultiheadAttention`; `bias_LL` is added to the logits: 0 or -inf.
    """
    result: Tensor = _Attention.apply(  # type: ignore[no-untyped-call]
        x_BLD, memory_BLD, in_weight, in_bias, out_weight, out_bias, bias_LL, heads, own, shared
    )
    return result


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w1_MD: Tensor, b1_M: Tensor, w2_DM: Tensor, b2_D: Tensor, own: Workspace, shared: Workspace
    ) -> Tensor:  # fmt: skip
        dtype, width = own.dtype, x.shape[-1]
        # A column of ones: the bias is one more input.
        x_NC = _with_column(x.reshape(-1, width), 1.0, dtype)
        w1_MC, w2 = _with_column(w1_MD, b1_M[:, None], dtype), w2_DM.to(dtype)
        h_NM, y_ND = own.take("hidden", len(x_NC), len(w1_MC)), x_NC.new_empty(len(x_NC), width)
        for rows in _parts(len(x_NC), ROWS):
            h = torch.mm(x_NC[rows], w1_MC.t(), out=h_NM[rows])
            _bits(h).clamp_(min=0)
            torch.mm(h, w2.t(), out=y_ND[rows])
        ctx.held, ctx.shared = (x_NC, h_NM, w1_MC[:, :width], w2), shared
        return y_ND.to(x.dtype).add_(b2_D).view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_NC, h_NM, w1, w2 = ctx.held
        wide, width = grad.dtype, grad.shape[-1]
        dy_ND = grad.reshape(-1, width)
        db2 = dy_ND.sum(0)
        dy_ND = dy_ND.to(h_NM.dtype)
        dx_ND = torch.empty_like(dy_ND)
        dw1_CM, dw2_DM = (torch.zeros(count, len(w1), dtype=wide) for count in (x_NC.shape[1], width))
        for rows in _parts(len(x_NC), ROWS):
            h, dy = h_NM[rows], dy_ND[rows]
            dw2_DM += dy.t() @ h
            dh = torch.mm(dy, w2, out=ctx.shared.take("hidden", *h.shape))
            torch.ops.aten.threshold_backward.grad_input(_bits(dh), _bits(h), 0, grad_input=_bits(dh))
            dw1_CM += x_NC[rows].t() @ dh
            torch.mm(dh, w1, out=dx_ND[rows])
        return dx_ND.to(wide).view(grad.shape), dw1_CM[:width].t(), dw1_CM[width], dw2_DM, db2, None, None


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_BLD: Tensor, memory_BLD: Tensor | None, in_weight: Tensor, in_bias: Tensor, out_weight: Tensor, out_bias: Tensor,
        bias_LL: Tensor | None, heads: int, own: Workspace, shared: Workspace,
    ) -> Tensor:  # fmt: skip
        (windows, length, width), dtype = x_BLD.shape, own.dtype
        w_in, b_in, w_out = in_weight.to(dtype), in_bias.to(dtype), out_weight.to(dtype)
        x_ND = x_BLD.reshape(-1, width).to(dtype)
        if memory_BLD is None:
            m_ND = x_ND
            q, k, v = _split(torch.addmm(b_in, x_ND, w_in.t()), windows, heads, 3)
        else:
            m_ND = memory_BLD.reshape(-1, width).to(dtype)
            (q,) = _split(torch.addmm(b_in[:width], x_ND, w_in[:width].t()), windows, heads, 1)
            k, v = _split(torch.addmm(b_in[width:], m_ND, w_in[width:].t()), windows, heads, 2)
        # Powers of 2 are cheaper than of e.
        q = q * ((width // heads) ** -0.5 / math.log(2))
        # Each window's mean is taken off the values and put back later: the weights sum to 1, and the rounding is of what is left.
        centre_Z1d = v.mean(1, keepdim=True)
        v1 = _with_column(v - centre_Z1d, 1.0, dtype, LANES)
        k_ZdL, each = k.transpose(1, 2).contiguous(), width // heads
        p_ZLL = own.take("attention", len(q), length, k.shape[1])
        mixed = q.new_empty(*q.shape[:2], v1.shape[-1])
        for part in _parts(len(q), PART):
            p = torch.bmm(q[part], k_ZdL[part], out=p_ZLL[part]).exp2_()
            if bias_LL is not None:
                _bits(p).bitwise_and_(shared.open_bits(bias_LL))
            torch.bmm(p, v1[part], out=mixed[part])
        least, most = mixed[..., each].aminmax()
        if not 1 / SAFE < least <= most < SAFE:
            torch.bmm(q, k_ZdL, out=p_ZLL).mul_(math.log(2))
            p_ZLL.copy_(torch.softmax(p_ZLL if bias_LL is None else p_ZLL.add_(bias_LL.to(dtype)), -1))
            mixed = p_ZLL @ v1
        # p is not normalised: every row still has to be divided by its sum, the column after the values.
        sum_ZL1 = mixed[..., each : each + 1]
        o_ZLd = mixed[..., :each] / sum_ZL1
        o_ND = _merge((o_ZLd + centre_Z1d)[None], windows)
        ctx.held = (x_ND, None if memory_BLD is None else m_ND, w_in, w_out, q, k, v1, p_ZLL, o_ZLd, sum_ZL1, o_ND)
        ctx.windows, ctx.shared = windows, shared
        return (o_ND @ w_out.t()).to(x_BLD.dtype).add_(out_bias).view(x_BLD.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, m_ND, w_in, w_out, q, k, v1, p_ZLL, o_ZLd, sum_ZL1, o_ND = ctx.held
        dtype, wide, width, heads = p_ZLL.dtype, grad.dtype, grad.shape[-1], len(q) // ctx.windows
        g_ND = grad.reshape(-1, width)
        db_out = g_ND.sum(0)
        g_ND = g_ND.to(dtype)
        dw_out = (g_ND.t() @ o_ND).to(wide)
        (do,) = _split(g_ND @ w_out, ctx.windows, heads, 1)
        do /= sum_ZL1
        # The gradient of a softmax, p (dp - sum p dp): the sum is do . o, and one more column subtracts it inside the product.
        do1 = _with_column(do, -(do * o_ZLd).sum(-1, keepdim=True, dtype=wide), dtype, LANES)
        q_ZdL, do_ZdL, v1_ZdL = (part.transpose(1, 2).contiguous() for part in (q, do, v1))
        dq, dk, dv = torch.empty_like(q), torch.empty_like(q_ZdL), torch.empty_like(do_ZdL)
        for part in _parts(len(q), PART):
            p = p_ZLL[part]
            torch.bmm(do_ZdL[part], p, out=dv[part])
            ds = torch.bmm(do1[part], v1_ZdL[part], out=ctx.shared.take("attention", *p.shape)).mul_(p)
            torch.bmm(ds, k[part], out=dq[part])
            torch.bmm(q_ZdL[part], ds, out=dk[part])
        dq *= (width // heads) ** -0.5
        dk, dv = dk.mul_(math.log(2)).transpose(1, 2), dv.transpose(1, 2)
        if m_ND is None:
            d_ND = _merge(torch.stack([dq, dk, dv]), ctx.windows)
            dw_in, db_in = (d_ND.t() @ x_ND).to(wide), d_ND.sum(0, dtype=wide)
            return (d_ND @ w_in).to(wide).view(grad.shape), None, dw_in, db_in, dw_out, db_out, None, None, None, None
        dq_ND, dkv_ND = _merge(dq[None], ctx.windows), _merge(torch.stack([dk, dv]), ctx.windows)
        dw_in = torch.cat([dq_ND.t() @ x_ND, dkv_ND.t() @ m_ND]).to(wide)
        db_in = torch.cat([dq_ND.sum(0, dtype=wide), dkv_ND.sum(0, dtype=wide)])
        dx, dm = ((part @ weight).to(wide).view(grad.shape) for part, weight in ((dq_ND, w_in[:width]), (dkv_ND, w_in[width:])))
        return dx, dm, dw_in, db_in, dw_out, db_out, None, None, None, None


def _parts(count: int, size: int) -> Iterator[slice]:
    """Slices of `size`; the last one may be shorter."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def _bits(x: Tensor) -> Tensor:
    """The same memory as integers; their signs are those of the numbers."""
    return x.view(_BITS[x.dtype.itemsize])


def _with_column(x: Tensor, column: Tensor | float, dtype: torch.dtype, multiple: int = 1) -> Tensor:
    """`x` with one more column, in `dtype`; then zeros up to a multiple of so many columns."""
    width = x.shape[-1]
    wider = torch.empty((*x.shape[:-1], -(-(width + 1) // multiple) * multiple), dtype=dtype)
    wider[..., :width] = x
    wider[..., width : width + 1] = column
    wider[..., width + 1 :] = 0
    return wider


def _split(x_NC: Tensor, windows: int, heads: int, parts: int) -> Tensor:
    """(N, parts x D) to contiguous (parts, Z, L, d)."""
    return x_NC.view(windows, -1, parts, heads, x_NC.shape[1] // (parts * heads)).permute(2, 0, 3, 1, 4).contiguous().flatten(1, 2)


def _merge(x_PZLd: Tensor, windows: int) -> Tensor:
    """The inverse of `_split`."""
    return x_PZLd.unflatten(1, (windows, -1)).permute(1, 3, 0, 2, 4).flatten(0, 1).flatten(1)
