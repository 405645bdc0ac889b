"""Multiply-adds of a training step under a plan, in two conventions.

``"true"`` counts what our code does: groups-aware, dX included, every projection, contraction and rebuild. ``"paper"`` is the
formula of the ASI paper and its code: depthwise counted as dense, forward at the input's resolution, dX left out, overhead
Σ max(d, n/d)² min(d, n/d) for HOSVD and Σ (2 n K + K³) for ASI, the core for free. Print both; only the first is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

from ondevice_train.compression._contract import Order, cheapest, conv_macs, linear_macs
from ondevice_train.compression._geometry import ConvGeometry, Geometry
from ondevice_train.compression._tucker import projection_macs
from ondevice_train.compression.plans import LayerChoice

Convention = Literal["true", "paper"]


@dataclass(frozen=True)
class Macs:
    """Of one layer in one step: forward, dX, keeping the input (overhead), dW."""

    forward: int
    input_gradient: int
    overhead: int
    weight_gradient: int

    @property
    def total(self) -> int:
        """All four."""
        return self.forward + self.input_gradient + self.overhead + self.weight_gradient


def vanilla_macs(shape: tuple[int, ...], out: tuple[int, ...], geometry: Geometry, convention: Convention) -> Macs:
    """A plain layer."""
    if isinstance(geometry, ConvGeometry):
        taps = prod(geometry.kernel)
        if convention == "paper":
            pairs = taps * shape[1] * out[1] * shape[0]
            return Macs(pairs * shape[2] * shape[3], 0, 0, pairs * out[2] * out[3])
        macs = taps * (shape[1] // geometry.groups) * prod(out)
    else:
        macs = prod(shape) * out[-1]
    return Macs(macs, 0 if convention == "paper" else macs, 0, macs)


def layer_macs(choice: LayerChoice, method: str, out: tuple[int, ...], geometry: Geometry, convention: Convention) -> Macs:
    """A layer under its choice; `out` is the shape of its output."""
    shape = choice.shape
    plain = vanilla_macs(shape, out, geometry, convention)
    if choice.choice == "freeze":
        return Macs(plain.forward, plain.input_gradient, 0, 0)
    if choice.ranks is None or len(choice.ranks) != len(shape):
        return plain
    ranks = tuple(min(rank, size) for rank, size in zip(choice.ranks, shape, strict=True))
    n = prod(shape)
    if convention == "paper":
        overhead = sum(
            max(d, n // d) ** 2 * min(d, n // d) if method == "hosvd" else 2 * n * k + k**3 for d, k in zip(shape, ranks, strict=True)
        )
        return Macs(plain.forward, 0, overhead, _paper_backward(shape, ranks, out, geometry))
    if isinstance(geometry, ConvGeometry):
        fast: Order = "paper" if method in ("hosvd", "asi-paper") else cheapest(shape, ranks, out, geometry)
        weight = conv_macs(shape, ranks, out, geometry, "rebuild" if choice.choice == "compress" else fast)
    else:
        weight = linear_macs(shape, ranks, out[-1])
    forward, back = plain.forward, plain.input_gradient
    if choice.weight_rank is not None:
        forward = back = prod(shape[:-1]) * choice.weight_rank * (shape[-1] + out[-1])
    return Macs(forward, back, _projection(shape, ranks, method), weight)


def _projection(shape: tuple[int, ...], ranks: tuple[int, ...], method: str) -> int:
    """Multiply-adds of keeping one input between refreshes (ASI, fixed bases) or anew (the others)."""
    n, total = prod(shape), 0
    if method == "hosvd":
        total += sum(n * min(d, n // d) + 9 * min(d, n // d) ** 3 for d in shape)
    if method == "asi-paper":
        total += sum(2 * n * k + 2 * d * k * k for d, k in zip(shape, ranks, strict=True))
    exact = ranks[0] != shape[0] and method in ("asi", "wasi", "auto")
    if exact:  # the batch mode comes last
        total += shape[0] ** 2 * prod(ranks[1:]) + 9 * shape[0] ** 3
    return total + projection_macs(shape, ranks)


def _paper_backward(shape: tuple[int, ...], ranks: tuple[int, ...], out: tuple[int, ...], geometry: Geometry) -> int:
    if isinstance(geometry, ConvGeometry):
        (b, c, h, w), (k0, k1, k2, k3) = shape, ranks
        _, o, p, q = out
        taps = prod(geometry.kernel)
        return k0 * o * p * q * b + h * k0 * k1 * k2 * k3 + h * w * k0 * k1 * k3 + o * k0 * k1 * taps * p * q + o * c * taps * k1
    if len(shape) == 3:
        (b, n, i), (k1, k2, k3), o = shape, ranks, out[-1]
        return b * n * o * k1 + k1 * k2 * k3 * n + k1 * k3 * i * n + i * o * n * k1
    if len(shape) == 4:
        (b, h, w, c), (k1, k2, k3, k4), o = shape, ranks, out[-1]
        return b * k1 * h * w * o + h * k2 * k1 * k3 * k4 + w * k3 * k1 * h * o + c * k4 * k1 * h * k3 + k1 * k3 * h * c * o
    return linear_macs(shape, ranks, out[-1])
