"""The `mcu-vision` command: thin shells over documented functions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from edge_shared.cli import Data, Json, Out, Resume, Seed, application, emit, run, say, table

app = application("mcu-vision", "A trained sub-network becomes int8 C firmware for Cortex-M, within its planned memory.")


@app.command()
def build(
    data: Data = "digits",
    device: Annotated[str, typer.Option("--device", help="Cortex-M board: a profile's name or a TOML file.")] = "stm32f746",
    model: Annotated[
        Path | None,
        typer.Option(
            "--model", help="A saved network (`moofa extract`, any model folder) or a supernet (`moofa train`); trained here if omitted."
        ),
    ] = None,
    budget: Annotated[
        str | None, typer.Option("--budget", help="RAM of the firmware, stack included: 8kB or bytes; the device's if omitted.")
    ] = None,
    flash: Annotated[str | None, typer.Option("--flash", help="Flash of the firmware: 64kB or bytes; the device's if omitted.")] = None,
    stack: Annotated[int, typer.Option("--stack", help="Bytes of RAM kept for the stack.", min=256)] = 1024,
    images: Annotated[int, typer.Option("--images", help="Test images to run in QEMU.", min=1)] = 16,
    space: Annotated[
        str | None, typer.Option("--space", help="Supernet's space: a moofa preset or file; by the images' size if omitted.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", help="At most so many images of each part.", min=1)] = None,
    epochs: Annotated[int, typer.Option("--epochs", help="Epochs of the supernet.", min=1)] = 12,
    networks: Annotated[int, typer.Option("--networks", help="Networks to measure for the accuracy predictor.", min=10)] = 40,
    fine_tune: Annotated[int, typer.Option("--fine-tune", help="Epochs of fine-tuning what was found.", min=0)] = 3,
    seed: Seed = 0,
    out: Out = None,
    resume: Resume = None,
    as_json: Json = False,
) -> None:
    """Build the firmware: find a network, quantise it, write C, link it, weigh it, and run it in QEMU.

    Fails (exit code 1) if the device's RAM or flash does not suffice, or if one bit of the emulated outputs differs from
    the Python reference. Without arm-none-eabi-gcc or QEMU the C is written and those steps are left out.
    """
    from edge_shared.errors import CheckFailed, require
    from edge_shared.files import open_run
    from edge_shared.units import parse_bytes

    require("torch", "mcu-vision")
    from mcu_vision.report import write_report
    from mcu_vision.workflow import board_for
    from mcu_vision.workflow import build as build_run

    options: dict[str, Any] = {
        "data": data, "device": device, "model": None if model is None else str(model),
        "budget": None if budget is None else parse_bytes(budget), "flash": None if flash is None else parse_bytes(flash),
        "stack": stack, "images": images, "space": space, "limit": limit, "epochs": epochs, "networks": networks,
        "fine_tune": fine_tune, "seed": seed,
    }  # fmt: skip
    if resume is None:
        board_for(device, options["budget"], options["flash"])
    folder = open_run(out, resume, options)
    try:
        done = build_run(folder)
    except CheckFailed as error:
        if as_json:
            emit({"fits": False, "error": str(error)}, True)
        raise
    result = write_report(folder, done)
    folder.commit()
    say(f"wrote {folder.out}")
    rows: list[list[Any]] = [[name.replace("_", " "), value] for name, value in {**done.metrics, **done.cost}.items()]
    document = {
        "fits": True, "metrics": result.metrics, "cost": result.cost, "artifacts": result.artifacts, "seed": result.seed,
        "settings": result.settings, "out": str(folder.out),
    }  # fmt: skip
    emit(document, as_json, lambda console: console.print(table(f"firmware for {done.board.name}", ["", "value"], rows)))


def main() -> int:
    """Run the command line; returns the exit code."""
    return run(app)
