"""What to do about zero padding between two merged convolutions: five named modes.

The padding of the second convolution replaces values by zeros that the merged one computes. Dimensions: see `conv`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from depthprune.merge.conv import Conv, Refused, compose, exact, quiet, ring, ring_share
from depthprune.merge.parallel import add, shifted

Mode = Literal["auto", "exact", "front-pad", "bias-pad", "const-pad", "bias-map", "approx"]
MODES: tuple[str, ...] = get_args(Mode)


@dataclass(frozen=True, eq=False)
class Merged:
    """A merged chain: ``conv(x - shift) + map``.

    Attributes:
        conv: the one convolution.
        mode: how borders are treated: exact, front-pad, bias-pad, const-pad, bias-map or approx.
        shift: (I,) subtracted from the input (const-pad), or None.
        map: (O, *size) added to the output (bias-map; binds the input size), or None.
        ring_share: share of outputs, 0 to 1, that differ from the two steps as they stand.
        residual: largest |W1 c + b1| that const-pad leaves, in units of the intermediate values.
    """

    conv: Conv
    mode: str
    shift: Tensor | None = None
    map: Tensor | None = None
    ring_share: float = 0.0
    residual: float = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        """Apply to x of shape (B, I, *size)."""
        if self.shift is not None:
            x = x - self.shift.reshape(-1, *[1] * self.conv.axes)
        y = self.conv(x)
        return y if self.map is None else y + self.map


def front_pad(convs: list[Conv]) -> list[Conv]:
    """Move all padding of a chain to its first convolution; sizes stay, the function near borders changes.

    Done when a layer is linearised and *before* fine-tuning; merging afterwards is exact (as in Kim et al., ICML 2023).
    """
    padding = list(convs[0].padding)
    stride = list(convs[0].stride)
    for conv in convs[1:]:
        for axis, (before, after) in enumerate(conv.padding):
            padding[axis] = (padding[axis][0] + stride[axis] * before, padding[axis][1] + stride[axis] * after)
        stride = [a * b for a, b in zip(stride, conv.stride, strict=True)]
    none = tuple((0, 0) for _ in padding)
    return [replace(convs[0], padding=tuple(padding)), *[replace(conv, padding=none) for conv in convs[1:]]]


def bias_pad(first: Conv, second: Conv, x: Tensor) -> Tensor:
    """Apply first, pad its output with its own bias instead of zeros, apply second: what bias-pad fine-tunes and merges exactly.

    Args:
        first: a convolution whose values outside its output would be its bias (1x1; see `conv.quiet`).
        second: any convolution.
        x: (B, I, *size).

    Raises:
        Refused: if values outside `first` would depend on the image.
    """
    _need_quiet(first, second, "bias-pad")
    y = first(x)
    bias = first.bias.reshape(-1, *[1] * first.axes)
    pads = [n for pair in reversed(second.padding) for n in pair]
    padded = torch.nn.functional.pad(y - bias, pads) + bias
    return replace(second, padding=tuple((0, 0) for _ in second.padding))(padded)


def pad_constant(first: Conv) -> tuple[Tensor, float]:
    """Solve W1 c = -b1 for the input constant c that `first` (kernel 1) maps to zero.

    Returns:
        c of shape (I,), least squares of least norm, and the largest remaining |W1 c + b1|.
    """
    weight = first.weight.flatten(2).sum(2)
    rows = weight.shape[0] // first.groups
    W_GOI = weight.reshape(first.groups, rows, weight.shape[1])
    b_GO = first.bias.reshape(first.groups, rows, 1)
    c = -(torch.linalg.pinv(W_GOI) @ b_GO)
    return c.flatten(), float((W_GOI @ c + b_GO).abs().max())


def bias_map(first: Conv, second: Conv, size: tuple[int, ...]) -> Tensor:
    """What second makes of first's bias alone, zero padding included: (O, *output size) for the input size `size`."""
    middle = first.size(size)
    return second(first.bias.reshape(1, -1, *[1] * first.axes).expand(1, -1, *middle))[0]


def compact(map_O: Tensor, rings: tuple[tuple[int, int], ...]) -> Tensor:
    """Keep one inner row per axis of a bias map: (O, *size) to (O, front + 1 + back, ...); `expand` undoes it.

    Maps that are smaller than that are returned whole.
    """
    for axis, (front, back) in enumerate(rings, start=1):
        n = map_O.shape[axis]
        if n > front + 1 + back:
            keep = [*range(front + 1), *range(n - back, n)]
            map_O = map_O.index_select(axis, torch.tensor(keep))
    return map_O


def expand(values: Tensor, rings: tuple[tuple[int, int], ...], size: tuple[int, ...]) -> Tensor:
    """Rebuild a bias map from `compact` values for another output `size`, whose input size has the same remainder by the strides."""
    for axis, ((front, back), n) in enumerate(zip(rings, size, strict=True), start=1):
        if values.shape[axis] != n:
            keep = [*range(front), *[front] * (n - front - back), *range(front + 1, front + 1 + back)]
            values = values.index_select(axis, torch.tensor(keep))
    return values


