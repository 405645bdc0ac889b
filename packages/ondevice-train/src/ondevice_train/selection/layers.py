"""The layers whose channels can be selected, and what one channel of each costs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from edge_shared.memory.schemes import channel_weights
from edge_shared.network import Layer, Network

INPUT, OUTPUT = "input", "output"


@dataclass(frozen=True)
class SelectableLayer:
    """A convolution or linear layer, by module: calls that share a module share its weights.

    Attributes:
        name: qualified name of the module.
        inputs, outputs: input channels (features) and output neurons.
        input_weights: weights that read one input channel: C'·k², k² of a depthwise layer.
        input_activations: elements of one input channel for one sample, H·W (summed over the calls).
        neuron_weights: weights of one output neuron: C·k², k² of a depthwise layer.
        neuron_activations: elements of one sample's input that neurons of this layer need *apart*: H·W of a depthwise layer.
        shared_activations: elements needed as soon as any neuron is updated: the whole input, 0 of a depthwise layer.
        input_macs: MACs of one input channel's weight gradient, one sample.
        depthwise: whether channels are convolved one by one.
        calls: how often the module is called in one forward pass.
    """

    name: str
    inputs: int
    outputs: int
    input_weights: int
    input_activations: int
    neuron_weights: int
    neuron_activations: int
    shared_activations: int
    input_macs: int
    depthwise: bool
    calls: int = 1

    def channels(self, unit: str) -> int:
        """How many there are to choose from."""
        return self.inputs if unit == INPUT else self.outputs

    def weights(self, unit: str) -> int:
        """Weights of one channel or neuron."""
        return self.input_weights if unit == INPUT else self.neuron_weights

    @property
    def cost(self) -> int:
        """Θ_space of one input channel: weights + activations, one sample (TraDy eq. 3-4)."""
        return self.input_weights + self.input_activations


def selectable(network: Network, modules: Collection[str] | None = None, exclude: Iterable[str] = ()) -> tuple[SelectableLayer, ...]:
    """Convolutions and linear layers of `network` in execution order.

    Args:
        network: traced or from a table; any batch size.
        modules: only these module names; all if omitted.
        exclude: module names to leave out: the classifier.
    """
    calls: dict[str, list[Layer]] = {}
    for layer in network.weighted():
        name = layer.module or layer.name
        if (modules is None or name in modules) and name not in set(exclude):
            calls.setdefault(name, []).append(layer)
    return tuple(_layer(name, group, network.input_shape[0]) for name, group in calls.items())


def _layer(name: str, calls: list[Layer], batch: int) -> SelectableLayer:
    first = calls[0]
    # Per sample of the network's batch: attention windows multiply the first axis of a layer's own input.
    activations = sum(call.in_items // (batch * call.in_channels) for call in calls)
    positions = sum(call.out_items // (batch * call.out_channels) for call in calls)
    neuron_weights = first.weights // first.out_channels
    depthwise = first.is_depthwise
    return SelectableLayer(
        name=name,
        inputs=first.in_channels,
        outputs=first.out_channels,
        input_weights=channel_weights(first),
        input_activations=activations,
        neuron_weights=neuron_weights,
        neuron_activations=activations if depthwise else 0,
        shared_activations=0 if depthwise else activations * first.in_channels,
        input_macs=channel_weights(first) * positions,
        depthwise=depthwise,
        calls=len(calls),
    )


@dataclass(frozen=True)
class Selection:
    """Channels to update, by layer: increasing indices of input channels or output neurons."""

    unit: str
    channels: Mapping[str, tuple[int, ...]]

    @staticmethod
    def of(unit: str, layers: tuple[SelectableLayer, ...], flat: Iterable[int]) -> Selection:
        """From indices into all channels of `layers`, one layer after the other."""
        starts = np.cumsum([0, *(layer.channels(unit) for layer in layers)])
        chosen = np.sort(np.fromiter(flat, dtype=np.int64))
        owner = np.searchsorted(starts, chosen, side="right") - 1
        channels = {layers[i].name: tuple((chosen[owner == i] - starts[i]).tolist()) for i in np.unique(owner)}
        return Selection(unit, channels)

    @staticmethod
    def everything(unit: str, layers: Iterable[SelectableLayer]) -> Selection:
        """All channels of `layers`."""
        return Selection(unit, {layer.name: tuple(range(layer.channels(unit))) for layer in layers})

    @staticmethod
    def nothing(unit: str = INPUT) -> Selection:
        """No channel at all."""
        return Selection(unit, {})

    @property
    def count(self) -> int:
        """How many channels."""
        return sum(map(len, self.channels.values()))

    def state_dict(self) -> dict[str, object]:
        """Plain data for a checkpoint."""
        return {"unit": self.unit, "channels": {name: list(channels) for name, channels in self.channels.items()}}

    @staticmethod
    def from_state(state: Mapping[str, Any]) -> Selection:
        """From `state_dict`."""
        return Selection(state["unit"], {name: tuple(channels) for name, channels in state["channels"].items()})
