"""Peak activation memory of inference under five named models.

====== ============================================================================================================
model  a layer needs, in elements
====== ============================================================================================================
A      input + output + weights + skip tensors kept alive (MOOFA's items; weights counted, heads left out)
B      input + output + skip tensors (MCUNet); weights lie in flash
C      as B, but a depthwise convolution and an elementwise sum overwrite their input (TinyEngine)
D      every storage that is alive while the layer runs: what a run really holds, equal to `measure.live_bytes`
E      as C with the sum accumulated in the skip's buffer, after a first part run patch by patch with its halo (MCUNetV2)
====== ============================================================================================================

A, B, C and E describe the deployed network (`edge_shared.network.deployed`: norms folded, activations in place) and apply that
themselves; D takes the network as it is given.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate
from math import ceil, prod
from typing import Literal, get_args

from edge_shared.errors import InputError
from edge_shared.network import WEIGHTED, Layer, Network, deployed

MemoryModel = Literal["A", "B", "C", "D", "E"]
Compat = Literal["moofa-paper"]


@dataclass(frozen=True)
class LayerMemory:
    """What one layer needs while it runs, in elements and bytes."""

    layer: str
    items: int
    bytes: int


@dataclass(frozen=True)
class Peak:
    """The largest need over the layers, and every layer's need."""

    model: str
    items: int
    bytes: int
    layer: str
    per_layer: tuple[LayerMemory, ...]


def peak(
    network: Network,
    model: MemoryModel = "D",
    *,
    bits: int | None = None,
    compat: Compat | None = None,
    patches: int = 4,
    patch_blocks: int | None = None,
) -> Peak:
    """Peak memory of one forward pass at the batch size of the network's shapes.

    Args:
        network: what runs.
        model: A to E, see the module's table.
        bits: width of every element; the tensors' own size if omitted (32 for traced float networks).
        compat: ``moofa-paper`` counts as the MOOFA paper's code does (model A only): the skip tensor is left out of the projection,
            and a depthwise convolution that reads it counts it twice (blocks without an expansion). It can promise less memory
            than a run needs: for comparison, never for a budget.
        patches: model E's grid, patches x patches.
        patch_blocks: model E runs this many blocks patch by patch, the stem being the first; 5 (MCUNetV2) or as many as there are.
            A block ends where one tensor alone is alive.

    Raises:
        InputError: for an unknown model or settings out of range.
    """
    if model not in get_args(MemoryModel):
        raise InputError(f"unknown memory model {model!r}; known: A, B, C, D, E")
    if compat is not None and (compat != "moofa-paper" or model != "A"):
        raise InputError(f"compat {compat!r} goes with memory model A and must be 'moofa-paper'")
    if bits is not None and not 1 <= bits <= 64:
        raise InputError(f"{bits} bits per element is out of range 1 to 64")
    if model != "D":
        network = deployed(network)
    if model == "E":
        needs = _patched(network, patches, patch_blocks)
    else:
        needs = _needs(network, model, compat)
    if not needs:
        raise InputError(f"network {network.name} has no layer that memory model {model} counts")
    sizes = {tensor.itemsize for tensor in network.tensors.values()}

    def size_in_bytes(layer: Layer, items: int) -> int:
        if bits is not None:
            return ceil(items * bits / 8)
        if model == "D" and len(sizes) > 1:
            return by_bytes[layer.name]
        return items * network.tensors[layer.output].itemsize

    by_bytes = _live(network, lifetimes(network), in_bytes=True) if model == "D" and bits is None and len(sizes) > 1 else {}
    per_layer = tuple(LayerMemory(layer.name, items, size_in_bytes(layer, items)) for layer, items in needs)
    top = max(per_layer, key=lambda need: need.bytes)
    return Peak(model, top.items, top.bytes, top.layer, per_layer)


def lifetimes(network: Network) -> dict[str, tuple[int, int]]:
    """First and last layer index at which each storage is alive; inputs start at -1, outputs end after the last layer."""
    spans: dict[str, tuple[int, int]] = {network.storage(name): (-1, -1) for name in network.inputs}
    for index, layer in enumerate(network.layers):
        for name in (*layer.inputs, layer.output):
            storage = network.storage(name)
            first, _ = spans.get(storage, (index, index))
            spans[storage] = (first, index)
    for name in network.outputs:
        storage = network.storage(name)
        spans[storage] = (spans[storage][0], len(network.layers))
    return spans


def pooled(network: Network) -> set[str]:
    """Tensors behind a global pooling: the head, and the gates of squeeze-and-excite."""
    result: set[str] = set()
    for layer in network.layers:
        # A pooling without a kernel is global even where a single position is left to pool.
        is_pool = layer.kind == "pool" and prod(layer.out_shape[2:]) == 1 and (prod(layer.in_shape[2:]) > 1 or not layer.kernel)
        if is_pool or (layer.inputs and all(name in result for name in layer.inputs)):
            result.add(layer.output)
    return result


