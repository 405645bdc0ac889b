"""Bytes that a forward pass of a prepared model keeps for backward, predicted from its `Network` and the selection.

Layers that this package replaces (selective convolutions and linear layers, frozen norms, packed activations) have exact rules here;
everything else follows `edge_shared.memory.training`. The promise: equal to what `edge_shared.memory.measure` counts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

from edge_shared.memory.training import training_bytes
from edge_shared.network import Layer, Network

from ondevice_train.ops.kinds import saved_bytes as packed_bytes
from ondevice_train.selection.keep import Keep, form_of
from ondevice_train.selection.layers import INPUT, Selection


@dataclass(frozen=True)
class Replaced:
    """Which modules were replaced, by qualified name.

    Attributes:
        selective: convolutions and linear layers that save selected channels only.
        norms: BatchNorms on frozen statistics.
        activations: packed activations, with their kind.
        bits: bits of the smooth ones.
        keeps: how layers keep their copied channels; exactly where they are not named.
    """

    selective: frozenset[str] = frozenset()
    norms: frozenset[str] = frozenset()
    activations: Mapping[str, str] = field(default_factory=dict)
    bits: int = 8
    keeps: Mapping[str, Keep] = field(default_factory=dict)


@dataclass(frozen=True)
class SavedPrediction:
    """Predicted bytes: copies of selected channels, bit masks, and all that other operations keep; by layer as well."""

    channels: int
    masks: int
    other: int
    per_layer: Mapping[str, int]

    @property
    def total(self) -> int:
        """All bytes."""
        return self.channels + self.masks + self.other


class SavedModel:
    """Predicts the saved bytes of one network for any selection.

    Args:
        network: traced with batch `batch`.
        replaced: what was replaced in the module.
        biases: module names (layers or norms) whose bias trains.
        dense: module names that train whole, in torch's way: the classifier.
        whole_norms: frozen norms whose weight trains too (they keep their input).
    """

    def __init__(
        self,
        network: Network,
        replaced: Replaced,
        *,
        biases: Collection[str] = (),
        dense: Collection[str] = (),
        whole_norms: Collection[str] = (),
    ) -> None:
        self.network = network
        self.replaced = replaced
        self.biases = frozenset(biases)
        self.dense = frozenset(dense)
        self.whole_norms = frozenset(whole_norms)
        self._base = lru_cache(maxsize=4096)(self._compute_base)

    def _needs_grad(self, touched: frozenset[str]) -> dict[str, bool]:
        """For each call whether its main input needs a gradient, given the layers that train."""
        needs: set[str] = set()
        result = {}
        trains = touched | self.biases | self.dense | self.whole_norms
        for layer in self.network.layers:
            incoming = any(name in needs for name in layer.inputs)
            result[layer.name] = incoming
            if incoming or (layer.module in trains and layer.params > 0):
                needs.add(layer.output)
        return result

    def base(self, touched: frozenset[str], unit: str = INPUT) -> int:
        """Bytes of masks and of everything else, without the copied channels, if the layers `touched` train.

        Output neurons of a layer that is not depthwise keep its whole input, which counts here: another layer may keep it too.
        """
        masks, other, _ = self._base(touched, unit)
        return masks + other

    def needs_gradient(self, selection: Selection) -> dict[str, bool]:
        """For each call whether the gradient of its main input is computed."""
        return self._needs_grad(frozenset(name for name, channels in selection.channels.items() if channels))

    def mask_elements(self, selection: Selection) -> int:
        """Elements whose activation keeps a mask or a rounded derivative, at the network's batch size."""
        needs = self.needs_gradient(selection)
        packed = self.replaced.activations
        return sum(layer.in_items for layer in self.network.layers if (layer.module or layer.name) in packed and needs[layer.name])

    def _compute_base(self, touched: frozenset[str], unit: str) -> tuple[int, int, dict[str, int]]:
        replaced, needs = self.replaced, self._needs_grad(touched)
        plain: list[Layer] = []
        masks, per_layer = 0, {}
        for layer in self.network.layers:
            module = layer.module or layer.name
            if module in replaced.activations and layer.kind == "activation":
                if needs[layer.name]:
                    per_layer[layer.name] = packed_bytes(replaced.activations[module], layer.in_items, replaced.bits)
                    masks += per_layer[layer.name]
                plain.append(_silent(layer))
            elif module in replaced.selective and unit != INPUT and module in touched and not layer.is_depthwise:
                plain.append(layer)
            elif module in replaced.selective or (module in replaced.norms and module not in self.whole_norms):
                plain.append(_silent(layer))
            else:
                plain.append(layer)
        trains = touched | self.biases | self.dense | self.whole_norms
        trainable = [layer.name for layer in plain if (layer.module or layer.name) in trains]
        rest = training_bytes(replace(self.network, layers=tuple(plain)), trainable)
        for item in rest.per_layer:
            per_layer[item.layer] = per_layer.get(item.layer, 0) + item.bytes
        return masks, rest.bytes, per_layer

    def predict(self, selection: Selection) -> SavedPrediction:
        """Bytes for a selection, in total and by call."""
        touched = frozenset(name for name, channels in selection.channels.items() if channels)
        masks, other, by_layer = self._base(touched, selection.unit)
        per_layer = dict(by_layer)
        channels = 0
        for layer in self.network.weighted():
            count = len(selection.channels.get(layer.module or layer.name, ()))
            if count and (selection.unit == INPUT or layer.is_depthwise):
                item = self.network.tensors[layer.output].itemsize
                keep = form_of(layer.module or layer.name, self.replaced.keeps, selection.unit)
                batch = layer.in_shape[0]
                kept = count * keep.channel_bytes(batch, layer.in_items // (layer.in_channels * batch), 1, item) + keep.layer_bytes(item)
                per_layer[layer.name] = per_layer.get(layer.name, 0) + kept
                channels += kept
        return SavedPrediction(channels, masks, other, per_layer)


def _silent(layer: Layer) -> Layer:
    """The same call as one that passes gradients on but keeps nothing."""
    return replace(layer, kind="add", in_place=False)
