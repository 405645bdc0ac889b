"""Latency as it is: medians over interleaved repeats, with an interval, in ONNX Runtime and in torch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from depthprune.merge.borders import Merged
from depthprune.merge.conv import to_module


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one run.

    Attributes:
        median: of all repeats.
        low: lower end of the 95 % interval of the median (order statistics, no model assumed).
        high: upper end.
        repeats: how many.
    """

    median: float
    low: float
    high: float
    repeats: int


@dataclass(frozen=True)
class Comparison:
    """Two things timed in turn.

    Attributes:
        before: timing of the first.
        after: timing of the second.
        ratio: median of after/before over pairs of neighbouring runs; below 1 is faster.
        low: lower end of its 95 % interval.
        high: upper end.
    """

    before: Timing
    after: Timing
    ratio: float
    low: float
    high: float


def median_interval(values: np.ndarray) -> tuple[float, float, float]:
    """Median and its distribution-free 95 % interval (binomial order statistics, normal approximation)."""
    ordered, n = np.sort(values), len(values)
    half = 1.96 * math.sqrt(n) / 2
    low, high = max(0, math.floor(n / 2 - half)), min(n - 1, math.ceil(n / 2 + half))
    return float(np.median(ordered)), float(ordered[low]), float(ordered[high])


def interleaved(
    functions: dict[str, Callable[[], Any]], repeats: int = 200, warmup: int = 10, limit_s: float = math.inf
) -> dict[str, np.ndarray]:
    """Run functions in turn, the order reversed every other round, so that all see the same state of the machine.

    Args:
        functions: by name.
        repeats: rounds.
        warmup: runs of each before.
        limit_s: stop after this many seconds, but not before 20 rounds.

    Returns:
        Milliseconds per function, shape (rounds,).
    """
    names = list(functions)
    for function in functions.values():
        for _ in range(warmup):
            function()
    result, began = {name: list[float]() for name in names}, time.monotonic()
    for round_ in range(repeats):
        for name in names if round_ % 2 == 0 else names[::-1]:
            start = time.perf_counter_ns()
            functions[name]()
            result[name].append((time.perf_counter_ns() - start) / 1e6)
        if round_ >= 19 and time.monotonic() - began > limit_s:
            break
    return {name: np.array(values) for name, values in result.items()}


def compare(before: Callable[[], Any], after: Callable[[], Any], repeats: int = 200, limit_s: float = math.inf) -> Comparison:
    """Time two functions in turn; arguments as `interleaved`."""
    times = interleaved({"before": before, "after": after}, repeats, limit_s=limit_s)
    ratio, low, high = median_interval(times["after"] / times["before"])
    return Comparison(timing(times["before"]), timing(times["after"]), ratio, low, high)


def timing(values: np.ndarray) -> Timing:
    """Median and interval of measured milliseconds."""
    return Timing(*median_interval(values), len(values))


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Limit torch's threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def session(model: Path | bytes, threads: int = 1) -> Any:
    """An ONNX Runtime session on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"])


def onnx_runner(model: Path | bytes, x: np.ndarray, threads: int = 1) -> Callable[[], Any]:
    """A function that runs an ONNX model on a fixed input."""
    runtime = session(model, threads)
    feed = {runtime.get_inputs()[0].name: x}
    return lambda: runtime.run(None, feed)


def torch_runner(module: nn.Module, x: torch.Tensor) -> Callable[[], Any]:
    """A function that runs a module on a fixed input in inference mode."""
    module = module.eval()

    def run() -> torch.Tensor:
        with torch.inference_mode():
            return module(x)

    return run


class _Layer(nn.Module):
    def __init__(self, merged: Merged) -> None:
        super().__init__()
        self.inner = to_module(merged.conv)
        view = (-1, *[1] * merged.conv.axes)
        self.shift = None if merged.shift is None else merged.shift.float().reshape(view)
        self.map = None if merged.map is None else merged.map.float()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.inner(x if self.shift is None else x - self.shift)
        return y if self.map is None else y + self.map


def layer_ms(merged: Merged, shape: tuple[int, ...], backend: str, threads: int, repeats: int) -> float:
    """Median milliseconds of one layer, less that of an identity of the same input."""
    if backend == "torch":
        x = torch.randn(shape)
        with torch_threads(threads):
            return _difference(torch_runner(_Layer(merged), x), torch_runner(nn.Identity(), x), repeats)
    layer, empty = _onnx_layer(merged, shape), _onnx_identity(shape)
    array = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    return _difference(onnx_runner(layer, array, threads), onnx_runner(empty, array, threads), repeats)


def addition_ms(shape: tuple[int, ...], backend: str, threads: int, repeats: int) -> float:
    """Median milliseconds of adding two tensors."""
    if backend == "torch":
        x = torch.randn(shape)
        with torch_threads(threads):
            return _difference(lambda: x + x, lambda: x, repeats)
    array = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    from onnx import helper

    model = _onnx([helper.make_node("Add", ["x", "x"], ["y"])], shape, {})
    return _difference(onnx_runner(model, array, threads), onnx_runner(_onnx_identity(shape), array, threads), repeats)


def _difference(full: Callable[[], Any], empty: Callable[[], Any], repeats: int) -> float:
    times = interleaved({"full": full, "empty": empty}, repeats, warmup=5)
    return max(0.0, float(np.median(times["full"]) - np.median(times["empty"])))


def _onnx(nodes: list[Any], shape: tuple[int, ...], tensors: dict[str, np.ndarray]) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ascontiguousarray(value, dtype=np.float32), name) for name, value in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


def _onnx_identity(shape: tuple[int, ...]) -> bytes:
    from onnx import helper

    return _onnx([helper.make_node("Identity", ["x"], ["y"])], shape, {})


def _onnx_layer(merged: Merged, shape: tuple[int, ...]) -> bytes:
    from onnx import helper

    conv, nodes, last = merged.conv, [], "x"
    tensors = {"w": conv.weight.numpy(), "b": conv.bias.numpy()}
    if merged.shift is not None:
        tensors["s"] = merged.shift.reshape(-1, *[1] * conv.axes).numpy()
        nodes.append(helper.make_node("Sub", ["x", "s"], ["shifted"]))
        last = "shifted"
    if conv.axes == 0:
        tensors["w"] = conv.weight.T.numpy()
        nodes += [helper.make_node("MatMul", [last, "w"], ["product"]), helper.make_node("Add", ["product", "b"], ["y0"])]
    else:
        pads = [p[0] for p in conv.padding] + [p[1] for p in conv.padding]
        attributes: dict[str, Any] = {"strides": list(conv.stride), "pads": pads, "dilations": list(conv.dilation), "group": conv.groups}
        nodes.append(helper.make_node("Conv", [last, "w", "b"], ["y0"], **attributes))
    if merged.map is not None:
        tensors["m"] = merged.map.numpy()
        nodes.append(helper.make_node("Add", ["y0", "m"], ["y"]))
    else:
        nodes[-1].output[0] = "y"
    return _onnx(nodes, shape, tensors)
