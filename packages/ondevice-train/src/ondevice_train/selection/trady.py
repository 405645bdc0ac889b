"""TraDy (ICLR 2026): layers ranked offline, input channels drawn uniformly among the best ones, anew every epoch.

The paper leaves open what happens to the channel that overshoots the budget: `Setting.overshoot` decides (``skip`` by default).
"""

from __future__ import annotations

import numpy as np
from edge_shared.errors import InputError
from numpy.typing import NDArray

from ondevice_train.selection.full_random import FullRandom
from ondevice_train.selection.importance import Ranking, layers_for_budget


class TraDy(FullRandom):
    """Uniform resampling inside the top-K layers (Algorithm 1).

    Options:
        layers: ``rgn``: the layers that hold `share` of the total RGN (D.5); ``lara``: MeDyate's rule with `alpha`.
        share: 0.97.
        alpha: α_opt = 0.2, for ``lara``.
        static: True draws once (S-TopK Random).
    """

    needs_ranking = True
    known = {"static": False, "layers": "rgn", "share": 0.97, "alpha": 0.2}

    def pool(self) -> NDArray[np.int64]:
        """Channels of the top-K layers."""
        return self.costs.flat(self.top_layers())

    def top_layers(self) -> list[str]:
        """Names of the top-K layers, best first."""
        ranking = self.setting.ranking
        assert ranking is not None
        known = {layer.name: layer.inputs for layer in self.layers}
        channels = {row.name: row.channels for row in ranking.layers}
        if missing := known.keys() - channels.keys():
            raise InputError(f"the ranking (of {ranking.model}) lacks layer {sorted(missing)[0]!r}; rank this model")
        for name, count in known.items():
            if channels[name] != count:
                raise InputError(
                    f"the ranking (of {ranking.model}) has {channels[name]} channels in layer {name!r}, the model {count}; rank this model"
                )
        ranking = Ranking(ranking.model, ranking.data, ranking.steps, ranking.seed, tuple(r for r in ranking.layers if r.name in known))
        if self.options["layers"] == "rgn":
            return ranking.top(float(self.options["share"]))
        order = [row.name for row in ranking.order(self.options["layers"])]
        whole = {layer.name: self.costs.of_channel(layer) * layer.channels(self.unit) for layer in self.layers}
        free = self.amount - self.costs.smallest()
        return order[: layers_for_budget([whole[name] for name in order], free, float(self.options["alpha"]))]
