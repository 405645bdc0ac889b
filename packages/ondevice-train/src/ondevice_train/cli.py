"""The `ondevice-train` command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from edge_shared.cli import Json, Seed, application, emit, run, table

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


@app.command()
def plan(
    model: Annotated[str, typer.Option("--model", help="Architecture, torchvision classifier, timm:NAME or a model folder.")],
    method: Annotated[
        str, typer.Option("--method", help="asi, wasi, hosvd, svd, asi-paper, fixed-bases, quantise, gradient-filter, auto, ...")
    ] = "asi",
    budget: Annotated[str | None, typer.Option("--budget", help="Bytes the whole model may keep for backward: 4MiB.")] = None,
    last: Annotated[int | None, typer.Option("--last", help="Train the last so many convolutions; all layers if omitted.", min=1)] = None,
    data: Annotated[str, typer.Option("--data", help="Image set by name or path; its first training batch is the example.")] = "digits",
    weights: Annotated[str | None, typer.Option("--weights", help="File of pretrained weights.")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Samples per step.", min=1)] = 8,
    input_size: Annotated[int, typer.Option("--input-size", help="Side of the input in pixels.", min=1)] = 64,
    epsilon: Annotated[float, typer.Option("--epsilon", help="Explained variance, without a budget.")] = 0.8,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option("--out", help="JSON file to write the plan to.")] = None,
    json: Json = False,
) -> None:
    """Choose what each trained layer keeps for its backward pass, within a budget; predicts the bytes of the whole model."""
    from edge_shared.files import write_json

    from ondevice_train.compression.command import plan_command

    made = plan_command(model, method, budget, last, data, weights, batch_size, input_size, epsilon, seed)
    if out is not None:
        write_json(out, made.to_json())
    rows = [
        [layer.name, layer.choice, "x".join(map(str, layer.ranks)) if layer.ranks else "-", layer.bytes, layer.perplexity]
        for layer in made.layers
    ]
    title = f"{model}, {method}: {made.predicted_bytes:,} bytes kept of {made.vanilla_bytes:,} (whole model, batch {batch_size})"
    emit(made, json, lambda screen: screen.print(table(title, ["layer", "choice", "ranks", "bytes", "gradient error"], rows)))


@app.command()
def bench(
    model: Annotated[
        str, typer.Option("--model", help="Architecture, torchvision classifier, timm:NAME or a model folder.")
    ] = "mobilenet_v2",
    methods: Annotated[str, typer.Option("--methods", help="Methods to hold against plain PyTorch, by commas.")] = "asi,checkpointing",
    last: Annotated[int | None, typer.Option("--last", help="Train the last so many convolutions; all layers if omitted.", min=1)] = None,
    data: Annotated[str, typer.Option("--data", help="Image set by name or path; its first training batch is used.")] = "digits",
    weights: Annotated[str | None, typer.Option("--weights", help="File of pretrained weights.")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Samples per step.", min=1)] = 8,
    input_size: Annotated[int, typer.Option("--input-size", help="Side of the input in pixels.", min=1)] = 64,
    epsilon: Annotated[float, typer.Option("--epsilon", help="Explained variance.")] = 0.8,
    steps: Annotated[int, typer.Option("--steps", help="Counted steps of each method.", min=2)] = 9,
    rss: Annotated[bool, typer.Option("--rss", help="Also the peak memory of a process of its own for each method.")] = False,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Time whole training steps of methods side by side and measure what they keep, in turns, on this machine."""
    from ondevice_train.compression.command import bench_command

    rows = bench_command(model, methods, last, data, weights, batch_size, input_size, epsilon, steps, rss, seed)
    columns = [
        "method",
        "step (ms)",
        "of plain",
        "kept (bytes)",
        "predicted",
        "times less",
        "layers, papers' count (bytes)",
        "peak RSS (bytes)",
    ]
    lines = [
        [row.method, row.milliseconds, row.ratio, row.saved_bytes, row.predicted_bytes, row.vanilla_bytes / max(row.saved_bytes, 1), row.paper_bytes, row.peak_rss]
        for row in rows
    ]  # fmt: skip
    emit(rows, json, lambda screen: screen.print(table(f"{model}, batch {batch_size}, {input_size} px", columns, lines)))


def main() -> int:
    """Run the command line; returns the exit code."""
    return run(app)
