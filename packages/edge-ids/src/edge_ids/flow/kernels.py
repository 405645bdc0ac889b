"""Attention and feed-forward for training, with their gradients written out: few passes over the big matrices, in the fastest number format that the CPU has.

Nearly all of GraphIDS's training time goes into matrices that are 2,048 wide (feed-forward) or 512 x 512 per head (attention). Here
- each of them has one place in memory that is used again for the next flows, so that it stays in the cache and the system clears no new pages;
- the sum of a softmax, and the gradient of a bias, are one more row or column of a product that is computed anyway;
- thin products have the thin side as rows, which the CPU's matrix kernels like better;
- what only looks at signs, or sets to zero, works on the numbers' bits: no conversion to float32 and back;
- on a CPU with bfloat16 arithmetic they are bfloat16; all between them (weights, residual sums, norms, gradients of the weights) stays float32.
Scoring never goes through here.

Shapes: N rows, D width, M hidden width, B windows, L flows per window, H heads, d = D / H, e = d + 1, E = D + H, C rows of a projection.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from edge_shared.errors import InputError
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

PRECISIONS = ("auto", "float32", "bfloat16")

SAFE = 2.0**100
"""Sums of a softmax up to this, and down to its inverse, are taken as they are; beyond, each row's largest logit is subtracted first, as usual."""