def merge(first: Conv, second: Conv, mode: Mode = "auto", size: tuple[int, ...] | None = None, tolerance: float = 1e-9) -> Merged:
    """Merge two convolutions, exactly or not at all (unless `approx` is asked for).

    Args:
        first: applied first.
        second: applied to its output.
        mode: `auto` takes the first exact way: plain, const-pad, bias-map. `exact` takes only the plain one. `front-pad` and
            `bias-pad` say that the pair already runs with moved padding (see `front_pad`, `bias_pad`). `approx`
            accepts a wrong ring at the border.
        size: spatial input size; needed by bias-map, and for `ring_share`.
        tolerance: largest |W1 c + b1| relative to the largest |b1| that const-pad may leave.

    Raises:
        Refused: if the mode cannot be exact here; the message says why.
    """
    if exact(first, second):
        return Merged(compose(first, second), "exact")
    share = 0.0
    if size is not None:
        share = ring_share(ring(first, second, size), second.size(first.size(size)))
    # Composing is the expensive part: refuse before it.
    if mode == "exact":
        raise Refused(f"the second convolution pads by {second.padding} a tensor that is not zero there")
    if mode not in ("approx", "front-pad"):
        _need_quiet(first, second, mode)
    merged = compose(first, second)
    if mode in ("approx", "front-pad"):  # the same kernel; front-pad says that the pair was moved before fine-tuning
        return Merged(merged, mode, ring_share=share)
    if mode == "bias-pad":
        return Merged(merged, "bias-pad", ring_share=share)
    if mode in ("const-pad", "auto") and not any(any(pair) for pair in first.padding):
        constant, residual = pad_constant(first)
        if residual <= tolerance * float(first.bias.abs().max()):
            total = merged.weight.flatten(2).sum(2)
            moved_bias = (total.reshape(merged.groups, -1, total.shape[1]) @ constant.reshape(merged.groups, -1, 1)).flatten()
            return Merged(replace(merged, bias=merged.bias + moved_bias), "const-pad", shift=constant, residual=residual)
        if mode == "const-pad":
            raise Refused(f"no input constant is mapped to zero by the first convolution (best leaves {residual:.3g})")
    elif mode == "const-pad":
        raise Refused("the first convolution pads with zeros itself, so its padding cannot be another constant")
    if size is None:
        raise Refused("bias-map needs the input size")
    return Merged(replace(merged, bias=torch.zeros_like(merged.bias)), "bias-map", map=bias_map(first, second, size))


def extend(merged: Merged, conv: Conv, mode: Mode = "auto", size: tuple[int, ...] | None = None) -> Merged:
    """Merge one more convolution after a chain that is merged already; arguments and errors as `merge`."""
    if merged.shift is None and merged.map is None:
        step = merge(merged.conv, conv, mode, size)
        kind = step.mode if step.mode != "exact" else merged.mode
        return replace(step, mode=kind, ring_share=max(step.ring_share, merged.ring_share))
    linear = replace(merged.conv, bias=torch.zeros_like(merged.conv.bias)) if merged.map is not None else merged.conv
    step = merge(linear, conv, "approx" if mode == "approx" else "exact", size)
    if merged.map is None:
        return replace(step, mode=merged.mode, shift=merged.shift, residual=merged.residual)
    inner = merged.map + merged.conv.bias.reshape(-1, *[1] * conv.axes)
    moved = conv(inner[None])[0]
    return Merged(replace(step.conv, bias=torch.zeros_like(step.conv.bias)), merged.mode, map=moved, ring_share=step.ring_share)


def join(first: Merged, second: Merged, mode: Mode = "auto", size: tuple[int, ...] | None = None) -> Merged:
    """Merge two results of merging, the second reading the first; arguments and errors as `merge`."""
    if second.shift is not None:
        if first.map is not None:
            first = replace(first, map=first.map - second.shift.reshape(-1, *[1] * first.conv.axes))
        else:
            first = replace(first, conv=replace(first.conv, bias=first.conv.bias - second.shift))
    result = extend(first, second.conv, mode, size)
    if second.map is not None:
        result = replace(result, map=second.map if result.map is None else result.map + second.map)
    kind = result.mode if result.mode != "exact" else second.mode
    return replace(result, mode=kind, ring_share=max(result.ring_share, second.ring_share), residual=max(result.residual, second.residual))


def merge_chain(convs: list[Conv], mode: Mode = "auto", size: tuple[int, ...] | None = None) -> Merged:
    """Merge a chain of convolutions into one, first to last; arguments and errors as `merge`."""
    merged = Merged(convs[0], "exact")
    if mode == "front-pad":
        for conv in front_pad(convs)[1:]:
            merged = replace(merged, conv=compose(merged.conv, conv))
        changed = any(any(any(p) for p in conv.padding) for conv in convs[1:])
        padded = replace(merged.conv, padding=front_pad(convs)[0].padding)
        return Merged(padded, "front-pad" if changed else "exact")
    for conv in convs[1:]:
        merged = extend(merged, conv, mode, size)
    return merged


def add_branches(left: Merged, right: Merged) -> Merged:
    """Sum of two merged branches that read the same tensor.

    Raises:
        Refused: if their shapes do not fit, or both need an input shift of their own.
    """
    if left.shift is not None and right.shift is not None:
        raise Refused("both branches need an input constant of their own")
    shift = left.shift if right.shift is None else right.shift
    a, b = left.conv, right.conv
    if shift is not None:
        a = shifted(a, shift) if left.shift is None else a
        b = shifted(b, shift) if right.shift is None else b
    maps = [m.map for m in (left, right) if m.map is not None]
    return Merged(
        add(a, b),
        left.mode if left.mode != "exact" else right.mode,
        shift,
        None if not maps else maps[0] if len(maps) == 1 else maps[0] + maps[1],
        max(left.ring_share, right.ring_share),
        max(left.residual, right.residual),
    )


def _need_quiet(first: Conv, second: Conv, mode: str) -> None:
    if not quiet(first, second):
        raise Refused(
            f"padding between them hides values that depend on the image (kernel {'x'.join(map(str, first.kernel))}); "
            f"{'' if mode == 'auto' else mode + ' is not exact here, '}only front-pad before fine-tuning, or approx, merges them"
        )
