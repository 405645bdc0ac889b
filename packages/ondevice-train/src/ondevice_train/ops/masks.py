"""Activations that save bits instead of the activation.

PyTorch's ReLU keeps its float output (4 bytes an element) although its gradient only asks "was it clipped?". Here the
answer is one bit: ``ceil(n / 8)`` bytes for n elements, with the gradient of torch to the bit. Smooth activations
(Hardswish, SiLU, GELU) keep their derivative rounded to 8 or 4 bits; the rounding error is at most `DERIVATIVE_ERROR`.

Each op saves exactly one flat uint8 tensor (`saved_bytes` gives its size), and nothing when no gradient is asked for.
"""

from __future__ import annotations

import math
import sys
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ondevice_train.ops.kinds import PIECEWISE, SMOOTH, saved_bytes

__all__ = [
    "DERIVATIVE_ERROR",
    "PIECEWISE",
    "SMOOTH",
    "PackedActivation",
    "hardsigmoid",
    "hardtanh",
    "leaky_relu",
    "pack",
    "pack_activations",
    "packed",
    "relu",
    "relu6",
    "saved_bytes",
    "smooth",
    "unpack",
    "unpack_activations",
]

# Bits -> codes to a unit of the derivative, and the code of 0: Hardswish's derivative lies in [-0.5, 1.5], the others' in [-0.13, 1.13].
_WIDE = {8: (126, 63), 4: (6, 3)}
_NARROW = {8: (202, 26), 4: (11, 1)}
_SCALES = {"hardswish": _WIDE, "silu": _NARROW, "gelu": _NARROW}
# Step and offset of the 8-bit codes of the second kind, as bytes.
_GRIDS = {
    kind: torch.tensor([1 / scales[8][0], -scales[8][1] / scales[8][0]]).view(torch.uint8)
    for kind, scales in _SCALES.items()
    if scales is _NARROW
}
_LIMITS = {"relu6": (0.0, 6.0), "hardsigmoid": (-3.0, 3.0)}
_PIECE = 1 << 15  # elements worked on at a time
_UPPER = 1 if sys.byteorder == "little" else 0  # which half of a float32 holds sign, exponent and the first 7 bits
DERIVATIVE_ERROR = {bits: 0.5 / unit for bits, (unit, _) in _WIDE.items()}


def pack(mask: Tensor) -> Tensor:
    """Pack a boolean tensor (any shape) into a flat uint8 tensor of ``ceil(n / 8)``, first element in the lowest bit."""
    flat = mask.reshape(-1)
    if flat.device.type == "cpu":
        return torch.from_numpy(np.packbits(flat.numpy(), bitorder="little"))
    padded = F.pad(flat, (0, -flat.numel() % 8)).view(-1, 8).to(torch.uint8)
    return (padded << torch.arange(8, dtype=torch.uint8, device=flat.device)).sum(1, dtype=torch.uint8)


def _between(x: Tensor, low: float, high: float) -> Tensor:
    """``low < x < high``, a boolean tensor; by numpy on a CPU, whose comparisons are several times faster than torch's."""
    values: Any = x.numpy() if x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) else x
    inside = values > low
    if high != math.inf:
        inside &= values < high
    return inside if isinstance(inside, Tensor) else torch.from_numpy(inside)


def unpack(packed: Tensor, elements: int) -> Tensor:
    """Undo `pack`: a flat uint8 tensor of `elements` zeros and ones."""
    if packed.device.type == "cpu":
        return torch.from_numpy(np.unpackbits(packed.numpy(), count=elements, bitorder="little"))
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((packed[:, None] >> shifts) & 1).reshape(-1)[:elements]


def _in_memory_order(x: Tensor) -> tuple[Tensor, tuple[int, ...] | None]:
    """View x with its dimensions ordered as they lie in memory, so that channels_last tensors need no copy; None: as they are."""
    if x.is_contiguous():
        return x, None
    strides = x.stride()
    order = tuple(sorted(range(x.ndim), key=lambda dim: (-strides[dim], dim)))
    return x.permute(order), order


def _restore_order(x: Tensor, order: tuple[int, ...] | None) -> Tensor:
    return x if order is None else x.permute(tuple(np.argsort(order).tolist()))


Kept = tuple[torch.Size, tuple[int, ...] | None]
"""Shape in memory order, and that order if it is another one than that of the dimensions."""


def _keep_mask(x: Tensor, low: float, high: float) -> tuple[Tensor, Kept]:
    view, order = _in_memory_order(x.detach())
    return pack(_between(view, low, high)), (view.shape, order)


