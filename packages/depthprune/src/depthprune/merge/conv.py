"""A convolution as plain tensors, and the composition of two of them.

Dimensions: O output channels, M channels between the two convolutions, I input channels, G groups, K taps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from math import ceil, gcd
from typing import Any, cast

import torch
from edge_shared.errors import InputError
from torch import Tensor, nn
from torch.nn import functional as F


class Refused(InputError):
    """This merge would not compute the same function; the message says why."""


@dataclass(frozen=True, eq=False)
class Conv:
    """Cross-correlation plus bias over any number of spatial axes (0 = a linear layer).

    Attributes:
        weight: (O, I/groups, *kernel).
        bias: (O,).
        stride: one step per axis, in input positions.
        padding: zeros (before, after) per axis; the two may differ.
        dilation: distance between taps per axis.
        groups: how many blocks of channels see nothing of each other.
    """

    weight: Tensor
    bias: Tensor
    stride: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1

    @property
    def kernel(self) -> tuple[int, ...]:
        """Taps per axis."""
        return tuple(self.weight.shape[2:])

    @property
    def axes(self) -> int:
        """Number of spatial axes."""
        return self.weight.ndim - 2

    @property
    def in_channels(self) -> int:
        """Channels that come in."""
        return self.weight.shape[1] * self.groups

    @property
    def out_channels(self) -> int:
        """Channels that go out."""
        return self.weight.shape[0]

    @property
    def reach(self) -> tuple[int, ...]:
        """Input positions that one output sees per axis: d(k-1)+1."""
        return tuple(d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True))

    def size(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Spatial output size for the spatial input size `size`."""
        return tuple((n + sum(p) - r) // s + 1 for n, p, r, s in zip(size, self.padding, self.reach, self.stride, strict=True))

    def macs(self, size: tuple[int, ...]) -> int:
        """Multiply-accumulates of one image whose *input* size is `size`."""
        return self.weight.numel() * int(torch.tensor(self.size(size), dtype=torch.long).prod()) if self.axes else self.weight.numel()

    def __call__(self, x: Tensor) -> Tensor:
        """Apply to x of shape (B, I, *size), or (..., I) without spatial axes."""
        if self.axes == 0:
            return F.linear(x, self.weight, self.bias)
        pads = [n for pair in reversed(self.padding) for n in pair]
        function = (F.conv1d, F.conv2d, F.conv3d)[self.axes - 1]
        return function(F.pad(x, pads), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def from_module(module: nn.Module, dtype: torch.dtype = torch.float64) -> Conv:
    """Read an nn.Conv1d/2d/3d or nn.Linear as plain tensors.

    Raises:
        Refused: for another module, or a padding mode that is not zeros.
    """
    if isinstance(module, nn.Linear):
        weight = module.weight.detach().to(dtype)
        bias = weight.new_zeros(weight.shape[0]) if module.bias is None else module.bias.detach().to(dtype)
        return Conv(weight, bias)
    if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        raise Refused(f"{type(module).__name__} is no convolution or linear layer")
    if module.padding_mode != "zeros":
        raise Refused(f"padding mode {module.padding_mode!r}; only zeros can be merged")
    weight = module.weight.detach().to(dtype)
    bias = weight.new_zeros(weight.shape[0]) if module.bias is None else module.bias.detach().to(dtype)
    dilation = tuple(module.dilation)
    if module.padding == "valid":
        padding: tuple[tuple[int, int], ...] = tuple((0, 0) for _ in dilation)
    elif module.padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, module.kernel_size, strict=True)]
        padding = tuple((t // 2, t - t // 2) for t in total)
    else:
        padding = tuple((p, p) for p in cast("tuple[int, ...]", module.padding))
    return Conv(weight, bias, tuple(module.stride), padding, dilation, module.groups)


def to_module(conv: Conv, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Write a `Conv` as nn.Linear, nn.Conv1d/2d, or nn.Sequential(zero padding, convolution) if its padding is uneven."""
    outputs, inputs = conv.out_channels, conv.in_channels
    if conv.axes == 0:
        module: nn.Module = nn.Linear(inputs, outputs, dtype=dtype)
    else:
        even = all(before == after for before, after in conv.padding)
        kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[conv.axes - 1]
        padding = tuple(p[0] for p in conv.padding) if even else (0,) * conv.axes
        module = kind(inputs, outputs, conv.kernel, conv.stride, padding, conv.dilation, conv.groups, dtype=dtype)  # type: ignore[arg-type]
        if not even:
            pad = (nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)[conv.axes - 1]
            module = nn.Sequential(pad(tuple(n for pair in reversed(conv.padding) for n in pair), 0.0), module)  # type: ignore[arg-type]
    inner = cast("nn.Conv2d", module[-1] if isinstance(module, nn.Sequential) else module)
    assert inner.bias is not None
    inner.weight.data.copy_(conv.weight)
    inner.bias.data.copy_(conv.bias)
    return module


def compose(first: Conv, second: Conv) -> Conv:
    """The one convolution that computes `second` after `first`, except near borders that `second` pads.

    Per axis: taps e = s1*d2*v + d1*w, stride s1*s2, padding p1 + s1*p2, dilation gcd(d1, s1*d2), gcd(g1, g2) groups;
    the output size is always that of the pair. Where `second` pads nothing the result is exact everywhere
    (see `borders.ring` for the rest). Notes on the method: composition of cross-correlations, as in Layer Folding
    (Ben Dror et al. 2021) and DepthShrinker (2022), here for every stride, padding, dilation and group count.

    Raises:
        Refused: if the channels or the number of axes do not fit.
    """
    if first.out_channels != second.in_channels or first.axes != second.axes:
        raise Refused(f"{first.out_channels} channels go into a layer that takes {second.in_channels}")
    steps = tuple(s * d for s, d in zip(first.stride, second.dilation, strict=True))
    dilation = tuple(_dilation(*z) for z in zip(first.dilation, first.kernel, steps, second.kernel, strict=True))
    kernel = tuple(
        (d1 * (k1 - 1) + step * (k2 - 1)) // d + 1
        for d1, k1, step, k2, d in zip(first.dilation, first.kernel, steps, second.kernel, dilation, strict=True)
    )
    groups, weight = gcd(first.groups, second.groups), None
    for taps in product(*map(range, second.kernel)):
        part = _channels(first, _tap(second.weight, taps), second.groups, groups)
        if weight is None:
            weight = part.new_zeros(*part.shape[:2], *kernel)
        window: tuple[Any, ...] = tuple(
            slice(v * step // d, v * step // d + (d1 // d) * (k1 - 1) + 1, max(d1 // d, 1))
            for v, step, d, d1, k1 in zip(taps, steps, dilation, first.dilation, first.kernel, strict=True)
        )
        weight[(..., *window)] += part
    assert weight is not None
    total = second.weight.flatten(2).sum(2) if second.axes else second.weight
    inner = first.bias.reshape(second.groups, -1, 1)
    bias = second.bias + (total.reshape(second.groups, -1, total.shape[1]) @ inner).flatten()
    padding = tuple(
        (p1[0] + s1 * p2[0], p1[1] + s1 * p2[1]) for p1, s1, p2 in zip(first.padding, first.stride, second.padding, strict=True)
    )
    stride = tuple(a * b for a, b in zip(first.stride, second.stride, strict=True))
    return Conv(weight, bias, stride, padding, dilation, groups)


def _tap(weight: Tensor, taps: tuple[Any, ...]) -> Tensor:
    """The matrix (O, I/groups) of one tap."""
    return weight[(..., *taps)]


def _dilation(d1: int, k1: int, step: int, k2: int) -> int:
    """Largest spacing on which every tap of the merged kernel falls."""
    return gcd(d1 if k1 > 1 else 0, step if k2 > 1 else 0) or 1


def _channels(first: Conv, tap_OM: Tensor, groups: int, coarse: int) -> Tensor:
    """Multiply one tap of the second kernel with the whole first kernel over the channels between: (O, I/coarse, *k1)."""
    if tap_OM.shape[1] == 1 and tap_OM.shape[0] == groups:  # depthwise after anything: scale the rows
        return first.weight * tap_OM.reshape(-1, *[1] * (first.weight.ndim - 1))
    if first.weight.shape[1] == 1 and first.out_channels == first.groups:  # anything after depthwise: scale the columns
        rows = first.weight.reshape(groups, tap_OM.shape[1], *first.kernel).repeat_interleave(tap_OM.shape[0] // groups, 0)
        return tap_OM.reshape(*tap_OM.shape, *[1] * first.axes) * rows
    left, right = blocks(tap_OM, groups, coarse), blocks(first.weight, first.groups, coarse)
    return torch.einsum("gom,gmi...->goi...", left, right).flatten(0, 1)


def blocks(weight: Tensor, groups: int, coarse: int) -> Tensor:
    """Write a grouped weight (O, I/groups, ...) as `coarse` dense blocks (coarse, O/coarse, I/coarse, ...), zeros between groups.

    `coarse` must divide `groups`; 1 gives the dense block-diagonal matrix.
    """
    fine, rows, columns = groups // coarse, weight.shape[0] // groups, weight.shape[1]
    dense = weight.new_zeros(coarse, fine, rows, fine, columns, *weight.shape[2:])
    diagonal = torch.arange(fine)
    dense[:, diagonal, :, diagonal] = weight.reshape(coarse, fine, rows, columns, *weight.shape[2:]).transpose(0, 1)
    return dense.reshape(coarse, fine * rows, fine * columns, *weight.shape[2:])


def densify(conv: Conv, groups: int = 1) -> Conv:
    """The same convolution with fewer `groups` (a divisor of its own), zeros filled in."""
    return replace(conv, weight=blocks(conv.weight, conv.groups, groups).flatten(0, 1), groups=groups)


def ring(first: Conv, second: Conv, size: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Outputs per axis (at the front, at the back) where the merged pair may differ from the two steps.

    Outputs t are inside if second reads only real values: s2*t - p2 >= 0 and s2*t - p2 + d2(k2-1) <= H1 - 1.

    Args:
        first: the convolution applied first.
        second: the one after it, whose zero padding causes the difference.
        size: spatial size of the input of `first`.
    """
    middle, outer, result = first.size(size), second.size(first.size(size)), []
    for h, n, s, (before, _), reach in zip(middle, outer, second.stride, second.padding, second.reach, strict=True):
        front = min(n, max(0, ceil(before / s)))
        last = (h - 1 + before - (reach - 1)) // s  # the last output whose window ends inside
        result.append((front, min(n, max(0, n - 1 - last))))
    return tuple(result)


def ring_share(rings: tuple[tuple[int, int], ...], size: tuple[int, ...]) -> float:
    """Share of the outputs (0 to 1) that lie in the ring, for the spatial output size `size`."""
    inside = 1.0
    for (front, back), n in zip(rings, size, strict=True):
        inside *= max(0, n - front - back) / n
    return 1.0 - inside


def quiet(first: Conv, second: Conv) -> bool:
    """Whether values of `first` outside its own output (which `second` replaces by zeros) see only padding.

    Then they are the constant bias of `first`, and the border can be repaired exactly. Holds for 1x1 kernels, and for
    any kernel whose taps that would reach back into the image are zero, whatever the input size.
    """
    for axis, (before, after) in enumerate(second.padding):
        taps, d, s = first.kernel[axis], first.dilation[axis], first.stride[axis]
        p1, q1 = first.padding[axis]
        for w in range(taps):
            # One position outside is the nearest to the image; further ones reach less.
            front = before > 0 and -s - p1 + d * w >= 0
            back = after > 0 and q1 - d * (taps - 1 - w) < 0  # for the input size that leaves most over
            if (front or back) and bool(first.weight.select(axis + 2, w).any()):
                return False
    return True


def exact(first: Conv, second: Conv) -> bool:
    """Whether `compose` is exact on every output for every input: second pads nothing, or pads what would be zero anyway."""
    if not any(any(pair) for pair in second.padding):
        return True
    return quiet(first, second) and not bool(first.bias.any())
