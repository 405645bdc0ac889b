"""The `ondevice-train` command."""

from __future__ import annotations

from typing import Annotated

import typer
from edge_shared.cli import Json, application, emit, run, table

app = application("ondevice-train", "Fine-tune on the device under a hard memory budget.")


@app.command()
def memory(
    arch: Annotated[str, typer.Option("--arch", "--model", help="Architecture name, such as mcunet-5fps, or a torchvision model.")],
    scheme: Annotated[str, typer.Option("--scheme", help="JSON file or text, or a published scheme such as 49kb.")],
    input_size: Annotated[int | None, typer.Option("--input-size", help="Input side in pixels; the published one if omitted.")] = None,
    accounting: Annotated[str, typer.Option("--accounting", help="units, params, mcunetv3 or bytes.")] = "units",
    batch_size: Annotated[int, typer.Option("--batch-size", help="Samples per step; matters for bytes only.")] = 1,
    json: Json = False,
) -> None:
    """What a static update scheme costs in memory, by formula; nothing is trained and tables need no torch.

    A scheme is {"n_bias": 22, "convs": [21, 24], "ratios": [1, 0.5]} (convolutions in execution order, 0 is the stem; the share of
    input channels that each updates) or {"last_convs": 12}.
    """
    from ondevice_train.selection.scheme import read_scheme, scheme_memory

    result = scheme_memory(arch, read_scheme(scheme, arch), input_size=input_size, accounting=accounting, batch_size=batch_size)
    rows = [
        ["selected weights", result.selected_weights],
        ["selected activations", result.selected_activations],
        ["units (weights + activations)", result.units],
        ["trained biases", result.bias_params],
        ["mask bits", result.mask_bits],
        *([name.replace("_", " ") + " (bytes)", size] for name, size in result.details.items()),
        ["total (bytes)", result.total_bytes],
        ["total (KiB)", round(result.kilobytes, 2)],
        ["weight-gradient MACs", result.weight_gradient_macs],
    ]
    title = f"{result.architecture} at {result.input_size} px, accounting {accounting}"
    emit(result, json, lambda screen: screen.print(table(title, ["quantity", "value"], rows)))


def main() -> int:
    """Run the command line; returns the exit code."""
    return run(app)
