"""The `mcu-attention` command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from edge_shared.cli import Json, Seed, application, emit, run, say, table
from edge_shared.errors import CheckFailed, InputError

if TYPE_CHECKING:
    from rich.console import Console

    from mcu_attention.workflow import Ran

app = application("mcu-attention", "Attention state from EEG as Cortex-M firmware, calibrated on the device.")

OutDir = Annotated[Path, typer.Option("--out", help="Folder to write; replaced when the command is done.")]
Data = Annotated[str, typer.Option("--data", help="`synthetic`, or a file or folder of recordings of two people or more (see tinyeeg).")]
Preset = Annotated[str, typer.Option("--preset", help="Preprocessing of tinyeeg: compact or aci2019-stft.")]
Prior = Annotated[float, typer.Option("--prior", help="Decisions that the trained class means are worth against the wearer's.", min=1)]


@app.command()
def build(
    out: OutDir, data: Data = "synthetic", preset: Preset = "compact", prior: Prior = 40.0, seed: Seed = 0, json: Json = False
) -> None:
    """Train tinyeeg's LDA and write the firmware as C, with the prior of its calibration; weigh it where arm-none-eabi-gcc is."""
    from edge_shared.files import open_run

    from mcu_attention import workflow

    folder = open_run(out, None, {"data": data, "preset": preset, "prior": prior, "seed": seed})
    people = workflow.read(data, wearer=False, seed=seed)
    built = workflow.build(people, folder.path, preset=preset, prior_weight=prior, seed=seed)
    folder.commit()
    say(f"wrote {folder.out}")
    summary = {"folder": str(out), "files": built.files, "people": built.people, "synthetic": built.synthetic,
               "metrics": {"balanced_accuracy_cross_subject": built.cross_subject}, "cost": built.size}  # fmt: skip

    def show(console: Console) -> None:
        console.print(f"{len(built.files)} files in {out}; trained on {', '.join(built.people)}")
        if built.size is not None:
            console.print(f"measured by arm-none-eabi-size: {built.size['flash_bytes']:,} B flash, {built.size['ram_bytes']:,} B RAM")

    emit(summary, json, show)


@app.command("run")
def run_firmware(
    out: OutDir,
    recording: Annotated[
        str, typer.Option("--recording", help="`synthetic`, or a file or folder of one person's recordings with states.")
    ] = "synthetic",
    firmware: Annotated[Path | None, typer.Option("--firmware", help="Folder of `build`; by default one of synthetic people.")] = None,
    person: Annotated[str | None, typer.Option("--person", help="Whose recordings of the folder.")] = None,
    calibrate: Annotated[
        float, typer.Option("--calibrate", help="Labelled seconds in all from which the device calibrates its last layer; 0: none.", min=0)
    ] = 60.0,
    target: Annotated[str, typer.Option("--target", help="qemu: emulated Cortex-M4; host: the same program on this computer.")] = "qemu",
    board: Annotated[str | None, typer.Option("--board", help="Fail if flash or RAM do not fit this device profile or TOML file.")] = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Run the firmware on a recording: the state once a second, calibrated on the device from its labelled part."""
    from edge_shared.files import open_run, plain
    from edge_shared.report import DataInfo, Result, write_result

    from mcu_attention import firmware as building
    from mcu_attention import report, workflow

    if target not in ("qemu", "host"):
        raise InputError(f"--target {target}: not known; choose qemu or host")
    building.tools(target)
    settings = {"recording": recording, "firmware": firmware and str(firmware), "person": person, "calibrate": calibrate, "target": target,
                "board": board, "seed": seed}  # fmt: skip
    folder = open_run(out, None, settings)
    source = firmware or folder.path / "firmware"
    if firmware is None:
        workflow.build(workflow.read("synthetic", wearer=False, seed=seed), source, seed=seed)
    wearer = workflow.read(recording, wearer=True, person=person, seed=seed)
    ran = workflow.run(source, wearer, calibrate_s=calibrate, target=target)
    cost: dict[str, Any] = dict(building.size(source) or {})
    if target == "qemu":
        cost |= {"stack_bytes": ran.calibrated.numbers["stack"]}
        cost |= {f"instructions_{name}": value for name, value in building.instructions(ran.calibrated, ran.chain.hop).items()}
    metrics = {f"balanced_accuracy_{name}" if name != "chance" else name: value for name, value in ran.accuracy().items()}
    metrics |= {"decisions": len(ran.truth), "labelled_decisions": ran.calibrated.numbers["labelled"], **ran.equal}
    (folder.path / "states.txt").write_text("\n".join(ran.calibrated.seconds) + "\n", encoding="utf-8")
    report.timeline(folder.path, ran)
    result = Result(
        command="mcu-attention run", metrics=plain(metrics), cost=plain(cost), seed=seed, settings=settings,
        data=DataInfo(name=recording, synthetic=ran.synthetic), artifacts={"states": "states.txt", "picture": "timeline.png"},
    )  # fmt: skip
    report.page(folder.path, ran, result)
    write_result(folder.path, result)
    folder.commit()
    say(f"wrote {folder.out}")
    summary = {"folder": str(out), "synthetic": ran.synthetic, "classes": ran.classes, "metrics": metrics, "cost": cost,
               "states": ran.calibrated.seconds}  # fmt: skip
    emit(summary, json, lambda console: _show(console, ran, metrics, cost))
    if not ran.equal["same_decisions"]:
        raise CheckFailed("the firmware decided otherwise than the Python reference; please report it")
    if board is not None:
        _fits(board, cost)


def _fits(board: str, cost: dict[str, Any]) -> None:
    from edge_shared import devices

    device = devices.load(board)
    if "flash_bytes" not in cost:
        raise InputError("--board needs arm-none-eabi-gcc to weigh the firmware: apt-get install gcc-arm-none-eabi libnewlib-arm-none-eabi")
    for name, needed, budget in (
        ("flash", cost["flash_bytes"], device.flash_budget),
        ("RAM with stack", cost["ram_bytes"] + cost.get("stack_bytes", 0), device.ram_budget),
    ):
        if budget is not None and needed > budget:
            raise CheckFailed(f"{device.name}: {name} needs {needed:,} B, available are {budget:,} B")


def _show(console: Console, ran: Ran, metrics: dict[str, Any], cost: dict[str, Any]) -> None:
    for line in ran.calibrated.seconds:
        second, words = line.split(" ", 1)
        console.print(f"{int(second):5d} s  {words}")
    rows = [[name.replace("_", " "), value] for name, value in {**metrics, **cost}.items()]
    console.print(table("Firmware" + (", SYNTHETIC RECORDING" if ran.synthetic else ""), ["", "value"], rows))


def main() -> int:
    """Run the command line; returns the exit code."""
    return run(app)
