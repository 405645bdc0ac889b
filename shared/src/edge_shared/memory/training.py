"""What plain PyTorch keeps for the backward pass (accounting ``bytes``), predicted from a `Network` without running it.

The rules are those of torch's autograd on CPU: which of its input, its output and its by-products an operation saves.
Parameters and buffers are not counted; a storage that several operations save counts once. Held against
`edge_shared.memory.measure.training_bytes`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from math import prod

from edge_shared.network import Layer, Network

_SAVES_OUTPUT = {"relu", "sigmoid", "tanh", "softmax", "_softmax", "log_softmax"}
_SAVES_NOTHING = {"reshape", "add", "concat", "embedding"}
_NO_GRADIENT = {"eq", "ne", "lt", "gt", "le", "ge", "new_zeros", "new_ones", "zeros_like", "ones_like", "empty_like", "argmax", "detach"}
_CLONED_IN_PLACE = {"relu6", "hardtanh", "hardswish", "hardsigmoid", "silu", "mish", "gelu"}
"""In-place forms whose gradient needs the overwritten input: autograd keeps a copy of it."""


@dataclass(frozen=True)
class LayerSaved:
    """Bytes that a layer is the first to save."""

    layer: str
    bytes: int


@dataclass(frozen=True)
class TrainingBytes:
    """Total bytes kept for backward, layer by layer, and the operations that the rules do not know (counted as 0)."""

    bytes: int
    per_layer: tuple[LayerSaved, ...]
    unknown: tuple[str, ...]


def training_bytes(network: Network, trainable: Collection[str] | None = None) -> TrainingBytes:
    """Bytes that a forward pass keeps for backward, at the batch size and training flags of the network.

    Args:
        network: a traced network, or a table's (evaluation-mode norms).
        trainable: names of the layers whose parameters train; all if omitted. Where neither a layer's parameters nor its
            inputs need a gradient, nothing is kept: backward stops at the shallowest trained layer.
    """
    needs_grad: set[str] = set()
    counted: set[str] = set()
    per_layer, unknown = [], []
    for layer in network.layers:
        trains = layer.params > 0 and (trainable is None or layer.name in trainable)
        if layer.op in _NO_GRADIENT or (not trains and not any(name in needs_grad for name in layer.inputs)):
            continue
        needs_grad.add(layer.output)
        storages, fresh, known = _saved(network, layer, trains, needs_grad)
        if not known:
            unknown.append(layer.op)
        size = fresh
        for name in storages:
            storage = network.storage(name)
            if storage not in counted:
                counted.add(storage)
                size += network.tensors[storage].items * network.tensors[storage].itemsize
        if size:
            per_layer.append(LayerSaved(layer.name, size))
    return TrainingBytes(sum(item.bytes for item in per_layer), tuple(per_layer), tuple(dict.fromkeys(unknown)))


def _saved(network: Network, layer: Layer, trains: bool, needs_grad: set[str]) -> tuple[tuple[str, ...], int, bool]:
    """Tensors that the call saves, bytes of by-products of its own, and whether the rule is known."""
    item = network.tensors[layer.output].itemsize
    main = layer.inputs[:1]
    if layer.kind in _SAVES_NOTHING:
        return (), 0, True
    if layer.kind == "conv":
        return main, 0, True  # also when its weight is frozen
    if layer.kind == "linear":
        if trains and layer.copied:
            return (), layer.in_items * item, True
        return (main if trains else ()), 0, True
    if layer.kind == "norm":
        return main, _statistics(layer) * item, True
    if layer.kind == "activation" or layer.kind == "softmax":
        if layer.in_place and layer.op in _CLONED_IN_PLACE:
            return (), layer.in_items * item, True
        return ((layer.output,) if layer.op in _SAVES_OUTPUT else main), 0, True
    if layer.kind == "pool":
        if layer.op.startswith("max_pool"):
            return main, layer.out_items * 8, True  # 64-bit indices
        global_mean = layer.op == "mean" or (layer.op.startswith("adaptive_avg_pool") and prod(layer.out_shape[2:]) == 1)
        return (() if global_mean else main), 0, True
    if layer.kind == "dropout":
        if not layer.training:
            return (), 0, True
        return (), (layer.in_items if layer.op == "dropout" else prod(layer.in_shape[:2])) * item, True
    if layer.kind == "matmul":
        if layer.op == "attention":
            return (*layer.inputs, layer.output), prod(layer.out_shape[:-1]) * item, True
        kept = tuple(name for name in layer.inputs if name not in layer.copied)
        return kept, sum(network.tensors[name].items for name in layer.copied) * item, True
    if layer.kind == "mul":
        if len(layer.inputs) < 2:
            return (main if trains else ()), 0, True
        return tuple(name for name, other in zip(layer.inputs, reversed(layer.inputs), strict=True) if other in needs_grad), 0, True
    return (), 0, layer.op in ("pad", "roll", "index", "upsample_nearest2d", "constant_pad_nd")


def _statistics(layer: Layer) -> int:
    """Elements of the saved mean and inverse deviation."""
    batch, *rest = layer.in_shape
    if layer.op == "batch_norm":
        return 2 * layer.in_channels if layer.training else 0
    if layer.op == "layer_norm":
        return 2 * prod(layer.in_shape[:-1])
    if layer.op == "instance_norm":
        return 2 * batch * rest[0]
    return 2 * batch * layer.groups
