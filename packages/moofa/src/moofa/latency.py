"""Latency: each block of a space timed alone on this machine, sums of them as an estimate, and whole networks timed for comparison.

What runs is ONNX Runtime in float32. An estimate is additive: stem, chosen blocks, head, and the cost of one call. It knows nothing
of caches that one block leaves warm for the next; `measure` times the whole network, and both figures are always given.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from edge_shared.architectures import mobile
from edge_shared.architectures.mobile import MobileConfig
from edge_shared.errors import InputError, require
from edge_shared.files import read_json, write_json
from edge_shared.network import Layer, Network

from moofa.flatness import block_of
from moofa.space import Choice, Space

FORMAT = "moofa-latency/1"
_ACTIVATIONS = {"relu": "Relu", "hardswish": "HardSwish", "hardsigmoid": "HardSigmoid"}


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds of the blocks of a space on one machine.

    Attributes:
        space: fingerprint of the space.
        machine: processor, runtime and threads.
        fixed: stem, fixed first block and head, per resolution.
        blocks: per place of an elastic block, per (resolution, kernel, expansion): ``[places][resolutions][kernels][expands]``.
        overhead: of one call of the runtime; it is in neither of the others.
    """

    space: str
    machine: dict[str, Any]
    fixed: list[float]
    blocks: list[list[list[list[float]]]]
    overhead: float

    @cached_property
    def monotone(self) -> np.ndarray:
        """The blocks as an array in which no larger option is faster than a smaller one, as noise would have it.

        Each value is the largest of those whose resolution, kernel and expansion are not larger.
        """
        values = np.array(self.blocks, dtype=np.float64)
        for axis in (1, 2, 3):
            values = np.maximum.accumulate(values, axis=axis)
        return values

    @cached_property
    def monotone_fixed(self) -> np.ndarray:
        """Stem, head and one call, per resolution, in the same way."""
        return np.maximum.accumulate(np.array(self.fixed)) + self.overhead

    def save(self, path: Path) -> None:
        """Write the table as JSON."""
        write_json(path, {"format": FORMAT, **asdict(self)})

    @staticmethod
    def load(path: Path, space: Space) -> LatencyTable:
        """Read a table.

        Raises:
            InputError: if it is none, or of another space.
        """
        data = read_json(path, "latency table")
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise InputError(f"{path} is no latency table; make one with `moofa latency --out {path}`")
        if data.get("space") != space.fingerprint():
            raise InputError(f"latency table {path} was made for another space; run `moofa latency` again")
        try:
            table = LatencyTable(**{key: value for key, value in data.items() if key != "format"})
            shape, fixed = table.monotone.shape, table.monotone_fixed.shape
        except (TypeError, ValueError) as error:
            raise InputError(f"latency table {path} is damaged ({type(error).__name__}); run `moofa latency` again") from error
        if shape != _shape(space) or fixed != (len(space.resolutions),):
            raise InputError(f"latency table {path} is damaged (shape {shape}); run `moofa latency` again")
        return table


@dataclass(frozen=True)
class Latency:
    """Milliseconds of a network on this machine: median and quartiles of `runs` calls."""

    median_ms: float
    quartiles_ms: tuple[float, float]
    runs: int
    machine: dict[str, Any]


def _shape(space: Space) -> tuple[int, int, int, int]:
    return (
        sum(stage.depths[-1] for stage in space.stages),
        len(space.resolutions),
        max(len(stage.kernels) for stage in space.stages),
        max(len(stage.expands) for stage in space.stages),
    )


def measure_space(
    space: Space, *, threads: int = 1, milliseconds: float = 20.0, advance: Callable[[], None] = lambda: None
) -> LatencyTable:
    """Time every block of a space.

    Args:
        space: the space.
        threads: of ONNX Runtime.
        milliseconds: spent on each block; the median of the calls counts.
        advance: called after each of ``resolutions x kernels x expands`` rounds.

    Raises:
        MissingExtra: without onnx and onnxruntime.
    """
    places, resolutions, kernels, expands = _shape(space)
    first = 1 if space.first else 0
    overhead = _time(_identity(), {"x": np.zeros((1, 1), np.float32)}, threads, milliseconds)[0]
    blocks = np.zeros((places, resolutions, kernels, expands))
    fixed = np.zeros(resolutions)
    for r, k, e in np.ndindex(resolutions, kernels, expands):
        chosen = tuple(
            ((stage.kernels[min(k, len(stage.kernels) - 1)], stage.expands[min(e, len(stage.expands) - 1)]),) * stage.depths[-1]
            for stage in space.stages
        )
        network = mobile.network(space.config(Choice(space.resolutions[r], chosen)))
        groups: dict[int, list[Layer]] = {}
        stage_of = -1
        for layer in network.layers:
            block = block_of(layer.name)
            # Stem and fixed block are group -1, the elastic blocks 0, 1, ..., the head comes last.
            if block is not None:
                stage_of = block - first
            elif stage_of >= 0:
                stage_of = places
            groups.setdefault(max(stage_of, -1), []).append(layer)
        for place, layers in groups.items():
            if place in (-1, places):
                if (k, e) != (0, 0):
                    continue
                fixed[r] += _alone(network, layers, threads, milliseconds, overhead)
            else:
                blocks[place, r, k, e] = _alone(network, layers, threads, milliseconds, overhead)
        advance()
    return LatencyTable(space.fingerprint(), machine(threads), fixed.tolist(), blocks.tolist(), overhead)


