"""The interface of the methods that choose channels, and what they may look at."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from edge_shared.errors import InputError
from numpy.typing import NDArray

from ondevice_train.selection.budget import CostModel
from ondevice_train.selection.importance import Norms, Ranking
from ondevice_train.selection.layers import INPUT, Selection

if TYPE_CHECKING:
    from edge_shared.training import Step
    from torch import Tensor

Outputs = Mapping[str, NDArray[np.float32]]
"""By layer: outputs on the held-out samples, (samples, neurons, positions)."""


class Measured(Protocol):
    """What training can tell a selector after an epoch. What a method does not ask for is not computed."""

    def channel_norms(self) -> Norms:
        """By layer: mean over the epoch's steps of the gradient norm of each *selected* channel, in their order."""
        ...

    def full_norms(self) -> Norms:
        """By layer: gradient norm of *every* input channel, from extra full backward passes: an oracle, not for a device."""
        ...

    def outputs(self) -> Outputs:
        """Outputs of all selectable layers on the held-out samples D_val."""
        ...


@dataclass(frozen=True)
class Setting:
    """What every selector is made of.

    Attributes:
        costs: costs of the channels in the unit and accounting of the run.
        amount: the budget; None for the methods that have none.
        seed: of every random choice; epoch e uses a generator of its own, so that a resumed run draws the same.
        ranking: layer scores, for the methods that need them.
        weight_norms: by layer, L2 norm of the weights of each input channel.
        overshoot: ``skip`` or ``stop``, see `budget.fill`; the method's own rule if None.
        options: settings of one method.
    """

    costs: CostModel
    amount: int | None = None
    seed: int = 0
    ranking: Ranking | None = None
    weight_norms: Callable[[], Norms] = dict
    overshoot: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


class Selector(ABC):
    """Chooses what to update: once (`start`) and after each epoch.

    Attributes:
        unit: ``input`` channels or ``output`` neurons.
        has_budget: whether the method keeps a budget.
        needs_ranking: whether it starts from layer scores.
        needs_norms: whether it reads `Measured.channel_norms`.
        each_step: whether `after_step` does anything.
        known: its options with their defaults.
    """

    unit: ClassVar[str] = INPUT
    has_budget: ClassVar[bool] = True
    needs_ranking: ClassVar[bool] = False
    needs_norms: ClassVar[bool] = False
    each_step: ClassVar[bool] = False
    known: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.costs = setting.costs
        self.layers = setting.costs.layers
        if unknown := set(setting.options) - set(self.known):
            raise InputError(f"unknown option {sorted(unknown)[0]!r} of this method; known: {', '.join(self.known) or 'none'}")
        self.options = {**self.known, **setting.options}
        if self.has_budget and setting.amount is None:
            raise InputError("this method needs a --budget")
        if self.needs_ranking and setting.ranking is None:
            raise InputError("this method needs a layer ranking")

    @property
    def amount(self) -> int:
        """The budget."""
        assert self.setting.amount is not None
        return self.setting.amount

    def generator(self, epoch: int) -> np.random.Generator:
        """The random numbers of one epoch's choice."""
        return np.random.default_rng([self.setting.seed, epoch])

    @abstractmethod
    def start(self, measured: Measured) -> Selection:
        """The selection of the first epoch."""

    def after_epoch(self, epoch: int, measured: Measured, current: Selection) -> Selection:
        """The selection of the epoch after `epoch` (counted from 0); a static method keeps the current one."""
        return current

    def after_step(self, step: Step, current: Selection, slices: list[Tensor]) -> Selection | None:
        """A new selection from a step's gradients, in force from the next step; None to keep the current one.

        Args:
            step: between the gradients and the update.
            current: what is selected.
            slices: the trained parts of the weights, whose gradients these are.
        """
        return None

    def state_dict(self) -> dict[str, Any]:
        """What the next choices depend on, for the checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take `state_dict`'s result back."""
        return

    def choose(self, flat: list[int]) -> Selection:
        """The selection of these channel indices."""
        return Selection.of(self.unit, self.layers, flat)
