"""The `ondevice-train` command."""

from __future__ import annotations

import math
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
        ["total (bytes)", math.ceil(result.total_bytes)],
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
    title = (
        f"{model}, {method}: {made.predicted_bytes:,} bytes kept of {made.vanilla_bytes:,} (whole model, batch {batch_size});"
        f" {made.other_bytes or 0:,} of them by operations that no method here compresses"
    )
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


def _options(pairs: list[str] | None) -> dict[str, object]:
    """``key=value`` pairs, values read as JSON where they are JSON."""
    import json as decoder

    from edge_shared.errors import InputError

    result: dict[str, object] = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise InputError(f"--set {pair}: write it as name=value")
        try:
            result[key] = decoder.loads(value)
        except ValueError:
            result[key] = value
    return result


Model = Annotated[str, typer.Option("--model", "--arch", help="Architecture, torchvision classifier, timm:NAME or a model folder.")]
Weights = Annotated[str | None, typer.Option("--weights", help="File of pretrained weights (safetensors, or torch).")]
Data = Annotated[str, typer.Option("--data", help="Image set by name, or a path to files of your own.")]
ImageSize = Annotated[int | None, typer.Option("--image-size", "--input-size", help="Side in pixels; the data's own, at least 32.")]
Limit = Annotated[int | None, typer.Option("--limit", help="At most so many images of each part.", min=1)]
Epochs = Annotated[int, typer.Option("--epochs", help="Passes over the training images.", min=0)]
BatchSize = Annotated[int, typer.Option("--batch-size", help="Images per step.", min=1)]
LearningRate = Annotated[float, typer.Option("--lr", help="Highest learning rate (cosine to 0).")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="Setting of the method as name=value; may be repeated.")]
Out = Annotated[Path | None, typer.Option("--out", help="Folder to write: result.json, report.html, plots, model.")]


