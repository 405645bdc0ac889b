"""Compile, weigh and emulate the generated sources; each step says None where its tool is not installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from edge_shared.errors import CheckFailed
from numpy.typing import NDArray

from mcu_vision.board import Board
from mcu_vision.integer import Int8, IntegerNet

INSTRUCTIONS_PER_TICK = {"mps2": 40.0, "mps3": 31.25}
"""Of QEMU's boards: SysTick at 25 or 32 MHz, and one instruction per nanosecond under ``-icount shift=0``."""
ANSWER = 8
"""Bytes of RAM beside the arena: the class that was found, padded."""


@dataclass(frozen=True)
class Sizes:
    """The linked firmware, in bytes, by arm-none-eabi-size.

    Attributes:
        flash: vectors, code, constants and initial values of variables.
        data, bss, stack: sections in RAM.
    """

    flash: int
    data: int
    bss: int
    stack: int

    @property
    def ram(self) -> int:
        """All RAM: variables and the stack that is kept for it."""
        return self.data + self.bss + self.stack


@dataclass(frozen=True)
class Emulated:
    """A run in QEMU.

    Attributes:
        machine, cpu: what was emulated.
        outputs: int8 (images, classes).
        instructions: executed by one `mv_run`, the median over the images, to one tick (never cycles, never a time).
        stack_bytes: the most stack that `mv_run` used.
    """

    machine: str
    cpu: str
    outputs: Int8
    instructions: int
    stack_bytes: int


def has_compiler() -> bool:
    """Whether arm-none-eabi-gcc, its size and make are installed."""
    return all(shutil.which(tool) for tool in ("arm-none-eabi-gcc", "arm-none-eabi-size", "make"))


def has_emulator() -> bool:
    """Whether QEMU is installed as well."""
    return has_compiler() and shutil.which("qemu-system-arm") is not None


def weigh(folder: Path, board: Board) -> Sizes | None:
    """Compile ``firmware.elf`` and read its sections; None without a compiler.

    Raises:
        CheckFailed: if it does not fit the board's memories (the linker says by how much) or does not compile.
    """
    if not has_compiler():
        return None
    _make(folder, "firmware", board)
    listing = subprocess.run(["arm-none-eabi-size", "-A", "firmware.elf"], cwd=folder, capture_output=True, text=True, check=True).stdout
    sections = {name: int(size) for name, size in re.findall(r"^(\.[\w.]+)\s+(\d+)", listing, re.MULTILINE)}
    part = {name: sections.get(name, 0) for name in (".text", ".ARM.exidx", ".data", ".bss", ".stack")}
    return Sizes(part[".text"] + part[".ARM.exidx"] + part[".data"], part[".data"], part[".bss"], part[".stack"])


def emulate(folder: Path, net: IntegerNet, board: Board, images: NDArray[np.uint8], timeout: float = 300) -> Emulated | None:
    """Run the network on images (N, H, W, C) in QEMU; None where it is not installed.

    Raises:
        CheckFailed: if it does not run to its end.
    """
    if not has_emulator():
        return None
    _make(folder, "emulated", board)
    (folder / "images.bin").write_bytes(np.ascontiguousarray(images).tobytes())
    (folder / "outputs.bin").unlink(missing_ok=True)
    try:
        done = subprocess.run(
            ["make", "-s", "qemu"], cwd=folder, capture_output=True, text=True, check=False, timeout=timeout, env=_plain()
        )
    except subprocess.TimeoutExpired as error:
        raise CheckFailed(f"QEMU did not finish {len(images)} images in {timeout:.0f} seconds; take fewer or a smaller network") from error
    content = (folder / "outputs.bin").read_bytes() if (folder / "outputs.bin").is_file() else b""
    record = np.dtype([("outputs", np.int8, (len(net.classes),)), ("ticks", "<u4"), ("stack", "<u4")])
    if done.returncode or len(content) != len(images) * record.itemsize:
        raise CheckFailed(
            f"the emulated firmware ended with code {done.returncode} after {len(content) // record.itemsize} images: {done.stderr[:200]}"
        )
    rows = np.frombuffer(content, record)
    instructions = round(int(np.median(rows["ticks"])) * INSTRUCTIONS_PER_TICK[board.machine.split("-")[0]])
    for name in ("images.bin", "outputs.bin"):
        (folder / name).unlink()
    return Emulated(board.machine, board.emulated_cpu, rows["outputs"].copy(), instructions, int(rows["stack"].max()))


def run_on_host(folder: Path, net: IntegerNet, images: NDArray[np.uint8], flags: str = "-O2") -> Int8:
    """Compile the same C for this computer and run it: int8 outputs (N, classes)."""
    subprocess.run(["make", "-s", "-B", "host", f"CFLAGS={flags}"], cwd=folder, capture_output=True, text=True, check=True, env=_plain())
    done = subprocess.run([str(folder / "host")], input=np.ascontiguousarray(images).tobytes(), capture_output=True, check=True)
    return np.frombuffer(done.stdout, np.int8).reshape(len(images), len(net.classes))


def _plain() -> dict[str, str]:
    # A surrounding make or build hands its own options down; they are none of ours.
    return {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "CFLAGS", "CC")}


def _make(folder: Path, target: str, board: Board) -> None:
    done = subprocess.run(["make", "-s", target], cwd=folder, capture_output=True, text=True, check=False, env=_plain())
    if done.returncode == 0:
        return
    overflows = re.findall(r"region [`'](FLASH|RAM)' overflowed by (\d+) bytes", done.stderr)
    if overflows:
        words = " and ".join(f"{name} by {int(size):,} bytes" for name, size in dict(overflows).items())
        raise CheckFailed(f"the firmware does not fit {board.name} (RAM {board.ram:,}, flash {board.flash:,} bytes): it is over {words}")
    first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[:200])
    raise CheckFailed(f"the {target} did not compile: {first}")
