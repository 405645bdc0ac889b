"""Velocity (Quélennec, WACV-W 2024): output neurons of largest velocity per parameter, under a budget."""

from __future__ import annotations

from typing import Any

import numpy as np

from ondevice_train.selection.budget import fill
from ondevice_train.selection.layers import OUTPUT, Selection
from ondevice_train.selection.selector import Measured, Selector, Setting
from ondevice_train.selection.velocities import Velocities


class Velocity(Selector):
    """The longest prefix by |v_i / C_i| that fits the budget (eq. 5-7); the first epoch is random.

    The method's own budget counts parameters; under ``units`` and ``bytes`` an updated neuron also pays for the input of its layer.

    Options:
        mu: 0.5.
        recursion: ``paper`` or ``official-code``, see `velocities`.
    """

    unit = OUTPUT
    known = {"mu": 0.5, "recursion": "paper"}

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.velocities = Velocities(float(self.options["mu"]), self.options["recursion"])

    def start(self, measured: Measured) -> Selection:
        """Random neurons."""
        self.velocities.remember(measured.outputs())
        order = self.generator(0).permutation(len(self.costs.per_channel))
        return self.choose(fill(order.tolist(), self.costs, self.amount, self.setting.overshoot or "skip"))

    def after_epoch(self, epoch: int, measured: Measured, current: Selection) -> Selection:
        """The neurons that still move most for what they cost."""
        values = self.velocities.update(measured.outputs())
        flat = np.concatenate([values[layer.name] for layer in self.layers])
        score = np.abs(flat) / np.repeat([self.costs.weights_of(layer) for layer in self.layers], self.costs.counts)
        order = np.argsort(-score, kind="stable")
        return self.choose(fill(order.tolist(), self.costs, self.amount, self.setting.overshoot or "stop"))

    def state_dict(self) -> dict[str, Any]:
        """Outputs on D_val, similarities and velocities."""
        return self.velocities.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self.velocities.load_state_dict(state)
