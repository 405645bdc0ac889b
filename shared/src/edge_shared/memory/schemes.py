"""Which weights and biases a fine-tuning run updates, and its cost under the accountings of the literature.

``params``: updated parameters only (WACV 2024, "Velocity"). ``units``: weights + activations of the selected input channels for
one sample (TraDy, MeDyate). ``mcunetv3``: int8 weights and activations, fp32 biases, one mask bit per output element of
every layer from the first updated bias on (SparseUpdate). What PyTorch really keeps is `edge_shared.memory.training`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edge_shared.errors import InputError
from edge_shared.network import Layer, Network


@dataclass(frozen=True)
class Scheme:
    """A static selection (SparseUpdate).

    Attributes:
        n_bias: how many of the last convolutions train their bias.
        ratios: for each updated convolution (0 is the stem, execution order) the share of its input channels, 0 to 1.
    """

    n_bias: int
    ratios: Mapping[int, float]

    @staticmethod
    def last(network: Network, count: int) -> Scheme:
        """All weights and biases of the last `count` convolutions.

        Raises:
            InputError: if the network has fewer.
        """
        total = len(network.convs())
        if not 0 <= count <= total:
            raise InputError(f"last_convs is {count}; {network.name} has {total} convolutions")
        return Scheme(count, dict.fromkeys(range(total - count, total), 1.0))

    @staticmethod
    def parse(data: Any, network: Network) -> Scheme:
        """Read ``{"n_bias": 22, "convs": [21, 24], "ratios": [1, 0.5]}`` or ``{"last_convs": 12}``.

        Raises:
            InputError: naming the field that is wrong.
        """
        if not isinstance(data, dict):
            raise InputError("a scheme is a JSON object with n_bias, convs and ratios, or with last_convs")
        if "last_convs" in data:
            if set(data) != {"last_convs"} or not _is_count(data["last_convs"]):
                raise InputError("a scheme with last_convs has that field only, a whole number >= 0")
            return Scheme.last(network, data["last_convs"])
        if unknown := set(data) - {"n_bias", "convs", "ratios"}:
            raise InputError(f"scheme has the unknown field {sorted(unknown)[0]!r}; known: n_bias, convs, ratios, last_convs")
        total = len(network.convs())
        n_bias, convs, ratios = data.get("n_bias", 0), data.get("convs", []), data.get("ratios", [])
        if not _is_count(n_bias) or n_bias > total:
            raise InputError(f"n_bias is {n_bias!r}; {network.name} has {total} convolutions, so it is a whole number from 0 to {total}")
        if not isinstance(convs, list) or not isinstance(ratios, list) or len(convs) != len(ratios):
            raise InputError("convs and ratios are lists of equal length: one ratio for each convolution")
        for index in convs:
            if not _is_count(index) or index >= total:
                raise InputError(f"convs names {index!r}; {network.name} has convolutions 0 to {total - 1}")
            if convs.count(index) > 1:
                raise InputError(f"convs names {index} twice")
            if index < total - n_bias:
                raise InputError(
                    f"convolution {index} lies before the last {n_bias} whose biases are trained; raise n_bias to {total - index}"
                )
        for ratio in ratios:
            if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 <= ratio <= 1:
                raise InputError(f"ratios holds {ratio!r}; a ratio lies between 0 and 1")
        return Scheme(n_bias, dict(zip(convs, map(float, ratios), strict=True)))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def kept_channels(layer: Layer, ratio: float) -> int:
    """Input channels that a ratio selects: the whole part of channels x ratio."""
    return int(layer.in_channels * ratio)


def channel_weights(layer: Layer) -> int:
    """Weights that read one input channel: C'·k² of a dense convolution, k² of a depthwise one, the outputs of a linear layer."""
    return layer.weights // layer.in_channels


def channel_activations(layer: Layer, batch: int) -> int:
    """Elements of one input channel for one sample: H·W, or the tokens of a linear layer.

    `batch` is the network's: windows of attention multiply the first axis of a layer's own input.
    """
    return layer.in_items // (batch * layer.in_channels)


def channel_cost(layer: Layer, batch: int) -> int:
    """Θ_space: weights plus activations of one input channel, one sample (TraDy eq. 3-4, MeDyate eq. 4-5)."""
    return channel_weights(layer) + channel_activations(layer, batch)


def channel_macs(layer: Layer, batch: int) -> int:
    """Θ_time: MACs of one input channel's weight gradient, one sample."""
    return channel_weights(layer) * (layer.out_items // (batch * layer.out_channels))


def biases(network: Network, layer: Layer) -> int:
    """Biases of a convolution when its norm is folded into it, as on a board: none only if it has neither bias nor norm."""
    normed = any(reader.op == "batch_norm" for reader in network.consumers[layer.output])
    return layer.out_channels if layer.bias or normed else 0


@dataclass(frozen=True)
class TrainingMemory:
    """What a scheme costs. Sizes in elements except where named; `kilobytes` are KiB."""

    accounting: str
    selected_weights: int
    selected_activations: int
    units: int
    bias_params: int
    mask_bits: int
    total_bytes: float
    kilobytes: float


ACCOUNTINGS = ("params", "units", "mcunetv3")


def cost(network: Network, scheme: Scheme, accounting: str = "units") -> TrainingMemory:
    """Cost of a scheme for one sample under a named accounting (module docstring).

    ``params`` and ``units`` slots take 4 bytes (fp32). The classifier's input counts under ``mcunetv3`` (int8), its weights nowhere.

    Raises:
        InputError: for an unknown accounting.
    """
    if accounting not in ACCOUNTINGS:
        raise InputError(f"unknown accounting {accounting!r}; known: {', '.join(ACCOUNTINGS)}, bytes")
    convs, batch = network.convs(), network.input_shape[0]
    kept = {index: kept_channels(convs[index], ratio) for index, ratio in scheme.ratios.items()}
    weights = sum(count * channel_weights(convs[index]) for index, count in kept.items())
    activations = sum(count * channel_activations(convs[index], batch) for index, count in kept.items())
    tail = convs[len(convs) - scheme.n_bias :]
    bias_params = sum(biases(network, layer) for layer in tail)
    mask_bits = sum(layer.out_items for layer in tail) // batch
    if accounting == "params":
        total = 4.0 * weights
    elif accounting == "units":
        total = 4.0 * (weights + activations)
    else:
        head = sum(layer.in_channels for layer in network.layers if layer.kind == "linear")
        total = weights + 4 * bias_params + activations + mask_bits / 8 + head
    return TrainingMemory(accounting, weights, activations, weights + activations, bias_params, mask_bits, total, total / 1024)
