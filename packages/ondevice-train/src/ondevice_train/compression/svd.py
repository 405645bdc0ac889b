"""SVD of a layer's input on the batch mode, anew at every step: the baseline of the HOSVD paper (arXiv 2411.06346)."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor

from ondevice_train.compression._codec import Codec, Footprint, Saved
from ondevice_train.compression._geometry import Geometry
from ondevice_train.compression._tucker import compact, rank_for, spectrum


class SVD(Codec):
    """Keeps U_K Σ_K (B, K) and V_K^T (K, rest); the backward pass rebuilds the whole input, so no time is saved.

    |A - Ã|² / |A|² is exactly 1 minus the explained variance. Memory: K (B + n / B) elements.

    Attributes:
        epsilon: explained variance that chooses K at every step; None keeps `rank` fixed.
        rank: K; the one of the last step where epsilon drives it (before the first: the one expected).
    """

    def __init__(self, epsilon: float | None = None, rank: int | None = None) -> None:
        self.epsilon = epsilon
        self.rank = rank
        self._shape: tuple[int, ...] = ()

    def encode(self, x: Tensor) -> Saved:
        """Left part with the singular values, right part; of x unfolded on its first mode."""
        self._shape = x.shape[1:]
        matrix = x.detach().reshape(x.shape[0], -1)
        wide = matrix.shape[0] <= matrix.shape[1]
        energies, vectors = spectrum(matrix @ matrix.t() if wide else matrix.t() @ matrix)
        if self.epsilon is not None:
            self.rank = rank_for(energies, self.epsilon)
        assert self.rank is not None
        rank = min(self.rank, *matrix.shape)
        kept = compact(vectors[:, :rank])
        # U^T A = Σ V^T (and A V = U Σ): no division by small singular values is needed.
        return (kept, kept.t() @ matrix) if wide else (matrix @ kept, compact(kept.t()))

    def weight_gradient(self, saved: Saved, grad: Tensor, geometry: Geometry) -> Tensor:
        """Rebuild the input, then the ordinary dW."""
        left, right = saved
        assert left is not None
        assert right is not None
        return geometry.weight_gradient((left @ right).to(grad.dtype).view(-1, *self._shape), grad)

    def footprint(self, shape: Sequence[int], itemsize: int) -> Footprint:
        """K (B + n / B) elements."""
        if self.rank is None:
            raise ValueError("the rank is not known before the first step; run one step or give a rank")
        batch, rest = shape[0], prod(shape[1:])
        rank = min(self.rank, batch, rest)
        return {(id(self), "left"): batch * rank * itemsize, (id(self), "right"): rank * rest * itemsize}

    def __repr__(self) -> str:
        """Show epsilon or rank."""
        return f"SVD(epsilon={self.epsilon}, rank={self.rank})"