ROWS = 1024
"""Flows that go through a feed-forward layer together: measured fastest of 256, 512, 1,024 and 4,096 in float32."""

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
    """Features are rows and flows are columns: each head of a window is then one contiguous matrix, and always the thin side of its products."""

    @staticmethod
    def forward(
        ctx: Any, x_BLD: Tensor, memory_BLD: Tensor | None, in_weight: Tensor, in_bias: Tensor, out_weight: Tensor, out_bias: Tensor,
        bias_LL: Tensor | None, heads: int, own: Workspace, shared: Workspace,
    ) -> Tensor:  # fmt: skip
        (windows, length, width), dtype = x_BLD.shape, own.dtype
        each = width // heads
        x_BLD = x_BLD.to(dtype)
        m_BLD = x_BLD if memory_BLD is None else memory_BLD.to(dtype)
        # Powers of 2 are cheaper than of e: queries and keys share the factor for that and for the division by sqrt(d).
        scale, v_rows = (each**-0.5 / math.log(2)) ** 0.5, 2 * width
        w_CD = torch.cat([in_weight[:v_rows] * scale, _with_row(in_weight[v_rows:], heads, 0.0)]).to(dtype)
        # The row that each head's values have more is all ones.
        b_C1 = torch.cat([in_bias[:v_rows, None] * scale, _with_row(in_bias[v_rows:, None], heads, 1.0)]).to(dtype)
        if memory_BLD is None:
            q, k, v1 = _heads(torch.baddbmm(b_C1, _each(w_CD, windows), x_BLD.mT), heads, width, width, width + heads)
        else:
            (q,) = _heads(torch.baddbmm(b_C1[:width], _each(w_CD[:width], windows), x_BLD.mT), heads, width)
            k, v1 = _heads(torch.baddbmm(b_C1[width:], _each(w_CD[width:], windows), m_BLD.mT), heads, width, width + heads)
        # Each window's mean is taken off the values and put back later: the weights sum to 1, and the rounding is of what is left.
        centre_BHd1 = v1[:, :, :each].mean(-1, keepdim=True)
        v1[:, :, :each] -= centre_BHd1
        p_BHLL = own.take("attention", windows, heads, length, m_BLD.shape[1])
        o1_BHeL = torch.empty(windows, heads, each + 1, length, dtype=dtype)
        for w, p in enumerate(p_BHLL):
            torch.bmm(q[w].mT, k[w], out=p).exp2_()
            if bias_LL is not None:
                _bits(p).bitwise_and_(shared.open_bits(bias_LL))
            torch.bmm(v1[w], p.mT, out=o1_BHeL[w])
        least, most = o1_BHeL[:, :, each].aminmax()
        if not 1 / SAFE < least <= most < SAFE:
            torch.matmul(q.mT, k, out=p_BHLL).mul_(math.log(2))
            p_BHLL.copy_(torch.softmax(p_BHLL if bias_LL is None else p_BHLL.add_(bias_LL.to(dtype)), -1))
            o1_BHeL = v1 @ p_BHLL.mT
        # p is not normalised: its rows still have to be divided by their sums, which the row of ones has become.
        sum_BH1L = o1_BHeL[:, :, each:].clone()
        o1_BHeL /= sum_BH1L
        mixed_BHeL = o1_BHeL.clone()
        mixed_BHeL[:, :, :each] += centre_BHd1
        mixed_BEL, w_ED = mixed_BHeL.flatten(1, 2), _with_row(out_weight.T, heads, 0.0).to(dtype)
        ctx.held = (x_BLD, m_BLD, w_CD, w_ED, q, k, v1, p_BHLL, o1_BHeL, sum_BH1L, mixed_BEL)
        ctx.itself, ctx.scale, ctx.shared = memory_BLD is None, scale, shared
        return torch.bmm(mixed_BEL.mT, _each(w_ED, windows)).to(out_bias.dtype).add_(out_bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_BLD, m_BLD, w_CD, w_ED, q, k, v1, p_BHLL, o1_BHeL, sum_BH1L, mixed_BEL = ctx.held
        (windows, heads, each, length), dtype, wide = q.shape, q.dtype, grad.dtype
        width, keys = heads * each, k.shape[-1]
        g_BLD = grad.to(dtype)
        dw_out = _without_row(torch.bmm(mixed_BEL, g_BLD).sum(0, dtype=wide), heads).T
        (do1,) = _heads(torch.bmm(_each(w_ED, windows), g_BLD.mT), heads, width + heads)
        do1 /= sum_BH1L
        # The gradient of a softmax, p (dp - sum p dp): the sum is do . o, and one more row, so far 0, subtracts it inside the product.
        do1[:, :, each] = -(do1 * o1_BHeL).sum(2, dtype=wide)
        if ctx.itself:
            d_BCL = torch.empty(windows, len(w_CD), length, dtype=dtype)
            dq, dk, dv1 = _heads(d_BCL, heads, width, width, width + heads)
        else:
            dq_BDL, dkv_BCL = (torch.empty(windows, *shape, dtype=dtype) for shape in ((width, length), (len(w_CD) - width, keys)))
            (dq,), (dk, dv1) = _heads(dq_BDL, heads, width), _heads(dkv_BCL, heads, width, width + heads)
        for w, p in enumerate(p_BHLL):
            torch.bmm(do1[w], p, out=dv1[w])
            ds = torch.bmm(do1[w].mT, v1[w], out=ctx.shared.take("attention", *p.shape)).mul_(p)
            torch.bmm(k[w], ds.mT, out=dq[w])
            torch.bmm(q[w], ds, out=dk[w])
        # The logits are log(2) times the product of the scaled queries and keys.
        w_CD = torch.cat([w_CD[: 2 * width] * math.log(2), w_CD[2 * width :]])
        if ctx.itself:
            (dx, dw_CD, db_C), dm = _project_backward(d_BCL, w_CD, x_BLD, wide), None
        else:
            dx, dw_q, db_q = _project_backward(dq_BDL, w_CD[:width], x_BLD, wide)
            dm, dw_kv, db_kv = _project_backward(dkv_BCL, w_CD[width:], m_BLD, wide)
            dw_CD, db_C = torch.cat([dw_q, dw_kv]), torch.cat([db_q, db_kv])
        factor = ctx.scale * math.log(2)
        dw_in, db_in = (torch.cat([part[: 2 * width] * factor, _without_row(part[2 * width :], heads)]) for part in (dw_CD, db_C))
        return dx, dm, dw_in, db_in, dw_out, grad.sum((0, 1)), None, None, None, None


def _project_backward(d_BCL: Tensor, w_CD: Tensor, x_BLD: Tensor, wide: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of W x + b by x (B, L, D), W and b, in `wide`."""
    dx_BLD = torch.bmm(d_BCL.mT, _each(w_CD, len(d_BCL)))
    return dx_BLD.to(wide), torch.bmm(d_BCL, x_BLD).sum(0, dtype=wide), d_BCL.sum((0, 2), dtype=wide)


def _each(weight: Tensor, windows: int) -> Tensor:
    """The same matrix for every window, as `torch.bmm` wants it."""
    return weight.expand(windows, *weight.shape)


def _heads(x_BCL: Tensor, heads: int, *rows: int) -> tuple[Tensor, ...]:
    """Views of so many rows each, (B, H, rows / H, L)."""
    return tuple(part.unflatten(1, (heads, -1)) for part in x_BCL.split(rows, 1))


def _with_row(x_CK: Tensor, heads: int, value: float) -> Tensor:
    """One more row after those of each head."""
    return F.pad(x_CK.unflatten(0, (heads, -1)), (0, 0, 0, 1), value=value).flatten(0, 1)


def _without_row(x: Tensor, heads: int) -> Tensor:
    """The inverse of `_with_row`; of vectors, too."""
    return x.unflatten(0, (heads, -1))[:, :-1].flatten(0, 1)


def _parts(count: int, size: int) -> Iterator[slice]:
    """Slices of `size`; the last one may be shorter."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def _bits(x: Tensor) -> Tensor:
    """The same memory as integers; their signs are those of the numbers."""
    return x.view(_BITS[x.dtype.itemsize])


def _with_column(x: Tensor, column: Tensor | float, dtype: torch.dtype) -> Tensor:
    """`x` with one more column, in `dtype`."""
    width = x.shape[-1]
    wider = torch.empty((*x.shape[:-1], width + 1), dtype=dtype)
    wider[..., :width] = x
    wider[..., width:] = column
    return wider
