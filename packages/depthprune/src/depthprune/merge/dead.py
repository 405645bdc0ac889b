"""Branches that no longer depend on their input."""

from __future__ import annotations

import torch
from torch import Tensor

from depthprune.merge.conv import Conv


def is_dead(conv: Conv) -> bool:
    """Whether every weight is zero, so that the output is the bias everywhere."""
    return not bool(conv.weight.any())


def constant(convs: list[Conv], size: tuple[int, ...]) -> Tensor:
    """Output (O, *size) of a chain whose first convolution is dead, for the input size `size`.

    It need not be the same at every position: zero padding of later convolutions makes a border.
    """
    x = torch.zeros(1, convs[0].in_channels, *size, dtype=convs[0].weight.dtype)
    for conv in convs:
        x = conv(x)
    return x[0]


def shrink(map_O: Tensor) -> Tensor:
    """One value per channel (O, 1, ...) if the map is the same everywhere, else the map itself."""
    first = map_O.flatten(1)[:, :1].reshape(-1, *[1] * (map_O.ndim - 1))
    return first.clone() if bool((map_O == first).all()) else map_O
