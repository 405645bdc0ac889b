"""Activation subspace iteration in the order of the paper (ASI, ICML 2025, arXiv 2505.05086).

Every mode, batch included, gets one half step of subspace iteration from the basis of the step before, on the full
input, orthonormalised by Householder QR; then the core. `ondevice_train.compression.asi` is the faster form of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ondevice_train.compression._contract import Order
from ondevice_train.compression._tucker import Factors, project, unfold
from ondevice_train.compression._tucker_codec import TuckerCodec, bases_from_state, bases_state


class ASIPaper(TuckerCodec):
    """Fixed ranks K_m, one per mode; keeps ``4 (ΠK + Σ d K)`` bytes in float32.

    A cold start draws a Gaussian sketch from its own generator, so that the global random state is untouched; a batch of
    another size (the ragged last one) starts the batch mode cold again.
    """

    def __init__(self, ranks: Sequence[int], order: Order = "paper", seed: int = 0) -> None:
        super().__init__(ranks, order, identity=False)
        self.seed = seed
        self.bases: list[Tensor | None] = [None] * len(ranks)

    def decompose(self, x: Tensor) -> tuple[Tensor, Factors]:
        """One half step per mode, then the core."""
        ranks = self.clipped(x.shape)
        for mode, rank in enumerate(ranks):
            matrix, old = unfold(x, mode), self.bases[mode]
            if old is None or old.shape != (x.shape[mode], rank) or old.dtype != x.dtype or old.device != x.device:
                generator = torch.Generator().manual_seed(self.seed * 1000 + mode)
                sketch = torch.randn(matrix.shape[1], rank, generator=generator, dtype=x.dtype).to(x.device)
            else:
                sketch = matrix.t() @ old
            self.bases[mode] = torch.linalg.qr(matrix @ sketch)[0]
        factors = tuple(self.bases)
        return project(x, factors), factors

    def state(self) -> dict[str, Any]:
        """The warm bases."""
        return bases_state(tuple(self.bases))

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from kept bases."""
        self.bases = list(bases_from_state(state, len(self.bases)))