def _piecewise(x: Tensor, kind: str, low: float, high: float, slope: float, inplace: bool) -> Tensor:
    if kind == "leaky_relu":
        return F.leaky_relu_(x, slope) if inplace else F.leaky_relu(x, slope)
    if kind == "hardsigmoid":
        return F.hardsigmoid(x, inplace=inplace)
    if high == math.inf:
        return x.clamp_min_(low) if inplace else x.clamp_min(low)
    return x.clamp_(low, high) if inplace else x.clamp(low, high)


# Row b holds the eight bits of byte b as numbers: looking them up is faster than unpacking and converting them.
_BITS: Any = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
_ROWS = {torch.float32: _BITS.astype(np.float32), torch.float64: _BITS.astype(np.float64)}


def _mask_gradient(grad: Tensor, packed: Tensor, kept: Kept, kind: str, slope: float) -> Tensor:
    shape, order = kept
    count = math.prod(shape)
    rows = _ROWS.get(grad.dtype) if grad.device.type == "cpu" else None
    if rows is None:
        inside = unpack(packed, count).to(grad.dtype)
    else:
        inside = torch.from_numpy(rows.take(packed.numpy(), axis=0).reshape(-1)[:count])
    inside = _restore_order(inside.view(shape), order)
    if kind == "leaky_relu":
        return torch.where(inside.bool(), grad, slope * grad)
    dx = inside.mul_(grad)
    return dx.div_(6) if kind == "hardsigmoid" else dx


