"""The `depthprune` command: thin shells over documented functions."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from edge_shared.cli import Device, Json, Resume, Seed, application, emit, run, say, table

app = application("depthprune", "Take layers out of a trained network for real, with proof.")

Model = Annotated[str, typer.Option("--model", help="Name (residual, mobilenet_v2, resnet18, ...) or a model folder.")]
Weights = Annotated[str | None, typer.Option("--weights", help="Weights to start from: safetensors or a torch state dict.")]
DataSet = Annotated[str, typer.Option("--data", help="Images by name (digits, mnist, cifar10, ...) or path.")]
Side = Annotated[int | None, typer.Option("--size", help="Side of the images in pixels; the data's own if omitted.", min=1)]
Limit = Annotated[int | None, typer.Option("--limit", help="At most this many images of each part.", min=1)]
Policy = Annotated[
    str | None,
    typer.Option("--policy", help="Merge where it saves: latency (measured; the default), macs (for microcontrollers), memory, or always."),
]
Runtime = Annotated[str, typer.Option("--runtime", help="Where latency is measured: onnxruntime or torch.")]
Padding = Annotated[
    str,
    typer.Option(
        "--padding",
        help="Zero padding between merged layers: auto (exact or not at all), exact, const-pad, bias-map, front-pad, bias-pad, approx.",
    ),
]
Threads = Annotated[int, typer.Option("--threads", help="CPU threads of the latency measurement.", min=1)]
Repeats = Annotated[int, typer.Option("--repeats", help="Runs per network that a median is taken of.", min=10)]
OutFolder = Annotated[Path, typer.Option("--out", help="Folder to write.")]


@app.command()
def prune(
    data: DataSet = "digits",
    model: Model = "residual",
    weights: Weights = None,
    method: Annotated[str, typer.Option("--method", help="affine, easier, egp, layer-folding, nepenthe or tlc.")] = "easier",
    layers: Annotated[
        int | None, typer.Option("--layers", help="Activations to remove; as many as accuracy allows if omitted.", min=0)
    ] = None,
    per_round: Annotated[int | None, typer.Option("--per-round", help="Removed at once; a third if omitted.", min=1)] = None,
    candidates: Annotated[
        str,
        typer.Option(
            "--candidates", help="worth: activations whose layers the policy would merge; mergeable: whose layers can be merged; or all."
        ),
    ] = "worth",
    tolerance: Annotated[float, typer.Option("--tolerance", help="Validation accuracy that may be lost (0.01 = 1 point).")] = 0.01,
    epochs: Annotated[int | None, typer.Option("--epochs", help="Epochs for the dense network; 16, or 0 for a saved model.", min=0)] = None,
    finetune_epochs: Annotated[int, typer.Option("--finetune-epochs", help="Epochs of distillation per round.", min=0)] = 5,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Images per step.", min=1)] = 64,
    lr: Annotated[float, typer.Option("--lr", help="Learning rate of the dense network.")] = 0.05,
    finetune_lr: Annotated[float, typer.Option("--finetune-lr", help="Learning rate of the distillation.")] = 0.02,
    size: Side = None,
    limit: Limit = None,
    policy: Policy = None,
    runtime: Runtime = "onnxruntime",
    device: Device = None,
    padding: Padding = "auto",
    front_pad: Annotated[
        bool, typer.Option("--front-pad/--no-front-pad", help="Move padding before fine-tuning, so that merging is exact.")
    ] = True,
    threads: Threads = 1,
    repeats: Repeats = 300,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write: result.json, report.html, plots, models.")] = None,
    resume: Resume = None,
    as_json: Json = False,
) -> None:
    """Train or load a network, remove activations, merge layers, export, verify, and compare before and after."""
    if epochs is None:
        epochs = 0 if Path(model).is_dir() else 16
    from edge_shared.errors import InputError
    from edge_shared.files import open_run

    from depthprune.job import PruneConfig, settings, setup
    from depthprune.job import prune as work
    from depthprune.page import COLUMNS, rows, write

    _check(padding, policy, runtime)
    config = PruneConfig(
        data=data, model=model, weights=weights, method=method, layers=layers, per_round=per_round, candidates=candidates, tolerance=tolerance,
        epochs=epochs, finetune_epochs=finetune_epochs, batch_size=batch_size, lr=lr, finetune_lr=finetune_lr, size=size, limit=limit,
        policy=policy, runtime=runtime, device=device, padding=padding, front_pad=front_pad, threads=threads, repeats=repeats, seed=seed,  # type: ignore[arg-type]
    )  # fmt: skip
    if resume is not None:
        opened = open_run(out, resume, {})
        try:
            config = PruneConfig(**opened.config)
        except TypeError as error:
            raise InputError(f"--resume {resume}: its config.json is of another command or version ({error})") from error
        say(f"continuing {opened.path}")
        result = work(setup(config), opened, say)
    else:
        if out is None:
            raise InputError("give --out DIR for a new run or --resume DIR for an interrupted one")
        ready = setup(config)  # whatever is wrong with the input shows before a folder is made
        opened = open_run(out, None, settings(config))
        result = work(ready, opened, say)
    document = write(opened.path, result, config, "depthprune " + " ".join(sys.argv[1:] or ["prune"]))
    folder = opened.commit()

    def show(console: Any) -> None:
        title = f"{config.model} on {config.data}: {len(result.outcome.removals)} activations removed, {len(result.merging.certificates)} merges"
        console.print(table(title, COLUMNS, rows(result)))
        console.print(f"ONNX Runtime equals torch to {max(result.onnx_error.values()):.1e}; all is in {folder} (open report.html)")

    emit({**document.model_dump(mode="json", include={"metrics", "cost", "artifacts"}), "out": str(folder)}, as_json, show)


@app.command()
def analyze(
    data: DataSet = "digits",
    model: Model = "residual",
    weights: Weights = None,
    size: Side = None,
    limit: Limit = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Say for each activation how nonlinear it is on data, and whether removing it would let layers merge."""
    from depthprune.analysis import analyze as work

    report = work(model, data, weights=weights, size=size, limit=limit, seed=seed)

    def show(console: Any) -> None:
        columns = ["activation", "entropy (bits)", "neurons on/off/mixed", "not affine", "removal merges layers"]
        body = [
            [
                site.name,
                f"{site.entropy:.3f}",
                f"{site.always_on}/{site.always_off}/{site.mixed}",
                f"{site.unexplained:.3f}",
                "yes" if site.barrier is None else f"no: {site.barrier}",
            ]
            for site in report.sites
        ]
        console.print(table(f"{model} on {report.images} images of {data} ({report.part})", columns, body))

    emit(report, as_json, show)


