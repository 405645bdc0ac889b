"""The `edge` command: what this machine has, and which devices are known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from edge_shared.cli import Json, application, emit, run, table

if TYPE_CHECKING:
    from rich.console import Console

app = application("edge", "The shared core of Edgewise: this machine and the device profiles.")


@app.command()
def doctor(as_json: Json = False) -> None:
    """Show versions, optional tools and hardware, and what is missing for which feature."""
    from edge_shared.doctor import diagnose
    from edge_shared.units import format_bytes

    diagnosis = diagnose()

    def show(console: Console) -> None:
        here = diagnosis.environment
        console.print(f"Python {here.python} on {here.system}; {here.processor}, {here.cores} cores, {format_bytes(here.memory_bytes)}")
        console.print(", ".join(f"{name} {number}" for name, number in here.versions.items()), style="dim")
        rows = [[check.name, "yes" if check.found else "missing", check.detail, check.used_for] for check in diagnosis.checks]
        listing = table("Optional parts", ["Part", "Found", "Version, place or remedy", "Used for"], rows)
        for column in listing.columns:
            column.justify, column.overflow = "left", "fold"
        console.print(listing)

    emit(diagnosis, as_json, show)


@app.command()
def devices(
    profile: str = typer.Argument(None, help="One profile: a name or a TOML file; all of them by default.", show_default=False),
    as_json: Json = False,
) -> None:
    """List the device profiles: RAM, flash, processor, and with one profile the sources of its figures."""
    from edge_shared.devices import load, names
    from edge_shared.units import format_bytes, format_count

    chosen = [load(profile)] if profile else [load(name) for name in names()]

    def show(console: Console) -> None:
        rows = [
            [
                device.name,
                device.core.removeprefix("Arm "),
                f"{device.cores} × {format_count(device.clock_hz)}Hz",
                format_bytes(device.ram_total),
                format_bytes(device.ram_largest_region),
                format_bytes(device.flash_total) if device.flash_total else "SD card",
            ]
            for device in chosen
        ]
        columns = ["Device", "Core", "Clock", "RAM", "Largest region", "Flash"]
        listing = table("Device profiles", columns, rows)
        for column in listing.columns[:3]:
            column.no_wrap = True
        console.print(listing)
        if profile:
            console.print(chosen[0].description)
            for source in chosen[0].sources:
                console.print(f"source: {source}")

    emit(chosen[0] if profile else chosen, as_json, show)


def main() -> int:
    """Run the command line; returns the exit code."""
    return run(app)
