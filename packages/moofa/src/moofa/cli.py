"""The `moofa` command: thin shells over documented functions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from edge_shared.cli import Device, Json, application, emit, run, table

app = application("moofa", "Supernets that fill the memory they are given, and a search that is never over budget.")

MemoryModelOption = Annotated[
    str | None,
    typer.Option(
        "--memory-model",
        help="A in+out+weights, B in+out+skip, C in-place depthwise (TinyEngine), D live tensors, E patches; the device's own if omitted, else D.",
    ),
]
Bits = Annotated[int, typer.Option("--bits", help="Bits per weight and activation.", min=1, max=64)]


def _device(name: str | None) -> Any:
    if name is None:
        return None
    from edge_shared.devices import load

    return load(name)


@app.command()
def profile(
    file: Annotated[Path, typer.Argument(help="JSON: one network, or a list of them.")],
    memory_model: MemoryModelOption = None,
    bits: Bits = 8,
    device: Device = None,
    compat: Annotated[
        str | None, typer.Option("--compat", help="moofa-paper: the paper's metric, without its missing skip tensor.")
    ] = None,
    layers: Annotated[bool, typer.Option("--layers/--no-layers", help="List every layer.")] = True,
    as_json: Json = False,
) -> None:
    """Count MACs, parameters, peak memory, SRAM and flash of networks, by formula.

    A network is {"resolution", "in_channels", "stem": {"out", "kernel", "stride"}, "blocks": [{"kernel", "expand", "mid", "out",
    "stride", "se"}], "final_expand", "feature_mix", "feature_mix_bn", "classes"}.
    """
    from edge_shared.files import read_json
    from edge_shared.units import format_bytes, format_count

    from moofa.profile import profile_all

    documents = read_json(file, "network")
    profiles = profile_all(
        documents, where=str(file), memory_model=memory_model, bits=bits, device=_device(device), compat=compat, with_layers=layers
    )

    def show(console: Any) -> None:
        for index, one in enumerate(profiles):
            rows: list[list[Any]] = [
                ["MACs", format_count(one.macs)],
                ["parameters (with norms)", f"{format_count(one.params)} ({format_count(one.params_with_bn)})"],
                [f"peak, model {one.memory_model}", f"{one.peak_items:,} items, {format_bytes(one.peak_bytes)} at {one.peak_layer}"],
                ["RAM" if device is None else f"RAM on {one.device}", format_bytes(one.sram_bytes)],
                ["flash (weights)", format_bytes(one.flash_bytes)],
                ["flatness (mean / peak)", f"{one.flatness:.2f}"],
            ]
            if one.utilisation is not None:
                rows.append(["use of the device's RAM budget", f"{one.utilisation:.1%}, {'fits' if one.fits else 'does not fit'}"])
            console.print(table(f"{one.name} [{index}]" if len(profiles) > 1 else one.name, ["cost", "value"], rows))
            if one.layers:
                body = [
                    [layer.name, layer.items, layer.bytes, layer.macs, "#" * round(24 * layer.items / one.peak_items)]
                    for layer in one.layers
                ]
                console.print(table("", ["layer", "items", "bytes", "MACs", "share of the peak"], body))
        if compat:
            from moofa.profile import PAPER_NOTE

            console.print(PAPER_NOTE)

    documents_out = [one.to_json() for one in profiles]
    emit(documents_out if isinstance(documents, list) else documents_out[0], as_json, show)


def main() -> int:
    """Run the command line; returns the exit code."""
    return run(app)