class _Piecewise(torch.autograd.Function):
    """y = clamp-like(x); dx = g where low < x < high, else slope_outside * g (times `slope` inside)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kind: str, low: float, high: float, slope: float, inplace: bool) -> Tensor:
        if ctx.needs_input_grad[0]:
            packed, ctx.kept = _keep_mask(x, low, high)
            ctx.save_for_backward(packed)
            ctx.kind, ctx.slope = kind, slope
        if inplace:
            ctx.mark_dirty(x)
        return _piecewise(x, kind, low, high, slope, inplace)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        (packed,) = ctx.saved_tensors
        return _mask_gradient(grad, packed, ctx.kept, ctx.kind, ctx.slope), None, None, None, None, None


def relu(x: Tensor, inplace: bool = False) -> Tensor:
    """``max(x, 0)``, saving one bit an element; gradient as torch (0 at x = 0)."""
    return _Piecewise.apply(x, "relu", 0.0, math.inf, 1.0, inplace)


def relu6(x: Tensor, inplace: bool = False) -> Tensor:
    """``min(max(x, 0), 6)``, saving one bit an element; gradient as torch (0 at x = 0 and x = 6)."""
    return _Piecewise.apply(x, "relu6", 0.0, 6.0, 1.0, inplace)


def hardtanh(x: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor:
    """``min(max(x, min_val), max_val)``, saving one bit an element; gradient as torch (0 at both ends)."""
    return _Piecewise.apply(x, "hardtanh", float(min_val), float(max_val), 1.0, inplace)


def leaky_relu(x: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """``x`` where positive, else ``negative_slope * x``; saves one bit an element."""
    return _Piecewise.apply(x, "leaky_relu", 0.0, math.inf, float(negative_slope), inplace)


def hardsigmoid(x: Tensor, inplace: bool = False) -> Tensor:
    """``relu6(x + 3) / 6``, saving one bit an element."""
    return _Piecewise.apply(x, "hardsigmoid", -3.0, 3.0, 1.0, inplace)


def _derivative(kind: str, x: Tensor, grad: Tensor) -> Tensor:
    """``grad * f'(x)`` in one pass: torch's own gradient."""
    if kind == "hardswish":
        return torch.ops.aten.hardswish_backward(grad, x)  # type: ignore[no-any-return]
    if kind == "silu":
        return torch.ops.aten.silu_backward(grad, x)  # type: ignore[no-any-return]
    return torch.ops.aten.gelu_backward(grad, x)  # type: ignore[no-any-return]


@cache
def _code_table(kind: str, bits: int) -> Any:
    """Codes of the derivative by the upper half of a float32 (65536 of uint8), each from the middle of the floats that share it.

    Those span 2^-7 of x at most; half of that changes the derivative by 0.0013 at most, less than `_NARROW` is finer than `_WIDE`.
    """
    unit, zero = _SCALES[kind][bits]
    middle = (np.arange(1 << 16, dtype=np.uint32) << 16 | 1 << 15).view(np.float32)
    x = torch.from_numpy(middle).double().nan_to_num(0.0)
    return _derivative(kind, x, torch.full_like(x, unit)).round_().add_(zero).to(torch.uint8).numpy()


def _codes(view: Tensor, kind: str, bits: int) -> Tensor:
    """Derivatives at the elements of a contiguous tensor as flat uint8, one to a byte."""
    if _SCALES[kind] is _NARROW and view.device.type == "cpu" and view.dtype == torch.float32:
        # A look-up: the exponentials take four times as long.
        upper: Any = view.reshape(-1).numpy().view(np.uint16)[_UPPER::2]
        codes, table = np.empty(len(upper), np.uint8), _code_table(kind, bits)
        for start in range(0, len(upper), _PIECE):
            # No index is out of range; only "raise", the default, would keep numpy from writing straight into `out`.
            table.take(upper[start : start + _PIECE], out=codes[start : start + _PIECE], mode="wrap")
        return torch.from_numpy(codes)
    unit, zero = _SCALES[kind][bits]
    code = torch.empty(view.numel(), dtype=torch.uint8, device=view.device)
    # Piece by piece: the passes then stay in the cache. By way of int32: torch turns float into uint8 slowly. Codes lie
    # in their range by themselves; the half makes the cut of the integer a rounding.
    scale = view.new_full((min(_PIECE, view.numel()),), unit)
    for part, out in zip(view.reshape(-1).split(_PIECE), code.split(_PIECE), strict=True):
        out.copy_(_derivative(kind, part, scale[: part.numel()]).add_(zero + 0.5).to(torch.int32))
    return code


def _keep_derivative(x: Tensor, kind: str, bits: int) -> tuple[Tensor, Kept]:
    view, order = _in_memory_order(x.detach())
    code = _codes(view, kind, bits)
    if bits == 4:
        code = F.pad(code, (0, code.numel() % 2)).view(-1, 2)
        code = code[:, 0] | (code[:, 1] << 4)
    return code, (view.shape, order)


def _smooth(x: Tensor, kind: str, inplace: bool) -> Tensor:
    if kind == "gelu":
        return x.copy_(F.gelu(x)) if inplace else F.gelu(x)
    return (F.hardswish if kind == "hardswish" else F.silu)(x, inplace=inplace)


def _derivative_gradient(grad: Tensor, code: Tensor, kept: Kept, kind: str, bits: int) -> Tensor:
    shape, order = kept
    unit, zero = _SCALES[kind][bits]
    if bits == 4:
        code = torch.stack((code & 15, code >> 4), 1).view(-1)[: math.prod(shape)]
    view = grad if order is None else grad.permute(order)
    if kind in _GRIDS and bits == 8 and grad.device.type == "cpu" and grad.dtype == torch.float32:
        # FBGEMM reads step and offset behind the codes: one pass instead of three.
        row = torch.empty(1, len(code) + 8, dtype=torch.uint8)
        row[0, :-8], row[0, -8:] = code, _GRIDS[kind]
        factor = torch.ops.quantized.embedding_bag_byte_unpack(row)
        return _restore_order(factor.view(shape).mul_(view), order)
    dx = torch.empty(shape, dtype=grad.dtype, device=grad.device)
    pieces = zip(code.split(_PIECE), view.reshape(-1).split(_PIECE), dx.view(-1).split(_PIECE), strict=True)
    for part, inside, out in pieces:
        out.copy_(part).sub_(zero).mul_(1 / unit).mul_(inside)
    return _restore_order(dx, order)


class _Smooth(torch.autograd.Function):
    """y = f(x); saves the derivative f'(x) rounded to ``bits`` bits (see `_SCALES`)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kind: str, bits: int, inplace: bool) -> Tensor:
        if ctx.needs_input_grad[0]:
            code, ctx.kept = _keep_derivative(x, kind, bits)
            ctx.save_for_backward(code)
            ctx.kind, ctx.bits = kind, bits
        if inplace:
            ctx.mark_dirty(x)
        return _smooth(x, kind, inplace)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        (code,) = ctx.saved_tensors
        return _derivative_gradient(grad, code, ctx.kept, ctx.kind, ctx.bits), None, None, None


def smooth(x: Tensor, kind: str, bits: int = 8, inplace: bool = False) -> Tensor:
    """Hardswish, SiLU or (exact) GELU that saves only its derivative, rounded to `bits` (8 or 4) bits an element.

    The output is torch's; the gradient differs by at most ``DERIVATIVE_ERROR[bits] * |grad|``. Where the derivative
    is 0 or 1 (Hardswish outside [-3, 3]) it is exact.
    """
    return _Smooth.apply(x, kind, bits, inplace)


