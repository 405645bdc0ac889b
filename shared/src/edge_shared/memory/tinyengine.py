"""SRAM of TinyEngine (int8, in-place depthwise): model C plus its two scratch buffers.

Reproduces the published figures of mcunet-in0..in4 on an STM32H743 to the printed digit.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from edge_shared.memory.inference import peak
from edge_shared.network import Layer, Network, deployed


@dataclass(frozen=True)
class TinyEngineSram:
    """Bytes: activations (model C), column buffer, kernel buffer, and their sum."""

    activations: int
    column_buffer: int
    kernel_buffer: int

    @property
    def total(self) -> int:
        """All three together."""
        return self.activations + self.column_buffer + self.kernel_buffer


def _column_buffer(layer: Layer) -> int:
    if layer.is_depthwise:
        (h, w), (ph, pw) = layer.in_shape[2:], layer.padding
        return 2 * (h + 2 * ph) * (w + 2 * pw)
    return prod(layer.kernel) * layer.in_channels * 2 * 2  # two columns of int16


def _kernel_buffer(layer: Layer) -> int:
    return 0 if layer.is_depthwise or prod(layer.kernel) == 1 else 2 * layer.weights  # an int16 copy


def sram(network: Network) -> TinyEngineSram:
    """SRAM bytes of the int8 network."""
    convs = deployed(network).convs()
    return TinyEngineSram(
        activations=peak(network, "C", bits=8).bytes,
        column_buffer=max(map(_column_buffer, convs), default=0),
        kernel_buffer=max(map(_kernel_buffer, convs), default=0),
    )
