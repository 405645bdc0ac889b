"""A trained chain with its calibration as a folder of C: written, compiled, weighed, run on an emulated Cortex-M4 or on this computer."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from edge_shared.errors import InputError, MissingExtra
from edge_shared.files import read_json, write_bytes, write_json, write_text
from numpy.typing import NDArray
from tinyeeg.codegen.export import export_c99
from tinyeeg.deployed import Deployed

from mcu_attention.calibration import Layer, Prior

INSTRUCTIONS_PER_TICK = 40  # QEMU counts one instruction a nanosecond, the timer 25 million ticks a second
_SOURCES = ("attention.c", "attention.h", "io.h", "io_host.c", "io_semihosting.c", "main.c", "Makefile")


@dataclass(frozen=True)
class Output:
    """What the program printed.

    Attributes:
        seconds: one line for each second.
        decisions: index of the state for each unlabelled decision, shape (N,).
        layer: the last layer after calibration.
        features: of every decision, shape (N, F), if compiled with ``-DTRACE``; else empty.
        numbers: the counters: ``labelled``, ``decisions``, ``stack`` (bytes) and ticks.
    """

    seconds: list[str]
    decisions: NDArray[np.int64]
    layer: Layer
    features: NDArray[np.float32]
    numbers: dict[str, int]


def write(folder: str | Path, deployed: Deployed, prior: Prior) -> list[str]:
    """Write the sources of the firmware; returns their names.

    Args:
        folder: written to.
        deployed: the chain, whose own classifier the program does not ask.
        prior: of the last layer.
    """
    folder = Path(folder)
    names = set(export_c99(deployed, folder, "float").files) - {"example.c", "firmware.c", "CMakeLists.txt"}
    for name in ("example.c", "firmware.c", "CMakeLists.txt"):
        (folder / name).unlink()
    sources = files("mcu_attention") / "c"
    for name in _SOURCES:
        write_text(folder / name, (sources / name).read_text(encoding="utf-8"))
    listed = ", ".join(json.dumps(name, ensure_ascii=True) for name in prior.classes)
    write_text(
        folder / "attention_config.h",
        f"/* Generated: samples per second, and the states in their order. */\n#define AT_RATE {round(deployed.chain.sfreq)}u\n"
        f"#define AT_NAMES {{{listed}}}\n",
    )
    tables = {"at_means": prior.means, "at_precision": prior.precision, "at_center": prior.center, "at_inverse": prior.inverse}
    lines = [_array(name, values) for name, values in tables.items()]
    lines += [f"static const float at_clip = {_f(prior.clip)};", f"static const float at_prior = {_f(prior.weight)};"]
    write_text(folder / "attention_tables.h", "/* Generated: what training knows of the last layer. */\n" + "\n".join(lines) + "\n")
    deployed.save(folder / "model.json")
    write_json(folder / "calibration.json", prior.__dict__)
    return sorted({*names, *_SOURCES, "attention_config.h", "attention_tables.h", "model.json", "calibration.json"})


def load(folder: str | Path) -> tuple[Deployed, Prior]:
    """Read back what `write` wrote.

    Raises:
        InputError: if the folder holds no firmware of this app.
    """
    folder = Path(folder)
    deployed = Deployed.load(folder / "model.json")
    data = read_json(folder / "calibration.json", "calibration")
    try:
        arrays = {name: np.array(data[name], dtype=np.float32) for name in ("means", "precision", "center", "inverse")}
        prior = Prior(classes=tuple(data["classes"]), clip=float(data["clip"]), weight=float(data["weight"]), **arrays)
        width = deployed.chain.n_features
        if prior.precision.shape != (width, width) or prior.means.shape != (len(prior.classes), width):
            raise ValueError("its shapes are not those of model.json")
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{folder / 'calibration.json'} is no calibration ({error}); make one with mcu-attention build") from error
    return deployed, prior


def tools(target: str) -> None:
    """Check that what `target` (``qemu``, ``firmware`` or ``host``) needs is installed.

    Raises:
        MissingExtra: naming the Debian packages.
    """
    needed = {"qemu": ("make", "arm-none-eabi-gcc", "qemu-system-arm"), "firmware": ("make", "arm-none-eabi-gcc"), "host": ("make", "cc")}
    missing = [name for name in needed[target] if shutil.which(name) is None]
    if missing:
        packages = "make gcc gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-system-arm"
        raise MissingExtra(f"this needs {', '.join(missing)}, which is not installed: apt-get install {packages}")


def size(folder: str | Path) -> dict[str, int] | None:
    """Compile for a Cortex-M4F and weigh: ``flash_bytes``, ``ram_bytes`` (without stack); None without arm-none-eabi-gcc."""
    if not (shutil.which("arm-none-eabi-gcc") and shutil.which("make")):
        return None
    words = _make(folder, "firmware").splitlines()[-1].split()
    text, data, bss = (int(word) for word in words[:3])
    return {"flash_bytes": text + data, "ram_bytes": data + bss}


def run(folder: str | Path, recording: bytes, target: str = "qemu", defines: str = "") -> Output:
    """Run the program on a recording.

    Args:
        folder: what `write` wrote; it is compiled there.
        recording: see `mcu_attention.recordings.encode`.
        target: ``qemu`` (emulated Cortex-M4) or ``host`` (this computer).
        defines: for the compiler, such as ``-DTRACE``.

    Raises:
        InputError: if the program refuses the recording.
    """
    tools(target)
    folder = Path(folder)
    write_bytes(folder / "recording.bin", recording)
    for name in ("host", "firmware.elf"):
        (folder / name).unlink(missing_ok=True)
    text = _make(folder, target, f"DEFINES={defines}")
    if target == "host":
        text = _checked(subprocess.run(["./host"], cwd=folder, capture_output=True, text=True, check=False, timeout=600))
    return parse(text)


def parse(text: str) -> Output:
    """Read the lines of the program."""
    seconds = [line for line in text.splitlines() if line and not line.startswith("#")]
    found: dict[str, list[list[str]]] = {}
    for line in text.splitlines():
        if line.startswith("# "):
            name, *words = line[2:].split()
            found.setdefault(name, []).append(words)

    def vectors(name: str) -> NDArray[np.float32]:
        rows = [[int(word, 16) for word in words] for words in found.get(name, [])]
        return np.array(rows, dtype=np.uint32).view(np.float32)

    layer = Layer(vectors("weights"), vectors("bias")[0], vectors("center")[0])
    names = ("labelled", "decisions", "solve_ticks", "decision_ticks", "worst_ticks", "sample_ticks_x100", "stack")
    numbers = {name: int(found[name][0][0]) for name in names if name in found}
    decisions = np.array([int(words[0]) for words in found.get("decision", [])], dtype=np.int64)
    return Output(seconds, decisions, layer, vectors("features"), numbers)


def instructions(output: Output, hop: int) -> dict[str, float]:
    """Instructions as QEMU counts them (not cycles): of a plain sample, of a decision with its samples, of the calibration's end.

    Args:
        output: of a run with ``target="qemu"``.
        hop: samples per decision.
    """
    ticks = output.numbers
    sample = ticks["sample_ticks_x100"] * INSTRUCTIONS_PER_TICK / 100
    decision = float(ticks["decision_ticks"] * INSTRUCTIONS_PER_TICK)
    result = {"per_sample": sample, "per_decision": decision + sample * (hop - 1)}
    result["worst_sample"] = float(ticks["worst_ticks"] * INSTRUCTIONS_PER_TICK)
    if "solve_ticks" in ticks:
        result["end_of_calibration"] = float(ticks["solve_ticks"] * INSTRUCTIONS_PER_TICK)
    return result


def _make(folder: str | Path, *arguments: str) -> str:
    return _checked(subprocess.run(["make", "-s", *arguments], cwd=folder, capture_output=True, text=True, check=False, timeout=600))


def _checked(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode:
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise InputError(
            f"{' '.join(map(str, done.args))} failed: {next((line for line in said if 'error' in line or line[0] == '#'), said[-1:])}"
        )
    return done.stdout


def _array(name: str, values: NDArray[Any]) -> str:
    size = "".join(f"[{count}]" for count in values.shape)
    rows = np.atleast_2d(values)
    body = ",\n    ".join(", ".join(_f(value) for value in row) for row in rows)
    if values.ndim == 2:
        body = ",\n    ".join("{" + ", ".join(_f(value) for value in row) + "}" for row in rows)
    return f"static const float {name}{size} = {{\n    {body}}};"


def _f(value: Any) -> str:
    text = f"{float(np.float32(value)):.9g}"
    return (text if any(mark in text for mark in ".en") else text + ".0") + "f"
