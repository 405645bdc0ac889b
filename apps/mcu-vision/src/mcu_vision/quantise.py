"""Post-training quantisation of a torch network to `IntegerNet`: folded norms, per-channel weights, per-tensor activations.

Ranges of activations are the smallest and largest values over calibration images; those of the input follow from its
normalisation exactly.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from edge_shared.errors import InputError
from torch import fx, nn

from mcu_vision.integer import ADD_SHIFT, IntegerNet, Op, quantise_multiplier

_ADD = (operator.add, operator.iadd, torch.add)
_POOL = (F.adaptive_avg_pool2d,)
_RELU: dict[Any, float | None] = {F.relu: None, torch.relu: None, F.relu6: 6.0, "relu": None, "relu_": None}
_FLATTEN = (torch.flatten, "flatten")


@dataclass
class _Part:
    """A kernel call in float: what is folded into it so far, and the fx nodes whose value it gives."""

    kind: str
    name: str
    inputs: list[str]
    output: str
    weight: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    high: float | None = None
    is_rectified: bool = False


def quantise(
    model: nn.Module,
    batches: Iterable[torch.Tensor],
    *,
    input_shape: Sequence[int],
    normalisation: dict[str, Any],
    classes: Sequence[str],
    name: str = "network",
) -> IntegerNet:
    """Quantise a network of convolutions (plain and depthwise), batch norms, ReLU, ReLU6, additions, one global pooling, linear layers.

    Args:
        model: in evaluation mode; any module that torch.fx can trace.
        batches: calibration images (n, c, h, w), normalised, of the training part.
        input_shape: (1, c, h, w).
        normalisation: ``{"mean": [...], "std": [...]}`` per channel, of pixels in [0, 1].
        classes: names of the outputs.
        name: of the network.

    Raises:
        InputError: for a layer that has no int8 kernel here, or without calibration images.
    """
    graph = model if isinstance(model, fx.GraphModule) else fx.symbolic_trace(model)
    graph.eval()
    reader = _Reader(graph)
    parts = reader.parts()
    ranges = _ranges(graph, batches)
    channels, height, width = input_shape[1:]
    mean, std = (
        np.broadcast_to(np.asarray(normalisation.get(key) or [fallback]), channels) for key, fallback in (("mean", 0.0), ("std", 1.0))
    )
    ends = np.stack([(0 - mean) / std, (1 - mean) / std])
    grids = {reader.input: _grid(float(ends.min()), float(ends.max()))}
    shapes = {reader.input: (height, width, channels)}
    scale, zero = grids[reader.input]
    pixels = (np.arange(256)[None] / 255 - mean[:, None]) / std[:, None]
    table = np.clip(np.floor(pixels / scale + zero + 0.5), -128, 127).astype(np.int8)
    ops, aliases = [], {}
    last_use = {value: index for index, part in enumerate(parts) for value in part.inputs}
    for index, part in enumerate(parts):
        source = shapes[part.inputs[0]]
        if part.kind == "linear" and source[:2] != (1, 1):
            raise InputError(f"layer {part.name} (Linear) reads a map of {source[0]}x{source[1]}; a global average pooling comes before it")
        shapes[part.output] = _out_shape(part, source)
        grids[part.output] = grids[part.inputs[0]] if part.kind == "pool" else _grid(*ranges[part.output])
        if part.kind == "add":
            # A sum can lie over an operand that nobody reads afterwards.
            part.inputs.sort(key=lambda value: last_use[value] > index)
            if last_use[part.inputs[0]] == index and part.inputs[0] != part.inputs[1]:
                aliases[part.output] = part.inputs[0]
        ops.append(_op(part, source, shapes[part.output], grids))
    scale, zero = grids[parts[-1].output]
    return IntegerNet(
        name, reader.input, parts[-1].output, (height, width, channels), tuple(ops), table, scale, zero, aliases, tuple(classes)
    )


def _grid(low: float, high: float) -> tuple[float, int]:
    """Scale and zero of int8 values over [low, high], which is widened to hold 0."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / 255 or 1.0
    return scale, int(np.clip(np.floor(-128 - low / scale + 0.5), -128, 127))


