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


def rows_of(shape: Sequence[int], image: bool) -> int:
    """Number of rows with a scale of their own."""
    if image and len(shape) == 4:
        return shape[0] * shape[1] if shape[2] * shape[3] >= 16 else shape[0]
    return math.prod(shape[:-1])


def quantise(x: Tensor, rows: int, bits: int = 8) -> Tensor:
    """Codes and the step and offset of each row, as one uint8 tensor of `quantised_bytes`; `dequantise` knows where is what.

    The error is half a step at most; in float32 on a CPU, where FBGEMM's row-wise kernel does it, up to 1e-8 more.
    """
    matrix = x.detach().reshape(rows, -1)
    if _by_fbgemm(matrix.device, matrix.dtype, bits):
        return torch.ops.quantized.embedding_bag_byte_prepack(matrix)  # type: ignore[no-any-return]
    low, high = torch.aminmax(matrix, dim=1, keepdim=True)
    step = ((high - low) / (2**bits - 1)).clamp_min(torch.finfo(x.dtype).tiny)
    codes = ((matrix - low) / step).round_().to(torch.uint8).view(-1)
    if bits == 4:
        codes = torch.nn.functional.pad(codes, (0, codes.numel() % 2)).view(-1, 2)
        codes = codes[:, 0] | (codes[:, 1] << 4)
    return torch.cat((torch.cat((step, low), 1).view(-1).view(torch.uint8), codes))


def dequantise(packed: Tensor, rows: int, shape: Sequence[int], dtype: torch.dtype, bits: int = 8) -> Tensor:
    """Undo `quantise` of a tensor of `shape` and `dtype`, up to rounding."""
    if _by_fbgemm(packed.device, dtype, bits):
        return torch.ops.quantized.embedding_bag_byte_unpack(packed).view(*shape)  # type: ignore[no-any-return]
    scales, codes = packed.split((2 * rows * dtype.itemsize, packed.numel() - 2 * rows * dtype.itemsize))
    if bits == 4:
        codes = torch.stack((codes & 15, codes >> 4), 1).view(-1)[: math.prod(shape)]
    step, low = scales.view(dtype).view(rows, 2).split(1, 1)
    return codes.view(rows, -1).to(dtype).mul_(step).add_(low).view(*shape)


def quantised_bytes(elements: int, rows: int, itemsize: int, bits: int = 8) -> int:
    """Bytes that `quantise` keeps: `bits` an element, two floats a row."""
    return math.ceil(elements * bits / 8) + 2 * rows * itemsize


def _by_fbgemm(device: torch.device, dtype: torch.dtype, bits: int) -> bool:
    # Some ten times as fast as torch's separate passes.
    return bits == 8 and device.type == "cpu" and dtype == torch.float32


class Quantise(Codec):
    """Keeps `quantise` of the input, with `bits` of 8 or 4; dW from the dequantised input."""

    def __init__(self, bits: int = 8, image: bool = True) -> None:
        self.bits = bits
        self.image = image
        self._shape: tuple[int, ...] = ()
        self._dtype = torch.float32

    def encode(self, x: Tensor) -> Saved:
        """Codes with their scales."""
        self._shape, self._dtype = tuple(x.shape[1:]), x.dtype
        return (quantise(x, rows_of(x.shape, self.image), self.bits),)

    def weight_gradient(self, saved: Saved, grad: Tensor, geometry: Geometry) -> Tensor:
        """Dequantise, then the ordinary dW."""
        (packed,) = saved
        assert packed is not None
        shape = (grad.shape[0], *self._shape)
        x = dequantise(packed, rows_of(shape, self.image), shape, self._dtype, self.bits)
        return geometry.weight_gradient(x.to(grad.dtype), grad)

    def footprint(self, shape: Sequence[int], itemsize: int) -> Footprint:
        """One tensor of `quantised_bytes`."""
        return {(id(self), "codes"): quantised_bytes(math.prod(shape), rows_of(shape, self.image), itemsize, self.bits)}

    def __repr__(self) -> str:
        """Show the bits."""
        return f"Quantise(bits={self.bits})"
