"""Does it fit a board: estimated flash, RAM and instructions against a device profile; and what the compiler measures."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from edge_shared import devices

from tinyeeg import cost
from tinyeeg.deployed import Deployed

STACK_BYTES = 2048  # reserved for the stack beside the state
# Instructions per multiplication of `cost.multiplications`, the most seen on the emulated Cortex-M4 (benchmarks/tinyeeg/firmware.py).
INSTRUCTIONS_PER_MULTIPLICATION = {"float": 20, "q15": 25}
SHARE_OF_CLOCK = 0.5  # what the chain may take, at one instruction per cycle; the rest is for radio, sampling and sleep


@dataclass(frozen=True)
class Check:
    """One line: what is needed, what is there, in bytes or instructions per second."""

    what: str
    needed: int
    available: int

    @property
    def fits(self) -> bool:
        """Whether it fits."""
        return self.needed <= self.available


@dataclass(frozen=True)
class Fit:
    """A model against a board; all `needed` figures are estimates."""

    board: str
    checks: tuple[Check, ...]

    @property
    def fits(self) -> bool:
        """Whether everything fits."""
        return all(check.fits for check in self.checks)


def check(deployed: Deployed, number: str, board: str) -> Fit:
    """Hold a model against a board.

    Args:
        deployed: the model.
        number: ``float`` or ``q15``.
        board: device profile, name or TOML file.
    """
    device = devices.load(board)
    estimate = cost.estimate(deployed)
    instructions = round(estimate.multiplications * INSTRUCTIONS_PER_MULTIPLICATION[number] * estimate.decisions_per_s)
    checks = [
        Check("RAM bytes with stack", estimate.ram[number] + STACK_BYTES, device.ram_budget),
        Check("instructions per second", instructions, round(device.clock_hz * SHARE_OF_CLOCK)),
    ]
    if device.flash_budget is not None:
        checks.insert(0, Check("flash bytes", estimate.flash[number], device.flash_budget))
    return Fit(device.name, tuple(checks))


def measure(folder: str | Path) -> dict[str, int] | None:
    """Compile ``firmware.elf`` of an exported folder for a Cortex-M4F and weigh it; None without arm-none-eabi-gcc.

    Returns:
        ``flash_bytes`` (text and data, start-up code included) and ``ram_bytes`` (data and bss, without stack).
    """
    if not (shutil.which("arm-none-eabi-gcc") and shutil.which("arm-none-eabi-size") and shutil.which("make")):
        return None
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as temporary:
        work = Path(temporary) / "c"
        shutil.copytree(folder, work, ignore=shutil.ignore_patterns("*.elf", "example"))
        done = subprocess.run(["make", "-s", "firmware"], cwd=work, capture_output=True, text=True, check=True)
    text, data, bss = (int(word) for word in done.stdout.splitlines()[1].split()[:3])
    return {"flash_bytes": text + data, "ram_bytes": data + bss}
