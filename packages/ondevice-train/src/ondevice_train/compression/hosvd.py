"""HOSVD of a layer's input, anew at every step (NeurIPS 2024, "activation map compression", arXiv 2411.06346).

Classical truncated HOSVD: each mode's basis comes from the full input, not from the already truncated one. The ranks
follow from the explained variance epsilon, or are given. The input gradient stays exact, so that no error reaches
earlier layers; only dW is approximate, with |Ã - A|² <= Σ over modes of the discarded energies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ondevice_train.compression._contract import Order
from ondevice_train.compression._tucker import Factors, clip_ranks, compact, leading_basis, mode_gram, project, rank_for, spectrum, unfold
from ondevice_train.compression._tucker_codec import TuckerCodec

Rule = Literal["per-mode", "total"]
Solver = Literal["gram", "svd"]


def mode_energies(x: Tensor, mode: int, solver: Solver = "gram") -> tuple[Tensor, Tensor | None]:
    """Squared singular values of an unfolding (descending) and, where it costs nothing more, its left singular vectors."""
    if solver == "svd":
        left, values, _ = torch.linalg.svd(unfold(x, mode), full_matrices=False)
        return values.square(), left
    if x.shape[mode] ** 2 <= x.numel():
        return spectrum(mode_gram(x, mode))
    matrix = unfold(x, mode)
    return torch.linalg.eigvalsh(matrix.t() @ matrix).flip(0).clamp_min(0), None


def hosvd(
    x: Tensor,
    *,
    epsilon: float | None = None,
    ranks: Sequence[int] | None = None,
    rule: Rule = "per-mode",
    solver: Solver = "gram",
) -> tuple[Tensor, Factors]:
    """Truncated HOSVD.

    Args:
        x: any tensor.
        epsilon: explained variance in (0, 1].
        ranks: fixed ranks instead of epsilon, one per mode.
        rule: ``"per-mode"`` keeps the share epsilon in every mode (the paper; the whole error may reach m(1 - epsilon)|x|²);
            ``"total"`` splits the budget so that |x - x̃|² <= (1 - epsilon)|x|² holds.
        solver: eigenvectors of Gram matrices, or the thin SVD of every unfolding as the paper does (slow).

    Returns:
        Core and one orthonormal factor per mode.
    """
    limit = None if ranks is None else clip_ranks(ranks, x.shape)
    share = epsilon if epsilon is None or rule == "per-mode" else 1 - (1 - epsilon) / x.ndim
    factors = []
    for mode in range(x.ndim):
        energies, left = mode_energies(x, mode, solver)
        if limit is not None:
            rank = limit[mode]
        elif share is not None:
            rank = rank_for(energies, share)
        else:
            raise ValueError("give epsilon or ranks")
        enough = left is not None and left.shape[1] >= rank
        factors.append(compact(left[:, :rank]) if enough and left is not None else leading_basis(x, mode, rank))
    return project(x, tuple(factors)), tuple(factors)


def hosvd_ranks(x: Tensor, epsilons: Sequence[float], rule: Rule = "per-mode") -> list[tuple[int, ...]]:
    """Ranks of the HOSVD at several epsilons from one spectrum per mode."""
    spectra = [mode_energies(x, mode)[0] for mode in range(x.ndim)]
    shares = [epsilon if rule == "per-mode" else 1 - (1 - epsilon) / x.ndim for epsilon in epsilons]
    return [tuple(rank_for(energies, share) for energies in spectra) for share in shares]


class HOSVD(TuckerCodec):
    """Tucker form recomputed at every step.

    Attributes:
        epsilon: explained variance that chooses the ranks at every step; None keeps `ranks` fixed.
        ranks: of the last step where epsilon drives them (before the first: those expected, for predictions).
    """

    def __init__(
        self,
        epsilon: float | None = None,
        ranks: Sequence[int] | None = None,
        order: Order = "paper",
        rule: Rule = "per-mode",
        solver: Solver = "gram",
    ) -> None:
        super().__init__(ranks, order, identity=False)
        self.epsilon = epsilon
        self.rule: Rule = rule
        self.solver: Solver = solver

    def decompose(self, x: Tensor) -> tuple[Tensor, Factors]:
        """HOSVD of x; remembers the ranks."""
        fixed = None if self.epsilon is not None else self.ranks
        core, factors = hosvd(x, epsilon=self.epsilon, ranks=fixed, rule=self.rule, solver=self.solver)
        if self.epsilon is not None:
            self.ranks = tuple(core.shape)
        return core, factors
