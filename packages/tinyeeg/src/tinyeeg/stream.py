"""The chain on a live stream: push chunks of any length, get the feature vectors that became due."""

from __future__ import annotations

from typing import Any

import numpy as np
from edge_shared.errors import InputError
from numpy.typing import NDArray

from tinyeeg import filters
from tinyeeg.chain import POWER_FLOOR, Chain


class StreamingChain:
    """State of one running chain; the vectors equal those of `Chain.features` on the whole stretch.

    Args:
        chain: what to compute.
    """

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self.reset()

    def reset(self) -> None:
        """Forget everything: at the start, and after dropped samples."""
        channels = len(self.chain.channels)
        self._first: NDArray[np.float64] | None = None
        self._state: NDArray[np.float64] | None = None
        self._buffer = np.zeros((channels, 0))
        self._recent: list[NDArray[np.float64]] = []
        self._mean: NDArray[np.float64] | None = None

    def push(self, chunk_CT: NDArray[Any]) -> NDArray[np.float64]:
        """Take the next samples.

        Args:
            chunk_CT: microvolts, shape (C, n), n of any size.

        Returns:
            The feature vectors that these samples completed, shape (m, F), often m = 0.
        """
        x = np.asarray(chunk_CT, dtype=np.float64)
        if x.ndim != 2 or len(x) != len(self.chain.channels):
            raise InputError(f"the chunk has shape {x.shape}; this chain takes {len(self.chain.channels)} channels")
        if not np.isfinite(x).all():
            raise InputError("the chunk holds NaN or infinite samples; mark them as dropped and reset the chain")
        if x.shape[1] == 0:
            return np.zeros((0, self.chain.n_features))
        if self._first is None:
            self._first = x[:, :1].copy()
        filtered, self._state = filters.apply(self.chain.sections, self.chain.relative(x, self._first), self._state)
        self._buffer = np.concatenate([self._buffer, filtered], axis=1)
        rows = []
        while self._buffer.shape[1] >= self.chain.segment:
            power = self.chain.power(self._buffer[:, None, : self.chain.segment])[0].ravel()
            rows.append(10 * np.log10(np.maximum(self._smooth(power), POWER_FLOOR)))
            self._buffer = self._buffer[:, self.chain.hop :]
        return np.array(rows).reshape(-1, self.chain.n_features)

    def _smooth(self, power_F: NDArray[np.float64]) -> NDArray[np.float64]:
        smoothing = self.chain.smoothing
        if smoothing.kind == "boxcar":
            self._recent = [*self._recent, power_F][-smoothing.frames :]
            return np.mean(self._recent, axis=0)
        if smoothing.kind == "exponential":
            self._mean = power_F if self._mean is None else self._mean + (power_F - self._mean) / smoothing.frames
            return self._mean
        return power_F
