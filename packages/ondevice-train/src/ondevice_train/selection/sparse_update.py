"""SparseUpdate (Lin 2022): a static scheme, the channels of each layer chosen by weight norm."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from edge_shared.errors import InputError
from numpy.typing import NDArray

from ondevice_train.selection.budget import fill
from ondevice_train.selection.layers import Selection
from ondevice_train.selection.selector import Measured, Selector

CRITERIA = ("magnitude+", "magnitude-", "random")


class SparseUpdate(Selector):
    """A share of the input channels of named layers, fixed for the run.

    Without `ratios` the budget is filled from the last layer back, each layer by the criterion; the evolutionary search that
    found the published schemes was never released.

    Options:
        ratios: layer name -> share of its input channels; int(C·ratio) are kept.
        criterion: ``magnitude+`` (largest L2 norm of the weights that read the channel), ``magnitude-`` or ``random``.
    """

    has_budget = False
    known = {"ratios": None, "criterion": "magnitude+"}

    def start(self, measured: Measured) -> Selection:
        """Chosen once."""
        criterion = self.options["criterion"]
        if criterion not in CRITERIA:
            raise InputError(f"criterion is {criterion!r}; choose one of {', '.join(CRITERIA)}")
        norms = self.setting.weight_norms()
        generator = self.generator(0)
        order = {layer.name: order_of(np.asarray(norms[layer.name]), criterion, generator) for layer in self.layers}
        ratios: Mapping[str, float] | None = self.options["ratios"]
        if ratios is None:
            if self.setting.amount is None:
                raise InputError("sparse-update needs a --scheme or a --budget")
            starts = np.cumsum([0, *self.costs.counts])
            flat = [int(starts[i]) + int(c) for i in reversed(range(len(self.layers))) for c in order[self.layers[i].name]]
            return self.choose(fill(flat, self.costs, self.setting.amount, self.setting.overshoot or "skip"))
        counts = {layer.name: int(layer.inputs * ratios.get(layer.name, 0.0)) for layer in self.layers}
        chosen = {name: tuple(sorted(order[name][:count].tolist())) for name, count in counts.items() if count}
        return Selection(self.unit, chosen)


def order_of(norms: NDArray[np.float64], criterion: str, generator: np.random.Generator) -> NDArray[np.int64]:
    """Channels in the order in which the criterion takes them; ties by index."""
    if criterion == "random":
        return generator.permutation(len(norms))
    return np.argsort(-norms if criterion == "magnitude+" else norms, kind="stable")
