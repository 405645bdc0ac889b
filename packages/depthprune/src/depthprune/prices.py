"""What a layer costs: multiply-accumulates, measured milliseconds, or bytes of memory."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Literal, Protocol, get_args

from edge_shared.errors import InputError

from depthprune.merge.borders import Merged
from depthprune.segments import Combine

Policy = Literal["macs", "latency", "memory", "always"]
POLICIES: tuple[str, ...] = get_args(Policy)
Backend = Literal["onnxruntime", "torch"]


class Price(Protocol):
    """A cost per layer and how the costs of a chain combine; `noise` is the share below which a difference between two costs says nothing."""

    combine: Combine
    unit: str
    noise: float

    def layer(self, merged: Merged, shape: tuple[int, ...]) -> float:
        """Cost of one (merged) layer on an input of this shape, batch first."""

    def addition(self, shape: tuple[int, ...]) -> float:
        """Cost of adding a skip of this shape."""


def sizes(merged: Merged, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the layer's output for the input `shape`."""
    conv = merged.conv
    if conv.axes == 0:
        return (*shape[:-1], conv.out_channels)
    return (shape[0], conv.out_channels, *conv.size(shape[2:]))


class Macs:
    """Multiply-accumulates per image."""

    combine: Combine = "sum"
    unit = "MACs"
    noise = 0.0

    def layer(self, merged: Merged, shape: tuple[int, ...]) -> float:
        """Weights times output positions."""
        out = sizes(merged, shape)
        positions = prod(out[1:-1]) if merged.conv.axes == 0 else prod(out[2:])
        return float(merged.conv.weight.numel() * positions)

    def addition(self, shape: tuple[int, ...]) -> float:
        """Additions do not count."""
        return 0.0


class Memory:
    """Bytes of the tensors that are live while the layer runs (memory model D, float32): its input and output, constants included.

    What a skip keeps alive meanwhile is added by the planner. Weights are not tensors of the arena: they lie in flash.
    """

    combine: Combine = "max"
    unit = "bytes"
    noise = 0.0

    def layer(self, merged: Merged, shape: tuple[int, ...]) -> float:
        """Input and output, and for const-pad the shifted copy of the input."""
        copies = 1 if merged.shift is None else 2
        return 4.0 * max(copies * prod(shape[1:]), prod(shape[1:]) + prod(sizes(merged, shape)[1:]))

    def addition(self, shape: tuple[int, ...]) -> float:
        """Two inputs and the output."""
        return 12.0 * prod(shape[1:])


class Always:
    """Fewest layers."""

    combine: Combine = "sum"
    unit = "layers"
    noise = 0.0

    def layer(self, merged: Merged, shape: tuple[int, ...]) -> float:
        """One."""
        return 1.0

    def addition(self, shape: tuple[int, ...]) -> float:
        """One."""
        return 1.0


class Latency:
    """Median milliseconds of the layer alone at batch 1, without the cost of calling the runtime; measured once per shape."""

    combine: Combine = "sum"
    unit = "ms"
    noise = 0.05

    def __init__(self, backend: Backend = "onnxruntime", threads: int = 1, repeats: int = 60) -> None:
        self.backend, self.threads, self.repeats = backend, threads, repeats
        self._known: dict[tuple[object, ...], float] = {}

    def layer(self, merged: Merged, shape: tuple[int, ...]) -> float:
        """Measured."""
        conv = merged.conv
        key = (
            tuple(conv.weight.shape),
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups,
            shape[1:],
            merged.shift is None,
            merged.map is None,
        )
        if key not in self._known:
            from depthprune.latency import layer_ms

            self._known[key] = layer_ms(merged, (1, *shape[1:]), self.backend, self.threads, self.repeats)
        return self._known[key]

    def addition(self, shape: tuple[int, ...]) -> float:
        """Measured."""
        key = ("add", shape[1:])
        if key not in self._known:
            from depthprune.latency import addition_ms

            self._known[key] = addition_ms((1, *shape[1:]), self.backend, self.threads, self.repeats)
        return self._known[key]


def make(policy: str, backend: Backend = "onnxruntime", threads: int = 1) -> Price:
    """The price of a policy.

    Raises:
        InputError: for an unknown policy or runtime.
    """
    if policy not in POLICIES:
        raise InputError(f"unknown policy {policy!r}; choose one of {', '.join(POLICIES)}")
    if backend not in get_args(Backend):
        raise InputError(f"unknown runtime {backend!r}; choose onnxruntime or torch")
    if policy == "latency":
        return Latency(backend, threads)
    prices: dict[str, Callable[[], Price]] = {"macs": Macs, "memory": Memory, "always": Always}
    return prices[policy]()
