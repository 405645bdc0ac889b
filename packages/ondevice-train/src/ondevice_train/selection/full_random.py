"""Full Random: input channels drawn uniformly from all layers (a baseline of TraDy and MeDyate; drawn once, it is PaCA)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ondevice_train.selection.budget import fill
from ondevice_train.selection.layers import Selection
from ondevice_train.selection.selector import Measured, Selector


class FullRandom(Selector):
    """A uniform random order of the channels in `pool`, filled into the budget; redrawn every epoch.

    Options:
        static: True draws once.
    """

    known = {"static": False}

    def pool(self) -> NDArray[np.int64]:
        """Indices of the channels to draw from."""
        return np.arange(len(self.costs.per_channel))

    def draw(self, epoch: int) -> Selection:
        """The choice of one epoch."""
        order = self.generator(epoch).permutation(self.pool())
        return self.choose(fill(order.tolist(), self.costs, self.amount, self.setting.overshoot or "skip"))

    def start(self, measured: Measured) -> Selection:
        """Draw for the first epoch."""
        return self.draw(0)

    def after_epoch(self, epoch: int, measured: Measured, current: Selection) -> Selection:
        """Draw anew, unless static."""
        return current if self.options["static"] else self.draw(epoch + 1)