def measure(config: MobileConfig, *, threads: int = 1, milliseconds: float = 300.0) -> Latency:
    """Time a whole network (random weights, which take as long as trained ones).

    Raises:
        MissingExtra: without onnx and onnxruntime.
    """
    network = mobile.network(config)
    times = _times(_model(network, network.layers), _feeds(network, network.layers), threads, milliseconds)
    return Latency(
        float(np.median(times)), (float(np.quantile(times, 0.25)), float(np.quantile(times, 0.75))), len(times), machine(threads)
    )


def machine(threads: int) -> dict[str, Any]:
    """What a latency was measured on."""
    from edge_shared.report import environment

    runtime = _library("onnxruntime")
    return {
        "processor": environment().processor or platform.machine(),
        "runtime": f"onnxruntime {runtime.__version__}",
        "precision": "float32",
        "threads": threads,
    }


def _library(name: str) -> Any:
    require(name, "moofa[torch]")
    return import_module(name)


def _alone(network: Network, layers: Sequence[Layer], threads: int, milliseconds: float, overhead: float) -> float:
    median = _time(_model(network, layers), _feeds(network, layers), threads, milliseconds)[0]
    return max(median - overhead, 0.0)


def _time(model: bytes, feeds: dict[str, Any], threads: int, milliseconds: float) -> tuple[float, int]:
    times = _times(model, feeds, threads, milliseconds)
    return float(np.median(times)), len(times)


def _times(model: bytes, feeds: dict[str, Any], threads: int, milliseconds: float) -> list[float]:
    """Milliseconds of each call, after two that do not count; at least five calls."""
    runtime = _library("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    for _ in range(2):
        session.run(None, feeds)
    times: list[float] = []
    end = time.perf_counter() + milliseconds / 1000
    while len(times) < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        session.run(None, feeds)
        times.append(1000 * (time.perf_counter() - start))
    return times


def _identity() -> bytes:
    onnx = _library("onnx")
    value = [onnx.helper.make_tensor_value_info(name, 1, [1, 1]) for name in "xy"]
    return _finish(onnx, [onnx.helper.make_node("Identity", ["x"], ["y"])], value[:1], value[1:], [])


def _outside(layers: Sequence[Layer]) -> list[str]:
    """Tensors that the layers read and do not make."""
    made = {layer.output for layer in layers}
    return list(dict.fromkeys(name for layer in layers for name in layer.inputs if name not in made))


def _feeds(network: Network, layers: Sequence[Layer]) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=network.tensors[name].shape).astype(np.float32) for name in _outside(layers)}


def _model(network: Network, layers: Sequence[Layer]) -> bytes:
    """Some layers of a network as an ONNX model with random weights; norms are folded, which leaves nothing of them."""
    onnx = _library("onnx")
    rng = np.random.default_rng(0)
    nodes, weights = [], []
    renamed: dict[str, str] = {}

    def constant(name: str, array: np.ndarray) -> str:
        weights.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
        return name

    for layer in layers:
        inputs = [renamed.get(name, name) for name in layer.inputs]
        settings: dict[str, Any] = {}
        if layer.kind == "norm":
            renamed[layer.output] = inputs[0]
            continue
        if layer.kind == "conv":
            shape = (layer.out_channels, layer.in_channels // layer.groups, *layer.kernel)
            inputs += [
                constant(f"{layer.name}.w", rng.normal(size=shape) / np.prod(shape[1:]) ** 0.5),
                constant(f"{layer.name}.b", np.zeros(shape[0])),
            ]
            settings = {
                "kernel_shape": layer.kernel,
                "strides": layer.stride,
                "pads": [*layer.padding, *layer.padding],
                "group": layer.groups,
            }
            kind = "Conv"
        elif layer.kind == "linear":
            shape = (layer.in_channels, layer.out_channels)
            inputs += [constant(f"{layer.name}.w", rng.normal(size=shape)), constant(f"{layer.name}.b", np.zeros(shape[1]))]
            kind = "Gemm"
        elif layer.op == "relu6":
            inputs += [constant(f"{layer.name}.low", np.array(0.0)), constant(f"{layer.name}.high", np.array(6.0))]
            kind = "Clip"
        elif layer.kind == "activation":
            kind = _ACTIVATIONS[layer.op]
        else:
            kind = {"add": "Add", "mul": "Mul", "pool": "GlobalAveragePool", "reshape": "Flatten"}[layer.kind]
        nodes.append(onnx.helper.make_node(kind, inputs, [layer.output], **settings))
    last = renamed.get(layers[-1].output, layers[-1].output)
    info = [onnx.helper.make_tensor_value_info(name, 1, list(network.tensors[name].shape)) for name in _outside(layers)]
    return _finish(onnx, nodes, info, [onnx.helper.make_tensor_value_info(last, 1, list(network.tensors[last].shape))], weights)


def _finish(onnx: Any, nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: list[Any]) -> bytes:
    graph = onnx.helper.make_graph(nodes, "part", inputs, outputs, weights)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    return model.SerializeToString()
