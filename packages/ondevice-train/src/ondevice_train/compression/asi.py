"""Activation subspace iteration, the fast path: our default.

The saving of ASI (arXiv 2505.05086) with another order of work. The input is read once by a projection that truncates
mode after mode, columns and rows of pixels first (ST-HOSVD), so that each later mode sees a smaller tensor. The batch
mode, whose old basis means nothing for new samples, is solved exactly in the reduced space. The bases of the other
modes stay as they are until the free error meter |A|² - |S|² says that they have drifted. The output gradient is
projected before it meets the core, and never meets the rebuilt input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ondevice_train.compression._contract import Order
from ondevice_train.compression._tucker import (
    Factors,
    leading_basis,
    leading_eigenvectors,
    mode_gram,
    multiply,
    orthonormalise,
    project,
    relative_error,
)
from ondevice_train.compression._tucker_codec import TuckerCodec, bases_from_state, bases_state, same_bases

_EXACT = 384  # up to this size of the smaller side, eigenvectors of a Gram matrix; above it, warm subspace iteration


class ASI(TuckerCodec):
    """Fixed ranks, warm bases, exact batch mode.

    Attributes:
        drift: bases are refreshed when the relative squared error exceeds (1 + drift) times that after the last refresh.
        check_every: steps between looks at the error meter (one pass over the input each).
        error: the relative squared error |A - Ã|² / |A|² at the last look.
        refreshes: how often the bases were computed.
    """

    def __init__(
        self,
        ranks: Sequence[int],
        order: Order = "project",
        half_core: bool = False,
        drift: float = 0.25,
        check_every: int = 4,
        seed: int = 0,
    ) -> None:
        super().__init__(ranks, order, half_core)
        self.drift = drift
        self.check_every = check_every
        self.seed = seed
        self.bases: Factors | None = None
        self.error = 0.0
        self.refreshes = 0
        self._baseline = 0.0
        self._step = 0

    def decompose(self, x: Tensor) -> tuple[Tensor, Factors]:
        """Project on the kept bases; refresh them first where they are missing, do not fit or have drifted."""
        x = x.contiguous()
        ranks = self.clipped(x.shape)
        fresh = not same_bases(self.bases, x.shape, x)
        if fresh:
            self.refresh(x)
        core, factors = self._project(x, ranks[0])
        if fresh or self._step % self.check_every == 0:
            self.error = relative_error(x, core)
            if not fresh and self.error > (1 + self.drift) * self._baseline + 1e-4:
                self.refresh(x)
                core, factors = self._project(x, ranks[0])
                self.error = relative_error(x, core)
                fresh = True
            if fresh:
                self._baseline = self.error
        self._step += 1
        return core, factors

    def _project(self, x: Tensor, rank: int) -> tuple[Tensor, Factors]:
        assert self.bases is not None
        core = project(x, self.bases)
        if rank >= x.shape[0]:
            return core, self.bases
        batch = leading_eigenvectors(mode_gram(core, 0), rank)
        return multiply(core, batch.t(), 0), (batch, *self.bases[1:])

    def refresh(self, x: Tensor) -> None:
        """Compute the bases of all modes but the batch, each in the space that the ones before it left."""
        ranks = self.clipped(x.shape)
        bases: list[Tensor | None] = [None] * x.ndim
        reduced = x
        for mode in reversed(range(1, x.ndim)):
            if ranks[mode] >= x.shape[mode]:
                continue
            basis = self._basis(reduced, mode, ranks[mode])
            bases[mode] = basis
            reduced = multiply(reduced, basis.t(), mode)
        self.bases = tuple(bases)
        self.refreshes += 1

    def _basis(self, x: Tensor, mode: int, rank: int) -> Tensor:
        size = x.shape[mode]
        if min(size, x.numel() // size) <= _EXACT:
            return leading_basis(x, mode, rank)
        old = None if self.bases is None else self.bases[mode]
        steps = 1
        if old is None or old.shape != (size, rank) or old.dtype != x.dtype:
            generator = torch.Generator().manual_seed(self.seed * 1000 + mode)
            old = torch.randn(size, rank, generator=generator, dtype=x.dtype).to(x.device)
            steps = 4
        for _ in range(steps):
            half = multiply(x, old.t(), mode)
            old = orthonormalise(_cross(x, half, mode))
        return old

    def state(self) -> dict[str, Any]:
        """Warm bases and the error meter."""
        return {
            **bases_state(self.bases),
            "meter": torch.tensor([self._baseline, self.error, self._step, self.refreshes], dtype=torch.float64),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from kept bases."""
        assert self.ranks is not None
        state = dict(state)
        self._baseline, self.error, step, refreshes = state.pop("meter").tolist()
        self._step, self.refreshes = int(step), int(refreshes)
        self.bases = bases_from_state(state, len(self.ranks)) if state else None


def _cross(x: Tensor, half: Tensor, mode: int) -> Tensor:
    """X_(m) H_(m)^T: one application of the Gram operator, without forming the Gram matrix."""
    if mode == x.ndim - 1:
        return x.reshape(-1, x.shape[-1]).t() @ half.reshape(-1, half.shape[-1])
    return x.movedim(mode, 0).reshape(x.shape[mode], -1) @ half.movedim(mode, 0).reshape(half.shape[mode], -1).t()
