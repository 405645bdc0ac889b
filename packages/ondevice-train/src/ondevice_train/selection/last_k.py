"""Last-k: everything in the last layers, as far as the budget goes."""

from __future__ import annotations

from ondevice_train.selection.budget import fill
from ondevice_train.selection.layers import Selection
from ondevice_train.selection.selector import Measured, Selector


class LastK(Selector):
    """All input channels of the last `k` layers; with a budget from the last layer back as far as it reaches.

    Options:
        k: number of layers; all if None.
    """

    has_budget = False
    known = {"k": None}

    def start(self, measured: Measured) -> Selection:
        """Chosen once."""
        k = len(self.layers) if self.options["k"] is None else int(self.options["k"])
        names = [layer.name for layer in self.layers[max(len(self.layers) - k, 0) :]]
        if self.setting.amount is None:
            return self.choose(self.costs.flat(names).tolist())
        order = [int(index) for name in reversed(names) for index in self.costs.flat([name])]
        return self.choose(fill(order, self.costs, self.setting.amount, self.setting.overshoot or "stop"))
