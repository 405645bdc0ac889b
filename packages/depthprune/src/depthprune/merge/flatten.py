"""A convolution whose map is flattened into a linear layer: for a fixed input size both are one matrix."""

from __future__ import annotations

import torch

from depthprune.merge.conv import Conv, Refused


def through_flatten(conv: Conv, linear: Conv, size: tuple[int, ...]) -> Conv:
    """The linear layer on the flattened *input* of `conv` that equals `linear` on its flattened output; exact, padding included.

    Each row of the new matrix is the gradient of one output of `linear` by the input map, which for linear maps is the map itself.

    Args:
        conv: any convolution.
        linear: reads conv's output, flattened channel by channel.
        size: spatial input size of `conv`.

    Raises:
        Refused: if `linear` does not take as many features as the map has.
    """
    middle = conv.size(size)
    features = conv.out_channels * int(torch.tensor(middle).prod())
    if linear.in_channels != features:
        raise Refused(f"the flattened map has {features} features, the linear layer takes {linear.in_channels}")
    x = torch.zeros(linear.out_channels, conv.in_channels, *size, dtype=conv.weight.dtype, requires_grad=True)
    plain = Conv(conv.weight, torch.zeros_like(conv.bias), conv.stride, conv.padding, conv.dilation, conv.groups)
    with torch.enable_grad():
        (plain(x).flatten(1) * linear.weight).sum().backward()
    assert x.grad is not None
    bias_map = conv.bias.reshape(-1, *[1] * conv.axes).expand(-1, *middle).flatten()
    return Conv(x.grad.flatten(1), linear.bias + linear.weight @ bias_map)