class PackedActivation(nn.Module):
    """Module form of the ops above; made from a torch activation by `packed`, keeps it in `original`.

    Attributes:
        kind: one of `PIECEWISE` or `SMOOTH`.
        bits: bits an element for smooth kinds.
        limits: between which a piecewise kind has its inner slope.
        slope: outer slope of leaky_relu.
        absorbed: the convolution before applies it (`Selective.absorb_activation`).
        original: the torch module that it stands for (used to go back).
    """

    def __init__(self, original: nn.Module, kind: str, bits: int = 8) -> None:
        super().__init__()
        self.kind = kind
        self.bits = bits
        self.absorbed = False
        self.inplace = bool(getattr(original, "inplace", False))
        self.limits: tuple[float, float] = (
            (float(original.min_val), float(original.max_val)) if kind == "hardtanh" else _LIMITS.get(kind, (0.0, math.inf))  # type: ignore[arg-type]
        )
        self.slope = float(getattr(original, "negative_slope", 1.0))
        # A tuple hides the module from registration: it has no parameters, and traces must not see it twice.
        self._original: tuple[Any] = (original,)

    @property
    def original(self) -> Any:
        """The torch activation that this module stands for."""
        return self._original[0]

    def forward(self, x: Tensor) -> Tensor:
        """Apply the activation; saves `saved_bytes(kind, x.numel(), bits)` bytes if x needs a gradient."""
        if self.absorbed:
            return x
        if not x.requires_grad:
            return self.original(x)
        inplace = self.inplace and not x.is_leaf
        if self.kind in PIECEWISE:
            return _Piecewise.apply(x, self.kind, *self.limits, self.slope, inplace)
        return smooth(x, self.kind, self.bits, inplace)

    def keep(self, x: Tensor) -> tuple[Tensor, Kept]:
        """What the gradient at x needs: one flat tensor, and the shape that it stands for."""
        return _keep_mask(x, *self.limits) if self.kind in PIECEWISE else _keep_derivative(x, self.kind, self.bits)

    def apply_(self, x: Tensor) -> Tensor:
        """Apply the activation in place, outside of autograd."""
        return _piecewise(x, self.kind, *self.limits, self.slope, True) if self.kind in PIECEWISE else _smooth(x, self.kind, True)

    def gradient(self, grad: Tensor, code: Tensor, kept: Kept) -> Tensor:
        """dx from what `keep` gave."""
        if self.kind in PIECEWISE:
            return _mask_gradient(grad, code, kept, self.kind, self.slope)
        return _derivative_gradient(grad, code, kept, self.kind, self.bits)

    def extra_repr(self) -> str:
        """Show the kind and the bits."""
        return f"{self.kind}, bits={1 if self.kind in PIECEWISE else self.bits}"


_KINDS: dict[type[nn.Module], str] = {
    nn.ReLU6: "relu6",
    nn.ReLU: "relu",
    nn.Hardtanh: "hardtanh",
    nn.LeakyReLU: "leaky_relu",
    nn.Hardsigmoid: "hardsigmoid",
    nn.Hardswish: "hardswish",
    nn.SiLU: "silu",
    nn.GELU: "gelu",
}


def packed(module: nn.Module, bits: int = 8) -> PackedActivation | None:
    """The packed form of a torch activation module, or None where there is none (tanh-GELU, Softmax, ...)."""
    kind = _KINDS.get(type(module))
    if type(module).__name__ == "GELU" and type(module).__module__.startswith("timm."):
        kind = "gelu"  # timm wraps torch's
    if kind is None or (kind == "gelu" and getattr(module, "approximate", "none") != "none"):
        return None
    return PackedActivation(module, kind, bits)


def pack_activations(model: nn.Module, bits: int = 8, smooth: bool = True) -> list[str]:
    """Replace every activation module of `model`, in place, by its packed form; returns their names.

    Args:
        model: any module; functional calls (``F.relu``) cannot be seen and stay as they are.
        bits: 8 or 4, for smooth activations.
        smooth: False leaves Hardswish, SiLU and GELU alone, so that every gradient stays exact.
    """
    names = []
    for name, module in list(model.named_modules(remove_duplicate=False)):
        replacement = packed(module, bits) if name else None
        if replacement is not None and (smooth or replacement.kind in PIECEWISE):
            model.set_submodule(name, replacement)
            names.append(name)
    return names


def unpack_activations(model: nn.Module) -> None:
    """Undo `pack_activations` in place."""
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, PackedActivation):
            model.set_submodule(name, module.original)