def _live(network: Network, spans: dict[str, tuple[int, int]], *, in_bytes: bool = False) -> dict[str, int]:
    sizes = {name: network.tensors[name].items * (network.tensors[name].itemsize if in_bytes else 1) for name in spans}
    change = [0] * (len(network.layers) + 2)  # at index + 1: what comes alive less what has died
    for name, (first, last) in spans.items():
        change[first + 1] += sizes[name]
        change[min(last + 2, len(change) - 1)] -= sizes[name]
    totals = list(accumulate(change))
    return {layer.name: totals[index + 1] for index, layer in enumerate(network.layers)}


def _needs(network: Network, model: str, compat: str | None) -> list[tuple[Layer, int]]:
    spans = lifetimes(network)
    live = _live(network, spans)
    if model == "D":
        return [(layer, live[layer.name]) for layer in network.layers]
    head = pooled(network)
    needs = []
    for index, layer in enumerate(network.layers):
        own = sum(network.tensors[name].items for name in {network.storage(name) for name in (*layer.inputs, layer.output)})
        kept = live[layer.name] - own
        if model in ("C", "E"):
            if layer.is_depthwise:
                own = max(layer.in_items, layer.out_items)
            elif layer.kind in ("add", "mul"):
                own = sum(network.tensors[name].items for name in dict.fromkeys(layer.inputs))
            elif model == "E" and [reader.kind for reader in network.consumers[layer.output]] == ["add"]:
                own -= layer.out_items
            needs.append((layer, own + kept))
        elif layer.kind in WEIGHTED:
            if model == "A":
                if layer.inputs[0] in head or layer.name == "feature_mix.conv":
                    continue
                own += layer.weights
                if compat == "moofa-paper" and not layer.is_depthwise:
                    kept = 0
                elif compat == "moofa-paper" and spans[network.storage(layer.inputs[0])][1] > index:
                    kept += layer.in_items
            needs.append((layer, own + kept))
    return needs


def _cuts(network: Network) -> list[int]:
    """Indices of layers after which one tensor alone is alive and the next layer opens a block."""
    spans = lifetimes(network)
    writers = {layer.output: layer for layer in network.layers}
    cuts = []
    for index, layer in enumerate(network.layers[:-1]):
        alive = [name for name, (first, last) in spans.items() if first <= index < last]
        follower = network.layers[index + 1]
        opens = not layer.is_depthwise and layer.kind != "mul" and len(follower.in_shape) == 4 and prod(follower.in_shape[2:]) > 1
        before = writers.get(layer.inputs[0]) if layer.inputs else None
        projects = before is None or before.is_depthwise or before.kind == "mul"  # the stem, or the end of a block
        expands = layer.kind == "conv" and follower.is_depthwise and not projects
        if alive == [network.storage(layer.output)] and opens and not expands:
            cuts.append(index)
    return cuts


def _patched(network: Network, patches: int, blocks: int | None) -> list[tuple[Layer, int]]:
    if patches < 1:
        raise InputError(f"patches is {patches}; the grid needs at least one patch a side")
    cuts = _cuts(network)
    if blocks is None:
        blocks = min(5, len(cuts) - 1)
    if not 1 <= blocks < len(cuts):
        raise InputError(f"patch_blocks is {blocks}; this network has blocks 1 to {max(len(cuts) - 1, 0)} to run in patches")
    end = cuts[blocks - 1]
    out = network.layers[end]
    region: dict[str, tuple[int, ...]] = {network.storage(out.output): tuple(ceil(size / patches) for size in out.out_shape[2:])}
    for layer in reversed(network.layers[: end + 1]):
        need = region[network.storage(layer.output)]
        if layer.kernel:
            need = tuple((n - 1) * s + d * (k - 1) + 1 for n, s, d, k in zip(need, layer.stride, layer.dilation, layer.kernel, strict=True))
        for name in layer.inputs:
            full = network.tensors[name].shape[2:]
            storage = network.storage(name)
            old = region.get(storage, (0,) * len(full))
            region[storage] = tuple(min(f, max(o, n)) for f, o, n in zip(full, old, need, strict=True))
    tensors = {
        name: replace(tensor, shape=(*tensor.shape[:2], *region[network.storage(name)])) if network.storage(name) in region else tensor
        for name, tensor in network.tensors.items()
    }
    patch_layers = tuple(
        replace(layer, in_shape=tensors[layer.inputs[0]].shape, out_shape=tensors[layer.output].shape)
        for layer in network.layers[: end + 1]
    )
    patch = Network(network.name, network.inputs, (out.output,), patch_layers, tensors)
    buffer = network.tensors[out.output].items
    rest = [(layer, items) for layer, items in _needs(network, "E", None) if layer not in network.layers[: end + 1]]
    return [(layer, items + buffer) for layer, items in _needs(patch, "E", None)] + rest
