"""The chain on a live stream: push chunks of any length, get the feature vectors that became due."""

from __future__ import annotations

import math
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
        self._nothing = np.zeros((0, chain.n_features))
        self.reset()

    def reset(self) -> None:
        """Forget everything: at the start, and after dropped samples."""
        self._first: NDArray[np.float64] | None = None
        self._state: NDArray[np.float64] | None = None
        self._waiting: list[NDArray[np.float64]] = []  # raw chunks since the last decision
        self._missing = self.chain.segment  # samples until the next decision is due
        self._buffer = np.zeros((len(self.chain.channels), 0))  # filtered samples of the running segment
        self._recent: list[NDArray[np.float64]] = []
        self._mean: NDArray[np.float64] | None = None

    def push(self, chunk_CT: NDArray[Any]) -> NDArray[np.float64]:
        """Take the next samples.

        Samples are kept as they came until a decision is due, then filtered together: the filter's state makes the result the same for
        chunks of any size, and small chunks cost next to nothing.

        Args:
            chunk_CT: microvolts, shape (C, n), n of any size.

        Returns:
            The feature vectors that these samples completed, shape (m, F), often m = 0.
        """
        chain = self.chain
        x = np.array(chunk_CT, dtype=np.float64)  # a copy: drivers reuse their buffers
        if x.ndim != 2 or len(x) != len(chain.channels):
            raise InputError(f"the chunk has shape {x.shape}; this chain takes {len(chain.channels)} channels")
        if not math.isfinite(x.sum()):
            raise InputError("the chunk holds NaN or infinite samples; mark them as dropped and reset the chain")
        if x.shape[1]:
            self._waiting.append(x)
            self._missing -= x.shape[1]
        if self._missing > 0:
            return self._nothing
        x = np.concatenate(self._waiting, axis=1)
        if self._first is None:
            self._first = x[:, :1].copy()
        filtered, self._state = filters.apply(chain.sections, chain.relative(x, self._first), self._state)
        self._buffer, self._waiting = np.concatenate([self._buffer, filtered], axis=1), []
        starts = range(0, self._buffer.shape[1] - chain.segment + 1, chain.hop)
        segments = np.stack([self._buffer[:, start : start + chain.segment] for start in starts], axis=1)
        power = chain.power(segments).reshape(len(starts), -1)
        self._buffer = self._buffer[:, len(power) * chain.hop :]
        self._missing = chain.segment - self._buffer.shape[1]
        return 10 * np.log10(np.maximum([self._smooth(row) for row in power], POWER_FLOOR))

    def _smooth(self, power_F: NDArray[np.float64]) -> NDArray[np.float64]:
        smoothing = self.chain.smoothing
        if smoothing.kind == "boxcar":
            self._recent = [*self._recent, power_F][-smoothing.frames :]
            return sum(self._recent[1:], self._recent[0]) / len(self._recent)
        if smoothing.kind == "exponential":
            self._mean = power_F if self._mean is None else self._mean + (power_F - self._mean) / smoothing.frames
            return self._mean
        return power_F
