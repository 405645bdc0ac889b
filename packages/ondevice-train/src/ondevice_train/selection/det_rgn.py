"""Det RGN: the channels of largest gradient norm per cost, from full gradients. An oracle of TraDy's paper, not for a device."""

from __future__ import annotations

import numpy as np

from ondevice_train.selection.budget import fill
from ondevice_train.selection.layers import Selection
from ondevice_train.selection.selector import Measured, Selector


class DetRGN(Selector):
    """Deterministic choice by RGN of full gradients, renewed every epoch.

    Options:
        score: ``rgn`` (norm per cost) or ``raw`` (norm).
        static: True chooses once.
    """

    known = {"score": "rgn", "static": False}

    def start(self, measured: Measured) -> Selection:
        """Choose from the gradients of the untouched model."""
        return self._choose(measured)

    def after_epoch(self, epoch: int, measured: Measured, current: Selection) -> Selection:
        """Choose anew, unless static."""
        return current if self.options["static"] else self._choose(measured)

    def _choose(self, measured: Measured) -> Selection:
        norms = measured.full_norms()
        flat = np.concatenate([np.asarray(norms[layer.name], dtype=np.float64) for layer in self.layers])
        if self.options["score"] == "rgn":
            flat = flat / np.repeat([layer.cost for layer in self.layers], self.costs.counts)
        order = np.argsort(-flat, kind="stable")
        return self.choose(fill(order.tolist(), self.costs, self.amount, self.setting.overshoot or "skip"))
