"""SCoTTi (ICCV-W 2023): NEq whose threshold is learned by its own gradient, at every step.

A weight moves by w_t = w_{t-1} - α m STE(\\|v\\| - ε) with the straight-through gradient 1, so that
∂L/∂ε_{t-1} = α Σ ⟨∂L/∂w_t, m_{t-1}⟩ over the neurons that moved: ε falls (more neurons train) while gradients agree and rises
while they disagree. ε never becomes negative. Until the first velocities exist every neuron trains. A neuron that a step's ε
lets in has no gradient yet in that step; it moves from the next one on.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ondevice_train.selection.layers import OUTPUT, Selection
from ondevice_train.selection.selector import Measured, Selector, Setting
from ondevice_train.selection.velocities import Velocities

if TYPE_CHECKING:
    from edge_shared.training import Step


def threshold_gradient(lr: float, pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """∂L/∂ε of the step before: lr times the sum of ⟨gradient now, momentum then⟩."""
    return lr * sum(float((gradient * momentum).sum()) for gradient, momentum in pairs)


class StraightThrough(torch.autograd.Function):
    """STE(x): 1 where x >= 0, else 0; gradient 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """The gate."""
        return (x >= 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        """Identity."""
        return grad


class SCoTTi(Selector):
    """Updates the neurons with \\|v\\| > ε_t.

    Options:
        epsilon: the first threshold: 0.05.
        rate: learning rate η of the threshold: 1e-4; 0 keeps it (the official flag epsGrad off).
        mu: 0.5, of the velocities.
        recursion: ``paper`` or ``official-code``.
    """

    unit = OUTPUT
    has_budget = False
    each_step = True
    known = {"epsilon": 0.05, "rate": 1e-4, "mu": 0.5, "recursion": "paper"}

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.velocities = Velocities(float(self.options["mu"]), self.options["recursion"])
        self.epsilon = float(self.options["epsilon"])
        self._before: dict[int, Tensor] = {}

    def start(self, measured: Measured) -> Selection:
        """Everything trains."""
        self.velocities.remember(measured.outputs())
        return Selection.everything(self.unit, self.layers)

    def after_epoch(self, epoch: int, measured: Measured, current: Selection) -> Selection:
        """New velocities, then the neurons above the threshold."""
        self.velocities.update(measured.outputs())
        self._before = {}
        return self._above(current)

    def after_step(self, step: Step, current: Selection, slices: list[Tensor]) -> Selection | None:
        """Move the threshold along its gradient; a new selection if a neuron crosses it."""
        pairs = []
        now: dict[int, Tensor] = {}
        momentum = step.optimizer.param_groups[0].get("momentum", 0.0)
        for parameter in slices:
            if parameter.grad is None:
                continue
            if id(parameter) in self._before:
                pairs.append((parameter.grad, self._before[id(parameter)]))
            buffer = step.optimizer.state.get(parameter, {}).get("momentum_buffer")
            now[id(parameter)] = parameter.grad.clone() if buffer is None else momentum * buffer + parameter.grad
        self._before = now
        rate = float(self.options["rate"])
        if rate:
            self.epsilon = max(0.0, self.epsilon - rate * threshold_gradient(step.optimizer.param_groups[0]["lr"], pairs))
        if not self.velocities.values:
            return None
        new = self._above(current)
        return None if new.channels == current.channels else new

    def _above(self, current: Selection) -> Selection:
        moving = {name: np.flatnonzero(np.abs(v) > self.epsilon) for name, v in self.velocities.values.items()}
        return Selection(self.unit, {name: tuple(where.tolist()) for name, where in moving.items() if len(where)})

    def state_dict(self) -> dict[str, Any]:
        """Velocities and the threshold; the momentum of the step before is dropped (the next step leaves ε alone)."""
        return {"velocities": self.velocities.state_dict(), "epsilon": self.epsilon}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self.velocities.load_state_dict(state["velocities"])
        self.epsilon = float(state["epsilon"])
