"""MeDyate (arXiv 2510.20979): input channels drawn in proportion to the gradient norms of the epochs before."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ondevice_train.selection.budget import fill
from ondevice_train.selection.layers import Selection
from ondevice_train.selection.selector import Measured
from ondevice_train.selection.trady import TraDy


class MeDyate(TraDy):
    """Importance-weighted resampling inside the LaRa layers (Algorithm 1).

    The first epoch draws uniformly. After it every channel that was never selected gets the largest norm seen (optimistic
    initialisation, once); each epoch renews the norms of the channels that it updated; the draw is without replacement with
    probability proportional to the norms.

    Options:
        layers, share, alpha: as in `TraDy`; ``lara`` by default.
    """

    needs_norms = True
    known = {"layers": "lara", "share": 0.97, "alpha": 0.2}

    def __init__(self, setting: Any) -> None:
        super().__init__(setting)
        self.norms: NDArray[np.float64] | None = None

    def start(self, measured: Measured) -> Selection:
        """Uniform in the first epoch."""
        return self.draw(0)

    def after_epoch(self, epoch: int, measured: Measured, current: Selection) -> Selection:
        """Renew the norms of the updated channels, then draw."""
        seen, values = self._flat(current, measured)
        if self.norms is None:
            self.norms = np.full(len(self.costs.per_channel), values.max() if len(values) else 0.0)
        self.norms[seen] = values
        pool = self.pool()
        order = pool[weighted_order(self.norms[pool], self.generator(epoch + 1))]
        return self.choose(fill(order.tolist(), self.costs, self.amount, self.setting.overshoot or "skip"))

    def _flat(self, current: Selection, measured: Measured) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Indices of the channels just updated, and their norms."""
        norms = measured.channel_norms()
        starts = dict(zip((layer.name for layer in self.layers), self.costs.starts, strict=True))
        names = [name for name, channels in current.channels.items() if channels and name in norms]
        if not names:
            return np.empty(0, dtype=np.int64), np.empty(0)
        seen = np.concatenate([starts[name] + np.asarray(current.channels[name]) for name in names])
        return seen, np.concatenate([np.asarray(norms[name], dtype=np.float64) for name in names])

    def state_dict(self) -> dict[str, Any]:
        """One number per channel."""
        return {"norms": self.norms}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the norms back."""
        self.norms = state["norms"]


def weighted_order(weights: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.int64]:
    """A random order whose prefixes are draws without replacement in proportion to `weights`.

    Each item gets the key log(w) + Gumbel noise; weights of 0 come last, among themselves uniformly. Scaling all weights
    changes nothing.
    """
    weights = np.asarray(weights, dtype=np.float64)
    noise = generator.gumbel(size=len(weights))
    positive = weights > 0
    keys = np.where(positive, np.log(weights, where=positive, out=np.zeros_like(weights)) + noise, noise)
    return np.lexsort((-keys, ~positive))