@app.command()
def fit(
    model: Model = "mcunet-in1",
    weights: Weights = None,
    data: Data = "digits",
    method: Annotated[
        str, typer.Option("--method", help="medyate, trady, velocity, sparse-update, asi, ...; README lists all.")
    ] = "medyate",
    budget: Annotated[str | None, typer.Option("--budget", help="64kB or 1.5MiB, 27946units, 22410params.")] = None,
    device: Annotated[str | None, typer.Option("--device", help="Profile name or TOML file; what is free on it is the budget.")] = None,
    image_size: ImageSize = None,
    limit: Limit = None,
    epochs: Epochs = 10,
    batch_size: BatchSize = 32,
    lr: LearningRate = 0.05,
    momentum: Annotated[float, typer.Option("--momentum", help="Of SGD; its state counts in the budget.")] = 0.0,
    weight_decay: Annotated[float, typer.Option("--weight-decay", help="Of the trained parameters.")] = 0.0,
    optimizer: Annotated[str, typer.Option("--optimizer", help="sgd, adam or adamw.")] = "sgd",
    warmup_epochs: Annotated[float, typer.Option("--warmup-epochs", help="Epochs of linear growth of the learning rate.")] = 0.0,
    last: Annotated[int | None, typer.Option("--last", help="Only the last so many layers may train; all if omitted.", min=1)] = None,
    biases: Annotated[int | None, typer.Option("--biases", help="Biases of the last so many layers train too.", min=0)] = None,
    scheme: Annotated[str | None, typer.Option("--scheme", help="sparse-update: JSON file or text, or a published scheme.")] = None,
    ranking: Annotated[Path | None, typer.Option("--ranking", help="ranking.json of `rank`; measured at the start if omitted.")] = None,
    keep_bits: Annotated[int, typer.Option("--keep-bits", help="Bits of the channels kept for backward: 32, or 8 (rounded).")] = 32,
    compress: Annotated[
        str | None, typer.Option("--compress", help="Compress the kept channels too: asi, fixed-bases, quantise, or auto per layer.")
    ] = None,
    max_error: Annotated[
        float | None, typer.Option("--max-error", help="Share of a layer's gradient that --compress may cost; 0.3 if omitted.")
    ] = None,
    overshoot: Annotated[str | None, typer.Option("--overshoot", help="skip or stop at a channel that does not fit.")] = None,
    settings: Settings = None,
    onnx: Annotated[bool, typer.Option("--onnx/--no-onnx", help="Export the model of --out to ONNX as well, verified.")] = True,
    seed: Seed = 0,
    out: Out = None,
    resume: Annotated[Path | None, typer.Option("--resume", help="Continue the interrupted run of this --out folder.")] = None,
    json: Json = False,
) -> None:
    """Fine-tune a model under a memory budget; prints accuracy and the bytes predicted and measured.

    The settings of a resumed run are those that it was started with.
    """
    import sys

    from edge_shared.errors import InputError
    from edge_shared.files import open_run, read_json

    from ondevice_train.fit import FitConfig, run
    from ondevice_train.reports import write_fit
    from ondevice_train.selection.scheme import read_scheme

    if resume is None:
        if max_error is not None and compress is None:
            raise InputError("--max-error goes with --compress; the limit of --method auto is --set max_error=0.5")
        config = FitConfig(
            model=model, weights=weights, data=data, image_size=image_size, limit=limit, method=method, budget=budget, device=device,
            biases=biases, last=last, scheme=read_scheme(scheme, model) if scheme else None,
            ranking=read_json(ranking, "--ranking") if ranking else None, overshoot=overshoot, keep_bits=keep_bits, compress=compress,
            max_error=0.3 if max_error is None else max_error, options=_options(settings),
            epochs=epochs, batch_size=batch_size, lr=lr, momentum=momentum, weight_decay=weight_decay, optimizer=optimizer,
            warmup_epochs=warmup_epochs, seed=seed,
        )  # fmt: skip
    else:
        config = FitConfig()
    from dataclasses import asdict

    from ondevice_train.ops.allocator import return_freed_blocks

    folder = open_run(out, resume, asdict(config)) if out or resume else None
    if folder is not None and folder.resumed:
        try:
            config = FitConfig(**folder.config)
        except TypeError as error:
            raise InputError(f"--resume {resume}: its config.json is of another program ({error})") from error
    if config.method != "plain":
        return_freed_blocks()
    result = run(config, folder=folder.path if folder else None, onnx=onnx)
    if folder is not None:
        write_fit(folder.path, result, " ".join(["ondevice-train", *sys.argv[1:]]))
        folder.commit()
    cost = result.cost
    rows = [
        ["test accuracy (%)", 100 * result.metrics["test_accuracy"]],
        ["saved for backward, predicted (bytes)", cost.get("predicted_saved_bytes")],
        ["saved for backward, measured (bytes)", cost.get("measured_saved_bytes")],
        ["all training memory, measured (bytes)", cost.get("measured_total_bytes")],
        ["peak RSS of this process (bytes)", cost.get("process_peak_rss_bytes")],
        ["step time (ms)", 1000 * cost["step_seconds"] if cost.get("step_seconds") else None],
        ["trained parameters", cost.get("trained_parameters")],
    ]
    document = {"metrics": result.metrics, "cost": cost, "artifacts": {"folder": str(folder.out)} if folder else {}, "seed": config.seed}
    title = f"{config.model} on {config.data}, {config.method}"
    emit(document, json, lambda screen: screen.print(table(title, ["quantity", "value"], rows)))


