"""A neural network as plain data: call sites in execution order and the tensors between them.

Everything that Edgewise counts (memory, FLOPs, budgets, plans) is a pure function of a `Network`. One comes from
`edge_shared.trace` (any torch module), from `edge_shared.architectures` (tables, no torch) or from JSON.
Shapes carry the batch first, ``(N, C, H, W)`` for images; sizes are in elements unless a name says bytes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from math import prod
from typing import Any

from edge_shared.errors import InputError

WEIGHTED = ("conv", "linear")
"""Kinds of layers that hold a weight matrix and do the multiplying."""


@dataclass(frozen=True)
class Tensor:
    """A value that flows between layers. `alias_of` names the tensor whose storage it shares (views, in-place results)."""

    name: str
    shape: tuple[int, ...]
    itemsize: int = 4
    alias_of: str | None = None

    @property
    def items(self) -> int:
        """Number of elements."""
        return prod(self.shape)


@dataclass(frozen=True)
class Layer:
    """One call: a module used twice makes two layers.

    Attributes:
        name: unique name of the call site.
        kind: conv, linear, matmul, norm, activation, pool, add, mul, concat, reshape, dropout, softmax, embedding or other.
        op: the operation in detail, such as ``relu6`` or ``adaptive_avg_pool2d``.
        inputs: names of the tensors read, the main one first; parameters and buffers are not among them.
        output: name of the tensor written.
        in_shape, out_shape: shapes of ``inputs[0]`` and `output`.
        kernel, stride, padding, dilation: one number per spatial axis; empty where they mean nothing.
        groups: convolution groups.
        bias: whether the layer adds a learned bias.
        weights: elements of the weight tensor, biases apart.
        params: all learned elements that the call reads.
        parameters: names of the parameters read, where known: calls that share them count them once.
        in_place: the output overwrites the input's storage.
        training: the call ran in training mode (normalisation with batch statistics, active dropout).
        copied: inputs that the operation copies into a contiguous form of its own and keeps that for backward.
        module: qualified name of the torch module that made the call, if any.
    """

    name: str
    kind: str
    op: str
    inputs: tuple[str, ...]
    output: str
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    bias: bool = False
    weights: int = 0
    params: int = 0
    parameters: tuple[str, ...] = ()
    in_place: bool = False
    training: bool = False
    copied: tuple[str, ...] = ()
    module: str | None = None

    @property
    def in_channels(self) -> int:
        """Channels (conv, norm) or features (linear) that the layer reads."""
        return self.in_shape[-1] if self.kind == "linear" else self.in_shape[1] if len(self.in_shape) > 1 else self.in_shape[0]

    @property
    def out_channels(self) -> int:
        """Channels or features that the layer writes."""
        return self.out_shape[-1] if self.kind == "linear" else self.out_shape[1] if len(self.out_shape) > 1 else self.out_shape[0]

    @property
    def is_depthwise(self) -> bool:
        """Whether it is a convolution with one input channel per group."""
        return self.kind == "conv" and self.groups > 1 and self.groups == self.in_channels

    @property
    def in_items(self) -> int:
        """Elements of the main input."""
        return prod(self.in_shape)

    @property
    def out_items(self) -> int:
        """Elements of the output."""
        return prod(self.out_shape)


@dataclass(frozen=True)
class Network:
    """Layers in execution order, the tensors between them, and which tensors leave the network."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    layers: tuple[Layer, ...]
    tensors: dict[str, Tensor]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the first input, batch first."""
        return self.tensors[self.inputs[0]].shape

    @property
    def params(self) -> int:
        """Learned parameters, each counted once: calls may share them."""
        return sum({layer.parameters or (layer.name,): layer.params for layer in self.layers}.values())

    def layer(self, name: str) -> Layer:
        """The layer of that name.

        Raises:
            InputError: if there is none.
        """
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise InputError(f"network {self.name} has no layer {name!r}")

    def weighted(self) -> tuple[Layer, ...]:
        """Convolutions and linear layers in execution order."""
        return tuple(layer for layer in self.layers if layer.kind in WEIGHTED)

    def convs(self) -> tuple[Layer, ...]:
        """Convolutions in execution order; index 0 is the stem."""
        return tuple(layer for layer in self.layers if layer.kind == "conv")

    @cached_property
    def consumers(self) -> dict[str, tuple[Layer, ...]]:
        """For each tensor the layers that read it."""
        readers: dict[str, list[Layer]] = {name: [] for name in self.tensors}
        for layer in self.layers:
            for name in dict.fromkeys(layer.inputs):
                readers[name].append(layer)
        return {name: tuple(layers) for name, layers in readers.items()}

    @cached_property
    def _deployed(self) -> Network:
        return _deploy(self)

    def storage(self, name: str) -> str:
        """The tensor that owns the storage of `name`."""
        while (owner := self.tensors[name].alias_of) is not None:
            name = owner
        return name

    def to_json(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        return {
            "format": "edgewise-network/1",
            "name": self.name,
            "inputs": list(self.inputs),
            "outputs": list(self.outputs),
            "tensors": [asdict(tensor) for tensor in self.tensors.values()],
            "layers": [asdict(layer) for layer in self.layers],
        }

    @staticmethod
    def from_json(data: Any) -> Network:
        """Rebuild a network from `to_json`'s data.

        Raises:
            InputError: if a field is missing, unknown or of the wrong type, or a tensor is read before it is written.
        """
        from pydantic import TypeAdapter, ValidationError

        if not isinstance(data, dict) or data.get("format") != "edgewise-network/1":
            raise InputError("this is no network: 'format' must be 'edgewise-network/1'")
        if missing := [key for key in ("name", "inputs", "outputs", "tensors", "layers") if key not in data]:
            raise InputError(f"this is no network: field {missing[0]!r} is missing")
        try:
            tensors = TypeAdapter(list[Tensor]).validate_python(data["tensors"])
            layers = TypeAdapter(tuple[Layer, ...]).validate_python(data["layers"])
            names = TypeAdapter(tuple[str, ...])
            inputs, outputs = names.validate_python(data["inputs"]), names.validate_python(data["outputs"])
        except ValidationError as error:
            first = error.errors()[0]
            raise InputError(f"this is no network: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
        network = Network(str(data["name"]), inputs, outputs, layers, {tensor.name: tensor for tensor in tensors})
        _check(network)
        return network


def _check(network: Network) -> None:
    for tensor in network.tensors.values():
        if not all(size >= 0 for size in tensor.shape):
            raise InputError(f"tensor {tensor.name!r} has shape {tensor.shape}; sizes are whole numbers >= 0")
        if tensor.alias_of is not None and tensor.alias_of not in network.tensors:
            raise InputError(f"tensor {tensor.name!r} shares storage with the unknown tensor {tensor.alias_of!r}")
    if missing := [name for name in network.inputs if name not in network.tensors]:
        raise InputError(f"input {missing[0]!r} is no tensor of the network")
    known = set(network.inputs)
    for layer in network.layers:
        for name in layer.inputs:
            if name not in known:
                raise InputError(f"layer {layer.name!r} reads tensor {name!r} before it is written")
        if layer.output not in network.tensors:
            raise InputError(f"layer {layer.name!r} writes the unknown tensor {layer.output!r}")
        known.add(layer.output)
    if missing := [name for name in network.outputs if name not in known]:
        raise InputError(f"output {missing[0]!r} is never written")


def deployed(network: Network) -> Network:
    """The network as a board runs it: norms folded into their convolution, activations done in place, dropout gone.

    A norm is folded where its input has no other reader. An activation becomes part of the layer before it (any layer
    with a single reader); its tensor disappears. Parameters of a folded norm become the producer's bias.
    """
    return network._deployed  # kept with the network: every memory model and the flash ask for it


def _deploy(network: Network) -> Network:
    renamed: dict[str, str] = {}
    layers: list[Layer] = []
    changes: list[dict[str, Any]] = []  # of each of `layers`
    writer: dict[str, int] = {}

    def single(name: str) -> bool:
        return len(network.consumers[name]) == 1 and name not in network.outputs

    for layer in network.layers:
        inputs = tuple(renamed.get(name, name) for name in layer.inputs)
        producer = writer.get(inputs[0]) if inputs else None
        fusable = producer is not None and single(layer.inputs[0])
        if layer.kind == "dropout":
            renamed[layer.output] = inputs[0]
            continue
        if layer.kind == "norm" and layer.op == "batch_norm" and fusable and producer is not None and layers[producer].kind in WEIGHTED:
            before = layers[producer]
            changes[producer].update(bias=True, params=before.weights + before.out_channels)
            renamed[layer.output] = inputs[0]
            continue
        if layer.kind == "activation" and fusable:
            renamed[layer.output] = inputs[0]
            continue
        writer[layer.output] = len(layers)
        in_shape = network.tensors[inputs[0]].shape if inputs else layer.in_shape
        changed = inputs != layer.inputs or in_shape != layer.in_shape
        changes.append({"inputs": inputs, "in_shape": in_shape} if changed else {})
        layers.append(layer)
    # One copy of a layer at most, and only where something changes: most of the time of a profile would go into them.
    layers = [replace(layer, **change) if change else layer for layer, change in zip(layers, changes, strict=True)]
    used = {name for layer in layers for name in (*layer.inputs, layer.output)} | set(network.inputs)
    tensors = {}
    for name, tensor in network.tensors.items():
        if name in used:
            alias = tensor.alias_of
            alias = renamed.get(alias, alias) if alias else None
            alias = alias if alias in used else None
            tensors[name] = replace(tensor, alias_of=alias) if alias != tensor.alias_of else tensor
    outputs = tuple(renamed.get(name, name) for name in network.outputs)
    return Network(network.name, network.inputs, outputs, tuple(layers), tensors)
