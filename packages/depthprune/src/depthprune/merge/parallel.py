"""Sum of linear branches: identity skips, 1x1 skips, any two convolutions that read the same tensor."""

from __future__ import annotations

from dataclasses import replace
from math import gcd
from typing import Any

import torch

from depthprune.merge.conv import Conv, Refused, densify


def identity(like: Conv) -> Conv:
    """The convolution with one tap that returns its input, with the channels, axes and type of `like`; depthwise."""
    channels, axes = like.in_channels, like.axes
    weight = like.weight.new_ones(channels, 1, *[1] * axes)
    ones = (1,) * axes
    if axes == 0:
        return Conv(torch.eye(channels, dtype=like.weight.dtype), like.weight.new_zeros(channels))
    return Conv(weight, like.weight.new_zeros(channels), ones, ((0, 0),) * axes, ones, channels)


def add(left: Conv, right: Conv) -> Conv:
    """The convolution that computes left(x) + right(x), exact on every output.

    Both kernels are laid into one window with equal offsets from the output position; an identity becomes a Dirac tap at
    the padding, a 1x1 skip its matrix there.

    Raises:
        Refused: if channels, strides or output sizes differ.
    """
    if (left.in_channels, left.out_channels, left.axes) != (right.in_channels, right.out_channels, right.axes):
        raise Refused("the branches have different channels")
    if left.stride != right.stride:
        raise Refused(f"the branches have strides {left.stride} and {right.stride}")
    groups = gcd(left.groups, right.groups)
    dilation, kernel, padding = [], [], []
    for a in range(left.axes):
        (p, P), (q, Q) = left.padding[a], right.padding[a]
        grown = p + P - (left.reach[a] - 1)
        if grown != q + Q - (right.reach[a] - 1):
            raise Refused("the branches give different sizes")
        spacing = gcd(gcd(left.dilation[a] if left.kernel[a] > 1 else 0, right.dilation[a] if right.kernel[a] > 1 else 0), abs(p - q))
        first = max(p, q)
        last = max(left.reach[a] - 1 - p, right.reach[a] - 1 - q)
        dilation.append(spacing or 1)
        kernel.append((first + last) // (spacing or 1) + 1)
        padding.append((first, grown + last))
    total = left.weight.new_zeros(left.out_channels, left.in_channels // groups, *kernel)
    for conv in (densify(left, groups), densify(right, groups)):
        window: tuple[Any, ...] = tuple(
            slice((padding[a][0] - conv.padding[a][0]) // dilation[a], None, max(conv.dilation[a] // dilation[a], 1))
            for a in range(conv.axes)
        )
        taps: tuple[Any, ...] = tuple(slice(k) for k in conv.kernel)
        total[(..., *window)][(..., *taps)] += conv.weight
    return Conv(total, left.bias + right.bias, left.stride, tuple(padding), tuple(dilation), groups)


def shifted(conv: Conv, shift: torch.Tensor) -> Conv:
    """The convolution that computes conv(x) from x - shift; only without padding.

    Raises:
        Refused: if it pads, because the padding would have to be shifted too.
    """
    if any(any(pair) for pair in conv.padding):
        raise Refused("a padded skip cannot read a shifted input")
    total = conv.weight.flatten(2).sum(2) if conv.axes else conv.weight
    inner = (total.reshape(conv.groups, -1, total.shape[1]) @ shift.reshape(conv.groups, -1, 1)).flatten()
    return replace(conv, bias=conv.bias + inner)
