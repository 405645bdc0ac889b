"""Whether a network fits a board: RAM for its tensors, flash for its weights."""

from __future__ import annotations

from dataclasses import dataclass

from edge_shared.devices import Device
from edge_shared.errors import CheckFailed, InputError
from edge_shared.units import format_bytes
from torch import Tensor, nn

from depthprune.guard import undo
from depthprune.merging import MergeResult


@dataclass(frozen=True)
class Fit:
    """What a network needs on a board, and what the board has.

    Attributes:
        device: name of the profile.
        memory_model: how RAM is predicted (the profile's own).
        ram_bytes: peak of the tensors in float32, and of the weights where the board keeps them in RAM.
        ram_budget: what one arena may take.
        flash_bytes: weights and biases in float32.
        flash_budget: None where storage has no fixed limit.
    """

    device: str
    memory_model: str
    ram_bytes: int
    ram_budget: int
    flash_bytes: int
    flash_budget: int | None

    @property
    def lacks(self) -> str | None:
        """What there is too little of, in words; None if the network fits."""
        if self.ram_bytes > self.ram_budget:
            need, have = format_bytes(self.ram_bytes), format_bytes(self.ram_budget)
            return f"{need} of RAM (memory model {self.memory_model}, float32), {self.device} has {have}"
        if self.flash_budget is not None and self.flash_bytes > self.flash_budget:
            return f"{format_bytes(self.flash_bytes)} of flash (float32), {self.device} has {format_bytes(self.flash_budget)}"
        return None


def fit(model: nn.Module, example: Tensor, device: Device) -> Fit:
    """Predict what a model needs on a device at batch 1."""
    from edge_shared import memory
    from edge_shared.memory.flash import flash
    from edge_shared.trace import trace

    network = trace(model.eval(), example[:1])
    weights, ram = flash(network, 32), memory.peak(network, device.memory_model).bytes
    ram += weights if device.weight_placement == "ram" and device.memory_model != "A" else 0  # model A counts them itself
    return Fit(device.name, device.memory_model, ram, device.ram_budget, weights, device.flash_budget)


def keep_what_fits(result: MergeResult, example: Tensor, device: Device) -> Fit:
    """Undo all merges if the network fits the device only without them; changes `result`.

    Returns:
        What the network that is left needs.

    Raises:
        CheckFailed: if it fits neither way.
    """
    merged = fit(result.model, example, device)
    if merged.lacks is None:
        return merged
    apart = fit(result.reference, example, device)
    if apart.lacks is not None:
        smaller = merged if merged.ram_bytes <= apart.ram_bytes else apart
        raise CheckFailed(f"the network does not fit: it needs {smaller.lacks}; remove more layers, take a smaller input or another device")
    undo(result, f"merged, the network would need {merged.lacks}")
    return apart


def choose_policy(asked: str | None, device: Device | None) -> str:
    """The policy asked for, else latency; for a microcontroller MACs, because timing this machine says nothing about one.

    Raises:
        InputError: for latency on a microcontroller.
    """
    if device is not None and device.kind == "mcu":
        if asked == "latency":
            raise InputError(f"--policy latency: milliseconds of this machine say nothing about {device.name}; choose macs or memory")
        return asked or "macs"
    return asked or "latency"
