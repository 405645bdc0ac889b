"""What a network must fit into: a memory model, a number width, a device, and limits on RAM, flash and MACs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from edge_shared.errors import CheckFailed, InputError
from edge_shared.memory import TINYENGINE_CODE, MemoryModel
from edge_shared.units import format_bytes, format_count

if TYPE_CHECKING:
    from edge_shared.devices import Device

    from moofa.costs import Costs

LIMITS = ("ram", "flash", "macs", "latency_ms")
"""Costs that a budget can limit and a front can keep low."""
Number = TypeVar("Number", int, np.ndarray)


@dataclass(frozen=True)
class Target:
    """How costs are counted.

    Attributes:
        memory_model: A to E, see `edge_shared.memory`.
        bits: per weight and activation.
        device: what it must run on, if known.
    """

    memory_model: MemoryModel = "D"
    bits: int = 8
    device: Device | None = None

    def __post_init__(self) -> None:
        if self.memory_model not in ("A", "B", "C", "D", "E"):
            raise InputError(f"unknown memory model {self.memory_model!r}; known: A, B, C, D, E")
        if not 1 <= self.bits <= 64:
            raise InputError(f"{self.bits} bits per element is out of range 1 to 64")

    @property
    def has_scratch(self) -> bool:
        """Whether the runtime needs scratch buffers: TinyEngine's, on a device that reads weights from flash."""
        return self.device is not None and self.device.weight_placement == "flash"

    def ram(self, peak_bytes: Number, weight_bytes: Number, scratch_bytes: Number) -> Number:
        """Bytes of RAM: the peak, with the runtime's scratch, or with all weights where the device keeps them in RAM.

        Model A already counts each layer's weights (the working set that should stay in a cache), so it adds none.
        """
        if self.device is None:
            return peak_bytes
        if self.has_scratch:
            return peak_bytes + scratch_bytes
        return peak_bytes if self.memory_model == "A" else peak_bytes + weight_bytes


@dataclass(frozen=True)
class Budget:
    """Upper limits; None is no limit.

    Attributes:
        ram: bytes of RAM (`Target.ram`).
        flash: bytes of weights, biases and scales.
        macs: multiply-accumulates of one forward pass.
        latency_ms: estimated milliseconds; needs a latency table.
    """

    ram: int | None = None
    flash: int | None = None
    macs: int | None = None
    latency_ms: float | None = None

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are set, by name."""
        return {name: value for name in LIMITS if (value := getattr(self, name)) is not None}

    def allows(self, costs: Costs) -> np.ndarray:
        """Which networks are within every limit: (n,) bool."""
        mask = np.ones(len(costs), dtype=bool)
        for name, limit in self.limits.items():
            mask &= getattr(costs, name) <= limit
        return mask

    def describe(self) -> str:
        """The limits in words."""
        return ", ".join(in_words(name, value) for name, value in self.limits.items()) or "no limit"


def in_words(name: str, value: float) -> str:
    """One limit, or what is needed of it, with its unit."""
    if name == "latency_ms":
        return f"{value:.4g} ms (estimated)"
    if name == "macs":
        return f"{format_count(round(value))}MACs"
    return f"{value:,.0f} bytes of {name} ({format_bytes(round(value))})"


def device_budget(target: Target) -> Budget:
    """The budget that a device sets.

    A microcontroller: its largest RAM region, and its flash without TinyEngine's code. A Linux board: its last-level cache
    under memory model A (the working set of a layer, weights included), its RAM under another model.

    Raises:
        InputError: if the target has no device.
    """
    device = target.device
    if device is None:
        raise InputError("there is no device to take a budget from; name one, or give the limits")
    if device.kind == "mcu":
        flash = device.flash_budget
        return Budget(ram=device.ram_budget, flash=None if flash is None else max(flash - TINYENGINE_CODE, 0))
    cache = max((size for level, size in device.caches.items() if level in ("l2", "l3")), default=None)
    return Budget(ram=cache if target.memory_model == "A" and cache else device.ram_budget)


class Infeasible(CheckFailed):
    """No network of the space is within the budget (exit code 1).

    Attributes:
        smallest: for each limit, the smallest value that any network of the space needs.
    """

    def __init__(self, message: str, smallest: dict[str, float]):
        super().__init__(message)
        self.smallest = smallest