@app.command()
def merge(
    out: OutFolder,
    model: Model = "residual",
    weights: Weights = None,
    data: Annotated[str | None, typer.Option("--data", help="Images for the certificates; random inputs only if omitted.")] = None,
    input_shape: Annotated[
        str | None, typer.Option("--input-shape", help="channels,height,width where neither folder nor data tells.")
    ] = None,
    linear: Annotated[
        list[str] | None, typer.Option("--linear", help="Activation to make an identity first, or 'all'; may be repeated.")
    ] = None,
    policy: Annotated[str, typer.Option("--policy", help="Merge where it saves: macs, latency (measured), memory, or always.")] = "macs",
    runtime: Runtime = "onnxruntime",
    device: Device = None,
    padding: Padding = "auto",
    size: Side = None,
    threads: Threads = 1,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Merge the linear chains of a network into single layers where it pays, with a certificate for each."""
    _check(padding, policy, runtime)
    from depthprune.commands import merge_model

    result = merge_model(
        model, out, weights=weights, data=data, input_shape=input_shape, linear=linear or [], policy=policy, padding=padding, size=size,
        runtime=runtime, device=device, threads=threads, seed=seed,  # type: ignore[arg-type]
    )  # fmt: skip

    def show(console: Any) -> None:
        columns = ["layers", "mode", "max error (float64)", "ring", "MACs before", "MACs after"]
        body = [
            [
                f"{c['layers'][0]} … {c['layers'][-1]} ({len(c['layers'])})",
                c["mode"],
                c["max_abs_random"],
                f"{c['ring_share']:.0%}",
                c["macs_before"],
                c["macs_after"],
            ]
            for c in result["metrics"]["certificates"]
        ]
        console.print(table(f"{len(body)} merges, written to {out}", columns, body))
        for kept in result["metrics"]["kept_apart"]:
            console.print(f"not merged: {' + '.join(kept['layers'])}: {kept['reason']}")

    emit(result, as_json, show)


@app.command()
def bench(
    before: Annotated[Path, typer.Argument(help="Model folder or .onnx file.")],
    after: Annotated[Path, typer.Argument(help="Model folder or .onnx file to compare with it.")],
    repeats: Repeats = 300,
    threads: Threads = 1,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Images per run.", min=1)] = 1,
    as_json: Json = False,
) -> None:
    """Time two models in turn, pair by pair, in ONNX Runtime and (for folders) in torch."""
    from depthprune.commands import bench_models

    result = bench_models(before, after, repeats=repeats, threads=threads, batch_size=batch_size)

    def show(console: Any) -> None:
        body = [
            [runtime, f"{c['before']['median']:.3f} [{c['before']['low']:.3f}, {c['before']['high']:.3f}]",
             f"{c['after']['median']:.3f} [{c['after']['low']:.3f}, {c['after']['high']:.3f}]", f"{c['ratio']:.3f} [{c['low']:.3f}, {c['high']:.3f}]"]
            for runtime, c in result["latency"].items()
        ]  # fmt: skip
        console.print(table("median of paired runs, 95 % interval", ["runtime", "before (ms)", "after (ms)", "after / before"], body))

    emit(result, as_json, show)


@app.command()
def export(
    out: OutFolder,
    model: Model = "residual",
    weights: Weights = None,
    input_shape: Annotated[str | None, typer.Option("--input-shape", help="channels,height,width where the folder does not tell.")] = None,
    classes: Annotated[int, typer.Option("--classes", help="Outputs of a model given by name.", min=1)] = 1000,
    as_json: Json = False,
) -> None:
    """Write a model as safetensors, recipe and ONNX, with norms folded, and hold ONNX Runtime against torch."""
    from depthprune.commands import export_model

    result = export_model(model, out, weights=weights, input_shape=input_shape, classes=classes)
    emit(result, as_json, lambda console: console.print(f"wrote {out}: ONNX Runtime equals torch to {result['onnx_max_abs_error']:.1e}"))


def _check(padding: str, policy: str | None, runtime: str) -> None:
    from edge_shared.errors import InputError

    modes = ("auto", "exact", "front-pad", "bias-pad", "const-pad", "bias-map", "approx")
    if padding not in modes:
        raise InputError(f"--padding {padding}: choose one of {', '.join(modes)}")
    if runtime not in ("onnxruntime", "torch"):
        raise InputError(f"--runtime {runtime}: choose onnxruntime or torch")
    if policy not in (None, "macs", "latency", "memory", "always"):
        raise InputError(f"--policy {policy}: choose macs, latency, memory or always")


def main() -> int:
    """Run the command line; returns the exit code."""
    # Idle threads that spin make small networks several times slower on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return run(app)
