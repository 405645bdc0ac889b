"""Projection on bases that never change: LANCE-style (arXiv 2509.21617) and data-free cosine bases.

``"calibrated"``: a truncated HOSVD of the first batch gives the bases of all modes but the batch, once and for all.
``"cosine"``: the lowest frequencies of the orthonormal DCT-II on pixel rows and columns (and tokens); channels stay
whole. Layers of the same size share one cosine basis, so that a whole network keeps a few kilobytes of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from ondevice_train.compression._codec import Footprint
from ondevice_train.compression._contract import Order
from ondevice_train.compression._tucker import Factors, leading_basis, multiply, project
from ondevice_train.compression._tucker_codec import TuckerCodec, bases_from_state, bases_state, same_bases

Basis = Literal["calibrated", "cosine"]


@lru_cache(maxsize=256)
def cosine_basis(size: int, rank: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The `rank` lowest frequencies of the orthonormal DCT-II, (size, rank)."""
    position = (torch.arange(size, dtype=torch.float64) + 0.5) * math.pi / size
    basis = torch.cos(position[:, None] * torch.arange(rank, dtype=torch.float64)) * math.sqrt(2 / size)
    basis[:, 0] /= math.sqrt(2)
    return basis.to(dtype).to(device)


class FixedBases(TuckerCodec):
    """Bases set at the first step and kept; the batch mode is never compressed.

    Attributes:
        basis: ``"calibrated"`` or ``"cosine"``.
        image: the input of 4 dimensions is (B, C, H, W) of a convolution, not (B, H, W, C) of a Linear.
    """

    def __init__(
        self, ranks: Sequence[int], basis: Basis = "calibrated", order: Order = "project", half_core: bool = False, image: bool = True
    ) -> None:
        super().__init__(ranks, order, half_core)
        self.basis: Basis = basis
        self.image = image
        self.bases: Factors | None = None

    def clipped(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Ranks for that shape; the batch stays whole, and so do the channels under cosine bases."""
        ranks = list(super().clipped(shape))
        ranks[0] = shape[0]
        if self.basis == "cosine":
            channel = 1 if len(shape) == 4 and self.image else len(shape) - 1
            ranks[channel] = shape[channel]
        return tuple(ranks)

    def decompose(self, x: Tensor) -> tuple[Tensor, Factors]:
        """Project on the bases, which the first batch sets."""
        x = x.contiguous()
        if not same_bases(self.bases, x.shape, x):
            self.calibrate(x)
        assert self.bases is not None
        return project(x, self.bases), self.bases

    def calibrate(self, x: Tensor) -> None:
        """Set the bases from this batch (sequentially truncated), or from the cosine formula."""
        ranks = self.clipped(x.shape)
        bases: list[Tensor | None] = [None] * x.ndim
        reduced = x
        for mode in reversed(range(1, x.ndim)):
            if ranks[mode] < x.shape[mode]:
                if self.basis == "cosine":
                    bases[mode] = cosine_basis(x.shape[mode], ranks[mode], x.dtype, x.device)
                else:
                    basis = leading_basis(reduced, mode, ranks[mode])
                    bases[mode] = basis
                    reduced = multiply(reduced, basis.t(), mode)
        self.bases = tuple(bases)

    def footprint(self, shape: Sequence[int], itemsize: int) -> Footprint:
        """Core and bases; cosine bases are shared by all layers that use the same size and rank."""
        sizes = super().footprint(shape, itemsize)
        if self.basis == "cosine":
            for mode, (size, rank) in enumerate(zip(shape, self.clipped(shape), strict=True)):
                if sizes.pop((id(self), mode), None) is not None:
                    sizes[("cosine", size, rank)] = size * rank * itemsize
        return sizes

    def state(self) -> dict[str, Any]:
        """The bases."""
        return bases_state(self.bases)

    def load_state(self, state: dict[str, Any]) -> None:
        """Take bases back."""
        assert self.ranks is not None
        self.bases = bases_from_state(state, len(self.ranks)) if state else None
