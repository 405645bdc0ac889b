"""Average pooling and what can cross it."""

from __future__ import annotations

import torch

from depthprune.merge.conv import Conv, Refused, blocks, compose


def average(channels: int, kernel: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...], counts_padding: bool = True) -> Conv:
    """Average pooling as a depthwise convolution with taps 1/prod(kernel), in float64.

    Raises:
        Refused: if it pads but does not count the padding (then borders have other divisors).
    """
    if any(padding) and not counts_padding:
        raise Refused("average pooling with count_include_pad=False divides borders by other numbers")
    taps = int(torch.tensor(kernel).prod())
    weight = torch.full((channels, 1, *kernel), 1.0 / taps, dtype=torch.float64)
    ones = (1,) * len(kernel)
    return Conv(weight, weight.new_zeros(channels), stride, tuple((p, p) for p in padding), ones, channels)


def through_global_average(conv: Conv, linear: Conv | None = None) -> Conv:
    """The linear layer that, after a global average pool, replaces a 1x1 convolution before it (and a linear layer behind).

    mean(W x + b) = W mean(x) + b, so the convolution runs once instead of once per position.

    Args:
        conv: 1x1, stride 1, no padding, any groups.
        linear: the layer behind the pool, if it is to be merged too.

    Raises:
        Refused: for any other convolution; a stride or kernel does not commute with the mean.
    """
    if any(k != 1 for k in conv.kernel) or any(s != 1 for s in conv.stride) or any(any(p) for p in conv.padding):
        raise Refused("only a 1x1 convolution with stride 1 and no padding commutes with global average pooling")
    dense = Conv(blocks(conv.weight.flatten(1), conv.groups, 1)[0], conv.bias)
    return dense if linear is None else compose(dense, linear)
