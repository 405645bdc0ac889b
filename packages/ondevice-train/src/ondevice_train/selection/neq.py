"""NEq (Bragagnolo, NeurIPS 2022): neurons at equilibrium are not updated in the next epoch. No budget."""

from __future__ import annotations

from typing import Any

import numpy as np

from ondevice_train.selection.layers import OUTPUT, Selection
from ondevice_train.selection.selector import Measured, Selector, Setting
from ondevice_train.selection.velocities import Velocities


class NEq(Selector):
    """Updates the neurons with \\|v\\| >= ε.

    Options:
        epsilon: 1e-3 (the paper uses 2e-2 for COCO).
        mu: 0.5.
        warmup: epochs in which all neurons train: 1.
        pin: True never thaws a frozen neuron.
        recursion: ``paper`` or ``official-code``.
    """

    unit = OUTPUT
    has_budget = False
    known = {"epsilon": 1e-3, "mu": 0.5, "warmup": 1, "pin": False, "recursion": "paper"}

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.velocities = Velocities(float(self.options["mu"]), self.options["recursion"])

    def start(self, measured: Measured) -> Selection:
        """Everything trains."""
        self.velocities.remember(measured.outputs())
        return Selection.everything(self.unit, self.layers)

    def after_epoch(self, epoch: int, measured: Measured, current: Selection) -> Selection:
        """What still moves."""
        values = self.velocities.update(measured.outputs())
        if epoch + 1 < int(self.options["warmup"]):
            return current
        moving = {name: np.flatnonzero(np.abs(v) >= float(self.options["epsilon"])) for name, v in values.items()}
        if self.options["pin"]:
            moving = {name: np.intersect1d(where, current.channels.get(name, ())) for name, where in moving.items()}
        return Selection(self.unit, {name: tuple(where.astype(int).tolist()) for name, where in moving.items() if len(where)})

    def state_dict(self) -> dict[str, Any]:
        """Outputs on D_val, similarities and velocities."""
        return self.velocities.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self.velocities.load_state_dict(state)
