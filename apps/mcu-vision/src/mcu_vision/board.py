"""What the C code is compiled and linked for, from a device profile."""

from __future__ import annotations

from dataclasses import dataclass

from edge_shared.devices import Device
from edge_shared.errors import InputError

MPS2_MEMORY = 4 << 20
"""Bytes of each of the two memories of QEMU's mps2 boards."""
_CORES = {
    # core: (compiler's name, emulated machine, what the emulated program is compiled for)
    "Cortex-M0+": ("cortex-m0plus", "mps2-an385", "cortex-m0plus"),
    "Cortex-M3": ("cortex-m3", "mps2-an385", "cortex-m3"),
    "Cortex-M4": ("cortex-m4", "mps2-an386", "cortex-m4"),
    "Cortex-M4F": ("cortex-m4", "mps2-an386", "cortex-m4"),
    "Cortex-M7": ("cortex-m7", "mps2-an500", "cortex-m7"),
    "Cortex-M33": ("cortex-m33", "mps2-an386", "cortex-m4"),
    "Cortex-M55": ("cortex-m55", "mps3-an547", "cortex-m55"),
}


@dataclass(frozen=True)
class Board:
    """A board to build for.

    Attributes:
        name: of the device.
        cpu: the compiler's name of its core.
        ram, flash: bytes that the firmware may take.
        machine: QEMU's machine that runs the emulated program.
        emulated_cpu: the core that the emulated program is compiled for.
    """

    name: str
    cpu: str
    ram: int
    flash: int
    machine: str
    emulated_cpu: str


def board_of(device: Device) -> Board:
    """The board of a device profile.

    Raises:
        InputError: if it has no Cortex-M core that is known here.
    """
    core = device.core.removeprefix("Arm ").strip()
    if core not in _CORES:
        raise InputError(
            f"device {device.name} has core {device.core or 'unknown'!r}; known are {', '.join(f'Arm {name}' for name in _CORES)}"
        )
    cpu, machine, emulated_cpu = _CORES[core]
    return Board(device.name, cpu, device.ram_budget, device.flash_budget or MPS2_MEMORY, machine, emulated_cpu)
