"""What the Tucker methods share: a core with optional identity factors, kept in float32 or with a bfloat16 core."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from ondevice_train.compression._codec import Codec, Footprint, Saved
from ondevice_train.compression._contract import Order, weight_gradient
from ondevice_train.compression._geometry import Geometry
from ondevice_train.compression._tucker import Factors, clip_ranks


class TuckerCodec(Codec):
    """Keeps a Tucker form of the input.

    Attributes:
        ranks: one per mode (batch first), clipped to the input's sizes; for error-driven methods those of the last step.
        order: how dW is contracted, see `ondevice_train.compression._contract`.
        half_core: keep the core in bfloat16 (relative error at most 2^-8 an element); bases stay in full precision.
        identity: leave out the factor of a mode at full rank (the papers always keep one).
    """

    def __init__(self, ranks: Sequence[int] | None, order: Order, half_core: bool = False, identity: bool = True) -> None:
        self.ranks = None if ranks is None else tuple(ranks)
        self.order: Order = order
        self.half_core = half_core
        self.identity = identity

    @abstractmethod
    def decompose(self, x: Tensor) -> tuple[Tensor, Factors]:
        """Core and factors of x (detached)."""

    def encode(self, x: Tensor) -> Saved:
        """Core first, then one factor per mode (None for identity)."""
        core, factors = self.decompose(x.detach())
        return (core.bfloat16() if self.half_core else core, *factors)

    def weight_gradient(self, saved: Saved, grad: Tensor, geometry: Geometry) -> Tensor:
        """dW by the contraction `order`."""
        core, *factors = saved
        assert core is not None
        return weight_gradient(core.to(grad.dtype), tuple(factors), grad, geometry, self.order)

    def clipped(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The ranks that an input of that shape gets."""
        if self.ranks is None:
            raise ValueError("the ranks are not known before the first step; run one step or give ranks")
        if len(self.ranks) != len(shape):
            raise ValueError(f"{len(self.ranks)} ranks {self.ranks} do not fit an input of {len(shape)} dimensions")
        return clip_ranks(self.ranks, shape)

    def footprint(self, shape: Sequence[int], itemsize: int) -> Footprint:
        """``ΠK`` core elements and ``Σ d K`` of the factors."""
        ranks = self.clipped(shape)
        sizes: Footprint = {(id(self), "core"): math.prod(ranks) * (2 if self.half_core else itemsize)}
        for mode, (size, rank) in enumerate(zip(shape, ranks, strict=True)):
            if rank < size or not self.identity:
                sizes[(id(self), mode)] = size * rank * itemsize
        return sizes

    def __repr__(self) -> str:
        """Show ranks and order."""
        return f"{type(self).__name__}(ranks={self.ranks}, order={self.order}{', bf16 core' if self.half_core else ''})"


def same_bases(bases: Factors | None, shape: Sequence[int], like: Tensor) -> bool:
    """Whether kept bases fit an input of that shape, device and precision (the batch mode aside)."""
    if bases is None:
        return False
    return all(
        basis is None or (basis.shape[0] == size and basis.dtype == like.dtype and basis.device == like.device)
        for basis, size in zip(bases[1:], shape[1:], strict=True)
    )


def bases_state(bases: Factors | None) -> dict[str, torch.Tensor]:
    """Bases by mode, as plain tensors."""
    return {} if bases is None else {str(mode): basis for mode, basis in enumerate(bases) if basis is not None}


def bases_from_state(state: dict[str, torch.Tensor], modes: int) -> Factors:
    """Undo `bases_state`."""
    return tuple(state.get(str(mode)) for mode in range(modes))
