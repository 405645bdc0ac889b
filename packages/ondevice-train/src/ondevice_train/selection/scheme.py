"""What a static update scheme costs, by architecture name: the work of ``ondevice-train memory``. Needs no torch for tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edge_shared import architectures
from edge_shared.errors import InputError
from edge_shared.files import read_json
from edge_shared.memory.schemes import ACCOUNTINGS, Scheme, TrainingMemory, channel_macs, channel_weights, cost, kept_channels
from edge_shared.network import Layer, Network

from ondevice_train.ops.kinds import PIECEWISE, SMOOTH
from ondevice_train.selection.layers import INPUT, Selection
from ondevice_train.selection.saved import Replaced, SavedModel

PUBLISHED: Mapping[str, Mapping[str, tuple[int, str, str]]] = {
    "mbv2-w0.35": {
        "49kb": (16, "36 39 40 41 42 45 48 49", "1 1 0 .25 .125 .125 .125 .125"),
        "73kb": (20, "32 33 36 39 41 42 45 48", ".125 .5 .5 1 .25 .125 .125 1"),
        "99kb": (25, "27 30 33 36 39 42 45 48", "1 1 1 1 1 .125 .5 1"),
        "123kb": (31, "27 30 33 36 39 42 45 48", "1 1 1 1 1 .5 1 1"),
        "138kb": (34, "27 30 33 36 39 42 45 48", "1 1 1 1 1 1 1 1"),
    },
    "mcunet-5fps": {
        "49kb": (20, "23 24 27 30 33 39", "0 .25 .5 .5 0 0"),
        "74kb": (21, "21 23 24 26 27 30", "1 0 1 0 .5 1"),
        "99kb": (22, "21 24 27 30 36 39", "1 1 1 1 .125 .25"),
        "124kb": (24, "21 24 27 30 33 39", ".25 1 1 1 .5 .5"),
        "148kb": (23, "21 24 27 30 36 39", "1 1 1 1 1 .5"),
    },
    "proxyless-w0.3": {
        "49kb": (21, "39 42 44 45 50 51 54 57", ".25 1 0 1 0 .125 .25 .25"),
        "74kb": (28, "33 36 39 42 45 51 54 57", ".5 .25 1 1 1 .5 .25 .5"),
        "98kb": (25, "36 39 42 45 48 51 54 57", "1 .5 1 1 .25 .5 1 1"),
        "120kb": (32, "36 39 42 45 48 51 54 57", "1 1 1 1 .5 1 1 1"),
        "148kb": (45, "36 39 42 45 48 51 54 57", "1 1 1 1 1 1 1 1"),
    },
}
"""Schemes of SparseUpdate (Lin 2022), by architecture and published size: biases, convolutions, ratios."""


@dataclass(frozen=True)
class SchemeMemory:
    """A scheme's cost (DESIGN's keys) and what it means in compute.

    Attributes:
        accounting: as asked for.
        selected_weights, selected_activations: elements; activations of one sample.
        units: their sum.
        bias_params: trained biases.
        mask_bits: bits of activation masks, one sample.
        total_bytes: under the accounting; ``bytes``: what our selective operations keep for the backward pass, at `batch_size`.
        kilobytes: total_bytes / 1024.
        weight_gradient_macs: MACs of the selected weight gradients, one sample.
        details: ``bytes`` only: copied channels, masks, the classifier's input, gradients, slices and indices, in bytes.
    """

    accounting: str
    selected_weights: int
    selected_activations: int
    units: int
    bias_params: int
    mask_bits: int
    total_bytes: float
    kilobytes: float
    weight_gradient_macs: int
    architecture: str
    input_size: int
    batch_size: int
    scheme: dict[str, Any]
    details: dict[str, int] = field(default_factory=dict)


def read_scheme(text: str, architecture: str) -> Any:
    """A scheme's plain data from a JSON file, JSON text, or the name of a published one (``49kb``).

    Raises:
        InputError: if there is no such file or name, or it is no JSON.
    """
    known = PUBLISHED.get("mcunet-5fps" if architecture == "mcunet-in1" else architecture, {})
    if text in known:
        biases, convs, ratios = known[text]
        return {"n_bias": biases, "convs": [int(i) for i in convs.split()], "ratios": [float(r) for r in ratios.split()]}
    if text.lstrip().startswith("{"):
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(f"--scheme: character {error.pos} is no JSON: {error.msg}") from error
    if not Path(text).exists():
        published = ", ".join(known) or f"none (they are of {', '.join(PUBLISHED)})"
        raise InputError(f"--scheme {text}: no such file; published schemes of {architecture}: {published}")
    return read_json(text, "--scheme")


def scheme_memory(
    architecture: str, scheme: Any, *, input_size: int | None = None, accounting: str = "units", batch_size: int = 1
) -> SchemeMemory:
    """Cost of a static scheme on a published architecture.

    Args:
        architecture: a name of `edge_shared.architectures` (table, no torch), or a torchvision model (traced; its linear layers count
            as convolutions in the scheme's indices).
        scheme: plain data: ``{"n_bias": 22, "convs": [21, 24], "ratios": [1, 0.5]}`` or ``{"last_convs": 12}``.
        input_size: side of the square input in pixels; the published one if omitted.
        accounting: params, units, mcunetv3 or bytes.
        batch_size: samples per step; matters for ``bytes`` only.

    Raises:
        InputError: unknown architecture or accounting, or a scheme that does not fit.
    """
    if accounting not in (*ACCOUNTINGS, "bytes"):
        raise InputError(f"--accounting {accounting}: unknown; known: {', '.join(ACCOUNTINGS)}, bytes")
    if batch_size < 1:
        raise InputError(f"--batch-size {batch_size}: at least 1")
    network = _network(architecture, input_size)
    try:
        parsed = Scheme.parse(scheme, network)
    except InputError as error:
        raise InputError(f"--scheme: {error}") from error
    memory = cost(network, parsed, "units" if accounting == "bytes" else accounting)
    convs = network.convs()
    macs = sum(kept_channels(convs[i], ratio) * channel_macs(convs[i], network.input_shape[0]) for i, ratio in parsed.ratios.items())
    details: dict[str, int] = {}
    if accounting == "bytes":
        memory, details = _bytes(network, parsed, memory, batch_size)
    return SchemeMemory(
        accounting=accounting,
        selected_weights=memory.selected_weights,
        selected_activations=memory.selected_activations,
        units=memory.units,
        bias_params=memory.bias_params,
        mask_bits=memory.mask_bits,
        total_bytes=memory.total_bytes,
        kilobytes=memory.kilobytes,
        weight_gradient_macs=macs,
        architecture=architecture,
        input_size=network.input_shape[-1],
        batch_size=batch_size,
        scheme=scheme,
        details=details,
    )


def _network(architecture: str, input_size: int | None) -> Network:
    if architecture in architectures.names() or architecture.startswith("mobilenet_v2"):
        return architectures.network(architecture, resolution=input_size)
    from ondevice_train.selection.torch_only import traced

    return traced(architecture, input_size or 224)


def _bytes(network: Network, scheme: Scheme, memory: TrainingMemory, batch_size: int) -> tuple[TrainingMemory, dict[str, int]]:
    convs = network.convs()
    kept = {index: kept_channels(convs[index], ratio) for index, ratio in scheme.ratios.items()}
    selection = Selection(INPUT, {_name(convs[index]): tuple(range(count)) for index, count in kept.items() if count})
    biases = [_bias_owner(network, layer) for layer in convs[len(convs) - scheme.n_bias :]]
    heads = [layer for layer in network.layers if layer.kind == "linear"]
    model = SavedModel(batched(network, batch_size), replaced_in(network), biases=biases, dense=[_name(head) for head in heads])
    saved = model.predict(selection)
    trained = memory.selected_weights + memory.bias_params + sum(head.params for head in heads)
    details = {
        "saved_channels": saved.channels,
        "saved_masks": saved.masks,
        "saved_other": saved.other,
        "gradients": 4 * trained,
        "slices": 4 * sum(count * channel_weights(convs[index]) for index, count in kept.items()),
        "indices": 8 * selection.count,
    }
    mask_bits = SavedModel(network, replaced_in(network), biases=biases, dense=[_name(head) for head in heads]).mask_elements(selection)
    return replace(memory, mask_bits=mask_bits, total_bytes=saved.total, kilobytes=saved.total / 1024), details


def _name(layer: Layer) -> str:
    return layer.module or layer.name


def _bias_owner(network: Network, conv: Layer) -> str:
    """The norm after a convolution holds its bias, if there is one."""
    norms = [layer for layer in network.consumers[conv.output] if layer.op == "batch_norm"]
    return _name(norms[0] if norms else conv)


def replaced_in(network: Network) -> Replaced:
    """What `SelectiveModel` would replace in the module of a table's network."""
    head = {_name(layer) for layer in network.layers if layer.kind == "linear"}
    return Replaced(
        selective=frozenset(_name(layer) for layer in network.weighted()) - head,
        norms=frozenset(_name(layer) for layer in network.layers if layer.op == "batch_norm"),
        activations={
            _name(layer): layer.op for layer in network.layers if layer.kind == "activation" and layer.op in (*PIECEWISE, *SMOOTH)
        },
    )


def batched(network: Network, batch: int) -> Network:
    """A network of batch 1 as one of batch `batch`."""

    def shape(one: Iterable[int]) -> tuple[int, ...]:
        return (batch, *list(one)[1:])

    tensors = {name: replace(tensor, shape=shape(tensor.shape)) for name, tensor in network.tensors.items()}
    layers = tuple(replace(layer, in_shape=shape(layer.in_shape), out_shape=shape(layer.out_shape)) for layer in network.layers)
    return replace(network, layers=layers, tensors=tensors)
