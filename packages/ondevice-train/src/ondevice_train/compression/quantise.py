"""Keep a layer's input in 8 or 4 bits: the plain alternative to low rank, and what the planner calls "quantise".

Uniform min-max codes per row; a row is one channel plane of one sample (one whole sample where planes are smaller than
16 pixels), or one token. Rounding to nearest, so the error of an element is at most half a step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ondevice_train.compression._codec import Codec, Footprint, Saved
from ondevice_train.compression._geometry import Geometry

_PIECE = 1 << 15  # elements worked on at a time


def rows_of(shape: Sequence[int], image: bool) -> int:
    """Number of rows with a scale of their own."""
    if image and len(shape) == 4:
        return shape[0] * shape[1] if shape[2] * shape[3] >= 16 else shape[0]
    return math.prod(shape[:-1])


def quantise(x: Tensor, rows: int, bits: int = 8) -> tuple[Tensor, Tensor]:
    """Codes, flat uint8 (two to a byte at 4 bits), and the offset and step of each row, (rows, 2)."""
    matrix = x.detach().reshape(rows, -1)
    # Two passes: on a CPU torch's aminmax along rows takes several times as long as both.
    low, high = matrix.amin(1, keepdim=True), matrix.amax(1, keepdim=True)
    step = ((high - low) / (2**bits - 1)).clamp_min(torch.finfo(x.dtype).tiny)
    codes = torch.empty(matrix.shape, dtype=torch.uint8, device=x.device)
    # Some rows at a time: the passes then stay in the cache. By way of int32: torch turns float into uint8 slowly.
    some = max(1, _PIECE // matrix.shape[1])
    for part, offset, unit, out in zip(matrix.split(some), low.split(some), step.split(some), codes.split(some), strict=True):
        out.copy_(torch.sub(part, offset).div_(unit).round_().to(torch.int32))
    codes = codes.view(-1)
    if bits == 4:
        codes = torch.nn.functional.pad(codes, (0, codes.numel() % 2)).view(-1, 2)
        codes = codes[:, 0] | (codes[:, 1] << 4)
    return codes, torch.cat((low, step), 1)


def dequantise(codes: Tensor, scales: Tensor, shape: Sequence[int], bits: int = 8) -> Tensor:
    """Undo `quantise` up to rounding."""
    if bits == 4:
        codes = torch.stack((codes & 15, codes >> 4), 1).view(-1)[: math.prod(shape)]
    codes = codes.view(scales.shape[0], -1)
    matrix = torch.empty(codes.shape, dtype=scales.dtype, device=scales.device)
    some = max(1, _PIECE // codes.shape[1])
    for part, scale, out in zip(codes.split(some), scales.split(some), matrix.split(some), strict=True):
        out.copy_(part).mul_(scale[:, 1:]).add_(scale[:, :1])
    return matrix.view(*shape)


class Quantise(Codec):
    """Keeps codes of `bits` (8 or 4) and two floats a row; dW from the dequantised input."""

    def __init__(self, bits: int = 8, image: bool = True) -> None:
        self.bits = bits
        self.image = image
        self._shape: tuple[int, ...] = ()

    def encode(self, x: Tensor) -> Saved:
        """Codes and scales."""
        self._shape = tuple(x.shape[1:])
        return quantise(x, rows_of(x.shape, self.image), self.bits)

    def weight_gradient(self, saved: Saved, grad: Tensor, geometry: Geometry) -> Tensor:
        """Dequantise, then the ordinary dW."""
        codes, scales = saved
        assert codes is not None
        assert scales is not None
        return geometry.weight_gradient(dequantise(codes, scales, (grad.shape[0], *self._shape), self.bits).to(grad.dtype), grad)

    def footprint(self, shape: Sequence[int], itemsize: int) -> Footprint:
        """``bits`` an element and two floats a row."""
        elements = math.prod(shape)
        return {(id(self), "codes"): math.ceil(elements * self.bits / 8), (id(self), "scales"): 2 * rows_of(shape, self.image) * itemsize}

    def __repr__(self) -> str:
        """Show the bits."""
        return f"Quantise(bits={self.bits})"
