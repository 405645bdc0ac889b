"""What is installed on this machine, and what each missing piece would be for."""

from __future__ import annotations

import shutil
import socket
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from edge_shared.report import Environment, environment

_PACKAGES: tuple[tuple[str, str, str, str], ...] = (
    # distribution, module, what needs it, how to get it
    ("torch", "torch", "training, artifacts, everything with a neural network", "pip install 'edge-shared[torch]'"),
    ("torchvision", "torchvision", "data sets and architectures by name", "pip install 'edge-shared[torch]'"),
    ("timm", "timm", "architectures by name", "pip install 'edge-shared[torch]'"),
    ("scikit-learn", "sklearn", "the bundled digits", "pip install 'edge-shared[torch]'"),
    ("lightning-fabric", "lightning_fabric", "training", "pip install 'edge-shared[torch]'"),
    ("onnxruntime", "onnxruntime", "verifying and quantising ONNX", "pip install 'edge-shared[torch]'"),
    ("onnxscript", "onnxscript", "exporting ONNX", "pip install 'edge-shared[torch]'"),
    ("ray", "ray", "sweeps on a cluster (--backend ray)", "pip install 'edge-shared[ray]'"),
)
_TOOLS: tuple[tuple[str, tuple[str, ...], str, str], ...] = (
    ("QEMU (ARM microcontrollers)", ("qemu-system-arm",), "running microcontroller demos without a board", "apt install qemu-system-arm"),
    ("ARM compiler", ("arm-none-eabi-gcc",), "building microcontroller demos", "apt install gcc-arm-none-eabi"),
    ("can-utils", ("candump",), "recording and replaying CAN traffic", "apt install can-utils"),
    ("Git", ("git",), "development", "apt install git"),
)


@dataclass(frozen=True)
class Check:
    """One thing that may be there."""

    name: str
    kind: Literal["package", "tool", "hardware"]
    found: bool
    detail: str  # version or place; what would bring it if it is missing
    used_for: str


@dataclass(frozen=True)
class Diagnosis:
    """All checks, and the machine that they were made on."""

    environment: Environment
    checks: tuple[Check, ...]
    missing: tuple[str, ...]


def diagnose() -> Diagnosis:
    """Look for packages, tools and hardware; nothing is imported or started."""
    here = environment()
    checks = [*(_package(*entry) for entry in _PACKAGES), *(_tool(*entry) for entry in _TOOLS), _socketcan()]
    checks.append(Check("GPU", "hardware", here.gpu is not None, here.gpu or "none; the CPU is used", "faster training (--device cuda)"))
    return Diagnosis(here, tuple(checks), tuple(check.name for check in checks if not check.found))


def _package(distribution: str, module: str, used_for: str, remedy: str) -> Check:
    try:
        if find_spec(module) is None:
            raise PackageNotFoundError
        return Check(distribution, "package", True, version(distribution), used_for)
    except (PackageNotFoundError, ValueError):
        return Check(distribution, "package", False, remedy, used_for)


def _tool(name: str, commands: tuple[str, ...], used_for: str, remedy: str) -> Check:
    place = next((found for command in commands if (found := shutil.which(command))), None)
    return Check(name, "tool", place is not None, place or remedy, used_for)


def _socketcan() -> Check:
    used_for = "live CAN traffic"
    if not hasattr(socket, "AF_CAN"):
        return Check("SocketCAN", "hardware", False, "Linux only", used_for)
    try:
        socket.socket(socket.AF_CAN, socket.SOCK_RAW, socket.CAN_RAW).close()
    except OSError as error:
        return Check("SocketCAN", "hardware", False, f"the kernel has no CAN ({error.strerror}); modprobe can can_raw vcan", used_for)
    interfaces = sorted(path.parent.name for path in Path("/sys/class/net").glob("*/type") if path.read_text().strip() == "280")
    if not interfaces:
        return Check("SocketCAN", "hardware", False, "no interface; ip link add dev vcan0 type vcan", used_for)
    return Check("SocketCAN", "hardware", True, ", ".join(interfaces), used_for)