def _out_shape(part: _Part, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    if part.kind in ("pool", "linear"):
        return (1, 1, shape[2] if part.weight is None else part.weight.shape[0])
    if part.kind == "add":
        return shape
    assert part.weight is not None
    height, width = ((shape[axis] + 2 * part.padding[axis] - part.kernel[axis]) // part.stride[axis] + 1 for axis in (0, 1))
    return (height, width, part.weight.shape[0])


def _op(part: _Part, source: tuple[int, int, int], shape: tuple[int, int, int], grids: dict[str, tuple[float, int]]) -> Op:
    scale, zero = grids[part.output]
    low = zero if part.is_rectified else -128
    high = 127 if part.high is None else min(127, zero + int(np.floor(part.high / scale + 0.5)))
    common: dict[str, Any] = {
        "kind": part.kind, "name": part.name, "inputs": tuple(part.inputs), "output": part.output, "in_shape": source, "out_shape": shape,
        "in_zeros": tuple(grids[name][1] for name in part.inputs), "out_zero": zero, "low": low, "high": high,
        "kernel": part.kernel, "stride": part.stride, "padding": part.padding,
    }  # fmt: skip
    if part.kind == "pool":
        return Op(**common | {"kernel": (source[0], source[1])})
    if part.kind == "add":
        scales = [grids[name][0] for name in part.inputs]
        widest = 2 * max(scales)
        factors = [*(value / widest for value in scales), widest / ((1 << ADD_SHIFT) * scale)]
        return Op(**common, **_factors(factors))
    assert part.weight is not None
    assert part.bias is not None
    weight, bias = part.weight.double().numpy(), part.bias.double().numpy()
    in_scale = grids[part.inputs[0]][0]
    flat = np.abs(weight.reshape(len(weight), -1)).max(1)
    # A channel with tiny weights must still hold its bias in 31 bits.
    scales_O = np.maximum.reduce([flat / 127, np.abs(bias) / (in_scale * 2.0**30), np.full(len(weight), 1e-12)])
    integers = np.clip(np.rint(weight / scales_O.reshape(-1, *[1] * (weight.ndim - 1))), -127, 127).astype(np.int8)
    integer_bias = np.rint(bias / (in_scale * scales_O)).astype(np.int64)
    largest = np.abs(integers.reshape(len(integers), -1).astype(np.int64)).sum(1) * 255 + np.abs(integer_bias)
    if largest.max() >= 1 << 31:
        raise InputError(f"layer {part.name} can overflow a 32-bit sum ({weight[0].size} products per output); it has too many inputs")
    if part.kind == "conv":
        integers = integers.transpose(0, 2, 3, 1)
    elif part.kind == "depthwise":
        integers = integers[:, 0].transpose(1, 2, 0)
    return Op(
        **common,
        weight=np.ascontiguousarray(integers),
        bias=integer_bias.astype(np.int32),
        **_factors(in_scale * scales_O / scale),
    )


def _factors(values: Iterable[float]) -> dict[str, Any]:
    pairs = [quantise_multiplier(float(value)) for value in values]
    return {"multiplier": np.array([m for m, _ in pairs], dtype=np.int32), "shift": np.array([s for _, s in pairs], dtype=np.int8)}


@torch.no_grad()
def _ranges(graph: fx.GraphModule, batches: Iterable[torch.Tensor]) -> dict[str, tuple[float, float]]:
    found: dict[str, tuple[float, float]] = {}

    class Observer(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                low, high = found.get(n.name, (0.0, 0.0))
                found[n.name] = (min(low, float(value.min())), max(high, float(value.max())))
            return value

    observer = Observer(graph)
    for batch in batches:
        observer.run(batch)
    if not found:
        raise InputError("no calibration images: the training part is empty")
    return found


class _Reader:
    """Reads an fx graph into parts; a norm or activation is folded into the part before it."""

    def __init__(self, graph: fx.GraphModule):
        self.graph = graph
        self.modules = dict(graph.named_modules())
        self.input = ""
        self.value: dict[fx.Node, str] = {}
        self.made: list[_Part] = []

    def parts(self) -> list[_Part]:
        for node in self.graph.graph.nodes:
            if node.op == "placeholder":
                if self.input:
                    raise InputError("the network has several inputs; one image is what this takes")
                self.input = self.value[node] = node.name
            elif node.op == "output":
                if not self.made or self.value.get(node.args[0]) != self.made[-1].output or self.made[-1].kind != "linear":
                    raise InputError("the network must end in a linear layer that gives the class scores")
            elif node.op != "get_attr":
                self._read(node)
        return self.made

    def _read(self, node: fx.Node) -> None:
        module = self.modules.get(str(node.target)) if node.op == "call_module" else None
        what: Any = module if module is not None else node.target
        before = self._producer(node)
        if isinstance(module, nn.Conv2d):
            self._conv(node, module)
        elif isinstance(module, nn.Linear):
            self._new("linear", node, weight=module.weight.detach(), bias=_bias(module, module.out_features))
        elif isinstance(module, nn.BatchNorm2d):
            self._norm(node, module, before)
        elif isinstance(module, nn.ReLU | nn.ReLU6) or what in _RELU or _is_relu6(module):
            high = 6.0 if isinstance(module, nn.ReLU6) or _is_relu6(module) else _RELU.get(what) if module is None else None
            if before is None or before.kind == "pool":
                raise self._refuse(node, "an activation follows a convolution, an addition or a linear layer")
            before.is_rectified, before.high = True, high
            self._rename(node, before)
        elif what in _ADD:
            if not all(isinstance(argument, fx.Node) for argument in node.args[:2]):
                raise self._refuse(node, "an addition takes two tensors")
            self._new("add", node, inputs=[self.value[argument] for argument in node.args[:2]])  # type: ignore[index]
        elif (isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1))) or (
            what in _POOL and node.args[1] in (1, (1, 1), [1, 1])
        ):
            self._new("pool", node)
        elif isinstance(module, nn.Flatten | nn.Identity | nn.Dropout | nn.Dropout2d) or what in _FLATTEN:
            # What the pooling leaves is one value per channel: flat already.
            self.value[node] = self.value[node.args[0]]  # type: ignore[index]
        else:
            raise self._refuse(node, "known are Conv2d, BatchNorm2d, ReLU, ReLU6, addition, global average pooling, Linear")

    def _refuse(self, node: fx.Node, hint: str) -> InputError:
        module = self.modules.get(str(node.target)) if node.op == "call_module" else None
        kind = type(module).__name__ if module is not None else getattr(node.target, "__name__", str(node.target))
        return InputError(f"layer {node.target if module is not None else node.name} ({kind}) has no int8 kernel here; {hint}")

    def _producer(self, node: fx.Node) -> _Part | None:
        """The part that made the node's input, if nobody else reads it."""
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or source not in self.value or len(source.users) != 1:
            return None
        return next((part for part in self.made if part.output == self.value[source]), None)

    def _rename(self, node: fx.Node, part: _Part) -> None:
        part.output = self.value[node] = node.name

    def _new(self, kind: str, node: fx.Node, inputs: list[str] | None = None, **settings: Any) -> None:
        name = str(node.target) if node.op == "call_module" else node.name
        part = _Part(kind, name, inputs or [self.value[node.args[0]]], node.name, **settings)  # type: ignore[index]
        self.made.append(part)
        self.value[node] = node.name

    def _conv(self, node: fx.Node, conv: nn.Conv2d) -> None:
        depthwise = conv.groups == conv.in_channels and conv.out_channels == conv.in_channels and conv.groups > 1
        if conv.groups != 1 and not depthwise:
            raise self._refuse(node, "grouped convolutions must be depthwise with as many outputs as inputs")
        if tuple(conv.dilation) != (1, 1) or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise self._refuse(node, "convolutions need dilation 1 and a number as zero padding")
        kernel, stride, padding = ((int(pair[0]), int(pair[1])) for pair in (conv.kernel_size, conv.stride, conv.padding))
        self._new(
            "depthwise" if depthwise else "conv", node, weight=conv.weight.detach(), bias=_bias(conv, conv.out_channels),
            kernel=kernel, stride=stride, padding=padding,
        )  # fmt: skip

    def _norm(self, node: fx.Node, norm: nn.BatchNorm2d, before: _Part | None) -> None:
        if before is None or before.weight is None or before.is_rectified or norm.running_mean is None or norm.running_var is None:
            raise self._refuse(node, "a batch norm directly follows its convolution")
        gain = torch.rsqrt(norm.running_var.double() + norm.eps)
        if norm.weight is not None:
            gain = gain * norm.weight.detach().double()
        shift = norm.bias.detach().double() if norm.bias is not None else torch.zeros_like(gain)
        assert before.bias is not None
        before.bias = (before.bias.double() - norm.running_mean.double()) * gain + shift
        before.weight = before.weight.double() * gain.reshape(-1, 1, 1, 1)
        self._rename(node, before)


def _bias(layer: nn.Conv2d | nn.Linear, size: int) -> torch.Tensor:
    return layer.bias.detach() if layer.bias is not None else torch.zeros(size)


def _is_relu6(module: nn.Module | None) -> bool:
    return isinstance(module, nn.Hardtanh) and (module.min_val, module.max_val) == (0.0, 6.0)
