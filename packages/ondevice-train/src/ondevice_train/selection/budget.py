"""The cost of a selection under a named accounting, and filling a budget with channels.

Accountings: ``units`` (weights + activations of one sample, TraDy/MeDyate: classifier, biases and masks are free), ``params`` (weights
only, WACV "Velocity") and ``bytes`` (what the process holds for training: saved activations and masks at the real batch size, gradients,
slices, optimizer state, the classifier included).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from edge_shared.errors import InputError
from edge_shared.units import parse_bytes
from numpy.typing import NDArray

from ondevice_train.selection.keep import Keep, form_of
from ondevice_train.selection.layers import INPUT, SelectableLayer

ACCOUNTINGS = ("bytes", "units", "params")


@dataclass(frozen=True)
class Budget:
    """A limit of `amount` under an accounting."""

    amount: int
    accounting: str = "bytes"

    @staticmethod
    def parse(text: str) -> Budget:
        """Read ``64kB``, ``1.5MiB``, ``27946units`` or ``22410params``.

        Raises:
            InputError: if it is none of them.
        """
        match = re.fullmatch(r"\s*(\d+)\s*(units|params)\s*", text)
        if match:
            return Budget(int(match[1]), match[2])
        try:
            return Budget(parse_bytes(text))
        except InputError as error:
            raise InputError(f"--budget {text}: write bytes (64kB, 1.5MiB), units (27946units) or parameters (22410params)") from error


@dataclass(frozen=True)
class CostModel:
    """Cost of updating channels: Σ channels + a part of each layer that is touched + what the set of touched layers entails.

    Attributes:
        layers: what can be selected.
        unit: ``input`` or ``output``.
        accounting: see the module docstring.
        batch: samples per step; only ``bytes`` depends on it.
        optimizer_slots: values that the optimizer keeps for each trained weight: 0 plain SGD, 1 momentum, 2 Adam.
        keeps: how layers keep their selected channels, exactly where they are not named; ``bytes`` only.
        base: ``bytes`` only: bytes of everything else (classifier, masks, biases) given the names of the touched layers.
        neuron_weights: replaces the weights of a neuron, by layer name (a compatibility of `velocity`).
    """

    layers: tuple[SelectableLayer, ...]
    unit: str = INPUT
    accounting: str = "units"
    batch: int = 1
    optimizer_slots: int = 0
    keeps: Mapping[str, Keep] = field(default_factory=dict)
    base: Callable[[frozenset[str]], int] = field(default=lambda touched: 0)
    neuron_weights: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.accounting not in ACCOUNTINGS:
            raise InputError(f"unknown accounting {self.accounting!r}; known: {', '.join(ACCOUNTINGS)}")

    def weights_of(self, layer: SelectableLayer) -> int:
        """Weights of one channel or neuron of `layer`."""
        if self.unit != INPUT and layer.name in self.neuron_weights:
            return self.neuron_weights[layer.name]
        return layer.weights(self.unit)

    def of_channel(self, layer: SelectableLayer) -> int:
        """Cost of one channel of `layer`."""
        weights = self.weights_of(layer)
        activations = layer.input_activations if self.unit == INPUT else layer.neuron_activations
        if self.accounting == "params":
            return weights
        if self.accounting == "units":
            return weights + activations
        # Gradient, slice and optimizer state of each weight; an index of 8 bytes; the activation of the whole batch.
        kept = self._keep(layer).channel_bytes(self.batch, activations, layer.calls) if activations else 0
        return 4 * weights * (2 + self.optimizer_slots) + 8 + kept

    def _keep(self, layer: SelectableLayer) -> Keep:
        return form_of(layer.name, self.keeps, self.unit)

    def of_layer(self, layer: SelectableLayer) -> int:
        """Cost of updating anything in `layer`, once."""
        # In bytes the whole input that neurons need is part of `base`: several layers may share it.
        if self.accounting == "bytes":
            return self._keep(layer).layer_bytes()
        return layer.shared_activations if self.unit != INPUT and self.accounting == "units" else 0

    @cached_property
    def per_channel(self) -> NDArray[np.int64]:
        """Cost of every channel, one layer after the other."""
        return np.repeat([self.of_channel(layer) for layer in self.layers], self.counts)

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """Channels of each layer."""
        return np.array([layer.channels(self.unit) for layer in self.layers], dtype=np.int64)

    @cached_property
    def owner(self) -> NDArray[np.int64]:
        """Index of the layer of every channel."""
        return np.repeat(np.arange(len(self.layers)), self.counts)

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """Index of the first channel of each layer."""
        return np.cumsum([0, *self.counts])[:-1]

    def flat(self, names: Iterable[str]) -> NDArray[np.int64]:
        """Indices of all channels of the named layers."""
        wanted = set(names)
        return np.flatnonzero(np.isin(self.owner, [i for i, layer in enumerate(self.layers) if layer.name in wanted]))

    def total(self, chosen: Iterable[int]) -> int:
        """Cost of a set of channel indices."""
        indices = np.fromiter(chosen, dtype=np.int64)
        touched = [self.layers[i] for i in np.unique(self.owner[indices])]
        names = frozenset(layer.name for layer in touched)
        return int(self.per_channel[indices].sum()) + sum(map(self.of_layer, touched)) + self.base(names)

    def smallest(self) -> int:
        """Cost of updating nothing beyond the classifier: no budget below it can be met."""
        return self.base(frozenset())


def fill(order: Iterable[int], costs: CostModel, amount: int, overshoot: str = "skip") -> list[int]:
    """Take channels in `order` as long as the total stays within `amount`.

    Args:
        order: indices of channels, best first.
        costs: what they cost.
        amount: the budget.
        overshoot: a channel that does not fit is passed over (``skip``: at the end none of `order` fits any more) or ends the
            selection (``stop``).

    Returns:
        Indices in the order taken; empty if nothing fits.
    """
    if overshoot not in ("skip", "stop"):
        raise InputError(f"overshoot is {overshoot!r}; choose skip or stop")
    pending = list(order)
    chosen: list[int] = []
    touched: frozenset[str] = frozenset()
    base = costs.base(touched)
    spent = 0  # channels and layers, without the base
    if base > amount:
        return []
    per_channel, owner = costs.per_channel.tolist(), costs.owner.tolist()
    entry: dict[int, tuple[int, int]] = {}  # layer not touched yet -> (its own cost, base if it were)
    while True:
        passed: list[int] = []
        before = len(touched)
        for position, index in enumerate(pending):
            layer = owner[index]
            name = costs.layers[layer].name
            extra, new_base = 0, base
            if name not in touched:
                if layer not in entry:
                    entry[layer] = (costs.of_layer(costs.layers[layer]), costs.base(touched | {name}))
                extra, new_base = entry[layer]
            if spent + extra + per_channel[index] + new_base <= amount:
                chosen.append(index)
                spent += extra + per_channel[index]
                if name not in touched:
                    touched, base = touched | {name}, new_base
                    entry.clear()
            elif overshoot == "stop":
                return chosen
            else:
                passed.append(index)
                if position + 1 < len(pending) and spent + base >= amount:
                    return chosen
        # A layer touched since may have made one that was passed over cheaper (its masks are kept anyway).
        if len(touched) == before or not passed:
            return chosen
        pending = passed