@app.command()
def rank(
    model: Model = "mcunet-in1",
    weights: Weights = None,
    data: Data = "digits",
    image_size: ImageSize = None,
    limit: Limit = None,
    steps: Annotated[int, typer.Option("--steps", help="Gradient steps to accumulate.", min=1)] = 50,
    batch_size: BatchSize = 32,
    lr: LearningRate = 0.05,
    seed: Seed = 0,
    out: Out = None,
    json: Json = False,
) -> None:
    """Score the layers of a model by their gradients (RGN, LaRa) while it is fine-tuned for some steps.

    --out keeps ranking.json, which `fit --ranking` takes to the device, and plots.
    """
    import sys
    from dataclasses import asdict

    from edge_shared.files import open_run

    from ondevice_train.fit import FitConfig
    from ondevice_train.fit import rank as measure_ranking

    config = FitConfig(
        model=model,
        weights=weights,
        data=data,
        image_size=image_size,
        limit=limit,
        rank_steps=steps,
        batch_size=batch_size,
        lr=lr,
        seed=seed,
    )
    folder = open_run(out, None, asdict(config)) if out else None
    ranking = measure_ranking(config)
    if folder is not None:
        from ondevice_train.reports import write_ranking

        write_ranking(folder.path, ranking, " ".join(["ondevice-train", *sys.argv[1:]]), config)
        folder.commit()
    top = set(ranking.top())
    rows = [[row.name, row.rgn, row.lara, row.channels, "yes" if row.name in top else ""] for row in ranking.order("rgn")]
    document = {"ranking": ranking, "top_layers": ranking.top(), "artifacts": {"folder": str(folder.out)} if folder else {}}
    title = f"{model}: {len(top)} of {len(rows)} layers hold 97 % of the RGN"
    emit(document, json, lambda screen: screen.print(table(title, ["layer", "RGN", "LaRa", "channels", "top"], rows)))


@app.command()
def compare(
    methods: Annotated[str, typer.Option("--methods", help="Names with commas between.")] = "medyate,trady,sparse-update",
    budgets: Annotated[str, typer.Option("--budgets", help="Budgets with commas between.")] = "256kB,1MB",
    seeds: Annotated[int, typer.Option("--seeds", help="Runs of each cell, seeds from 0.", min=1)] = 3,
    model: Model = "mcunet-in1",
    weights: Weights = None,
    data: Data = "digits",
    image_size: ImageSize = None,
    limit: Limit = None,
    epochs: Epochs = 10,
    batch_size: BatchSize = 32,
    lr: LearningRate = 0.05,
    backend: Annotated[str, typer.Option("--backend", help="joblib or ray.")] = "joblib",
    workers: Annotated[int, typer.Option("--workers", help="Runs at a time.", min=1)] = 1,
    out: Out = None,
    json: Json = False,
) -> None:
    """Compare methods at several budgets: mean accuracy with its 95 % interval, measured bytes, a plot.

    Finished runs are kept beside --out until all are done: the same command continues an interrupted comparison.
    """
    import shutil
    import sys

    from edge_shared.files import open_run

    from ondevice_train.compare import compare as run_comparison

    settings = {
        "model": model, "weights": weights, "data": data, "image_size": image_size, "limit": limit, "epochs": epochs,
        "batch_size": batch_size, "lr": lr,
    }  # fmt: skip
    cells = out.with_name(f"{out.name}.cells") if out else None
    names = [name.strip() for name in methods.split(",") if name.strip()]
    amounts = [budget.strip() for budget in budgets.split(",") if budget.strip()]
    folder = open_run(out, None, settings) if out else None
    rows = run_comparison(names, amounts, seeds, settings, out=cells, backend=backend, workers=workers)
    if folder is not None:
        from ondevice_train.reports import write_comparison

        write_comparison(folder.path, rows, " ".join(["ondevice-train", *sys.argv[1:]]), settings)
        folder.commit()
        if cells is not None:
            shutil.rmtree(cells, ignore_errors=True)
    shown = [
        [r["method"], r["budget"] or "none", r["seeds"], 100 * r["mean_accuracy"], 100 * r["ci95"] if r["ci95"] is not None else None,
         r["measured_total_bytes"]] for r in rows
    ]  # fmt: skip
    columns = ["method", "budget", "seeds", "accuracy (%)", "± 95 %", "training bytes"]
    document = {"rows": rows, "artifacts": {"folder": str(out)} if out else {}}
    emit(document, json, lambda screen: screen.print(table("Comparison", columns, shown)))


def main() -> int:
    """Run the command line; returns the exit code."""
    return run(app)
