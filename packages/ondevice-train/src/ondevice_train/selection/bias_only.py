"""Bias-only and head-only: no weight of a layer is updated; which biases train is set when the model is prepared."""

from __future__ import annotations

from ondevice_train.selection.layers import Selection
from ondevice_train.selection.selector import Measured, Selector


class BiasOnly(Selector):
    """Selects no channel: the classifier trains, and the biases that `SelectiveModel(biases=n)` made trainable (TinyTL)."""

    has_budget = False

    def start(self, measured: Measured) -> Selection:
        """Nothing."""
        return Selection.nothing()
