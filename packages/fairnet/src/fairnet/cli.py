"""The `fairnet` command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from edge_shared.cli import Json, Out, Resume, Seed, application, emit, run, say, table
from edge_shared.errors import CheckFailed, InputError, require

if TYPE_CHECKING:
    from rich.console import Console

app = application("fairnet", "Find the shortcut in an image model, cut it out, prove it.")

DataOption = Annotated[
    str,
    typer.Option(
        "--data",
        help="CSV of your own images (path, label, group, split), a folder (see --layout), or an image set to plant a shortcut in.",
    ),
]
Layout = Annotated[
    str | None, typer.Option("--layout", help="How --data is laid out: csv, waterbirds, celeba, bar, bffhq or imagenet9; none: plant.")
]
Plant = Annotated[str, typer.Option("--plant", help="Shortcut to plant: colour, two-colours, spuco (pairs of classes) or corruption.")]
Balanced = Annotated[
    int, typer.Option("--balanced", help="Images of the balanced part of a planted set, for ffw, dfr and control masks.", min=10)
]
Granularity = Annotated[
    str | None,
    typer.Option("--granularity", help="What masks cut: channels or weights; channels for the networks small and mlp if omitted."),
]
Gamma = Annotated[float, typer.Option("--gamma", help="Weight of the mutual information in masks.", min=0)]
MinDepth = Annotated[
    float | None,
    typer.Option(
        "--min-depth",
        help="How deep in the wrong cell misclassified images must lie for a shortcut, 0.25 if omitted; 0 always goes on, as the paper does.",
        min=0,
    ),
]
Batch = Annotated[int, typer.Option("--batch-size", help="Images a step.", min=1)]
Rate = Annotated[float | None, typer.Option("--learning-rate", help="0.05 (SGD), for mlp 0.001 (Adam) if omitted.", min=0)]
Rho = Annotated[float, typer.Option("--rho", help="Share of images whose planted shortcut goes with the class.", min=0, max=1)]
Images = Annotated[int, typer.Option("--images", help="Training images of a planted set.", min=10)]
Epochs = Annotated[int, typer.Option("--epochs", help="Epochs of every training phase.", min=1)]
Model = Annotated[str, typer.Option("--model", help="small (4 convolutions), mlp, or a torchvision classifier such as resnet18.")]
Size = Annotated[int | None, typer.Option("--size", help="Pixels a side; the data's own if omitted (64 for a CSV).", min=4, max=1024)]


@app.command()
def audit(
    file: Annotated[Path, typer.Argument(help="CSV with a header: label, prediction and group of each sample.")],
    label: Annotated[str, typer.Option("--label", help="Column of the true class.")] = "label",
    prediction: Annotated[str, typer.Option("--prediction", help="Column of the predicted class.")] = "prediction",
    group: Annotated[str, typer.Option("--group", help="Column of the group; several, joined by commas, for intersections.")] = "group",
    positive: Annotated[
        str | None, typer.Option("--positive", help="Class of parity and odds; the worst over all classes if omitted.")
    ] = None,
    aligned: Annotated[list[str] | None, typer.Option("--aligned", help="LABEL=GROUP pairs that go together; repeat.")] = None,
    fail_under: Annotated[
        float | None, typer.Option("--fail-under", help="Exit 1 if the worst group's accuracy is lower.", min=0, max=1)
    ] = None,
    min_group: Annotated[int, typer.Option("--min-group", help="Smallest cell that can be the worst, in rows.", min=1)] = 1,
    resamples: Annotated[
        int, typer.Option("--resamples", help="Bootstrap draws for the 95 % intervals; 0 for none.", min=0, max=100_000)
    ] = 1000,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Accuracy by group, worst group, parity and odds of a table of predictions, with intervals. Needs no torch."""
    from fairnet.audit import audit as run_audit
    from fairnet.audit import read_predictions
    from fairnet.words import interval

    pairs: dict[str, str] = {}
    for item in aligned or []:
        name, separator, value = item.partition("=")
        if not separator:
            raise InputError(f"--aligned {item!r}: write LABEL=GROUP")
        pairs[name] = value
    predictions = read_predictions(file, label, prediction, group)
    found = run_audit(
        predictions,
        aligned=pairs or None,
        positive=positive,
        resamples=resamples,
        min_group=min_group,
        seed=seed,
    )
    if strange := sorted(set(predictions.prediction) - set(predictions.label)):
        say(f"{file}: predicted, but no row's {label}: {', '.join(strange[:5])}; counted as wrong")

    def show(console: Console) -> None:
        worst = found.worst_group
        console.print(
            f"[bold]worst group: {worst.label} in {worst.group}[/bold] {interval(worst.accuracy)} (n = {worst.n}), overall {interval(found.accuracy)}"
        )
        rows: list[list[Any]] = [[cell.label, cell.group, cell.n, interval(cell.accuracy)] for cell in found.cells]
        console.print(table("accuracy by label and group", ["label", "group", "n", "accuracy [95 %]"], rows))
        names = (
            "unbiased_accuracy",
            "aligned_accuracy",
            "conflicting_accuracy",
            "accuracy_gap",
            "demographic_parity_difference",
            "equalized_odds_difference",
        )
        console.print(table("summary", ["", "value [95 %]"], [[name.replace("_", " "), interval(getattr(found, name))] for name in names]))
        console.print("Group metrics describe these predictions; they do not certify fairness.")

    emit(found, as_json, show)
    accuracy = found.worst_group.accuracy.value
    if fail_under is not None and accuracy is not None and accuracy < fail_under:
        raise CheckFailed(
            f"worst group {found.worst_group.label} in {found.worst_group.group}: accuracy {accuracy:.4f} is under {fail_under}"
        )


@app.command()
def discover(
    data: DataOption = "digits",
    layout: Layout = None,
    plant: Plant = "colour",
    rho: Rho = 0.9,
    images: Images = 6000,
    model: Model = "small",
    epochs: Epochs = 10,
    min_depth: MinDepth = None,
    batch_size: Batch = 100,
    learning_rate: Rate = None,
    size: Size = None,
    seed: Seed = 0,
    out: Out = None,
    resume: Resume = None,
    as_json: Json = False,
) -> None:
    """Find a shortcut without bias labels: which training images contradict it, and a page that shows them."""
    require("torch", "fairnet[torch]")
    from edge_shared.files import open_run

    from fairnet.data.choose import load
    from fairnet.debias import discover_to
    from fairnet.methods._train import Settings

    source = {"data": data, "layout": layout, "plant": plant, "rho": rho, "images": images, "size": size}
    training = {"model": model, "epochs": epochs, "batch_size": batch_size, "lr": learning_rate}
    work = open_run(out, resume, {"source": source, "training": training, "min_depth": min_depth, "seed": seed})
    c = work.config
    loaded = load(**c["source"], seed=c["seed"])
    found = discover_to(loaded, Settings(**c["training"], seed=c["seed"]), work, c["min_depth"])

    def show(console: Console) -> None:
        depth = f"depth {found['depth']:.2f}, step {found['revealing_step']}"
        if found["shortcut_found"]:
            console.print(f"[bold]{found['conflicting']} of {len(loaded.train)} training images contradict a shortcut[/bold] ({depth})")
        else:
            console.print(f"[bold]no shortcut found[/bold]: misclassified images lie near the boundary ({depth})")
        console.print(
            table("by class", ["class", "conflicting images"], [[name, count] for name, count in found["conflicting_per_class"].items()])
        )
        console.print(f"They may also be hard or wrongly labelled: look at {work.out}/report.html")

    emit({"metrics": found, "out": work.out}, as_json, show)


@app.command()
def debias(
    data: DataOption = "digits",
    layout: Layout = None,
    plant: Plant = "colour",
    method: Annotated[
        str,
        typer.Option("--method", help="voronoi, ffw, voronoi-ffw, bise, jtt, lff, dfr, reweight, groupdro, random-mask or magnitude-mask."),
    ] = "voronoi",
    granularity: Granularity = None,
    gamma: Gamma = 1.0,
    min_depth: MinDepth = None,
    rho: Rho = 0.9,
    images: Images = 6000,
    balanced: Balanced = 1000,
    model: Model = "small",
    epochs: Epochs = 30,
    batch_size: Batch = 100,
    learning_rate: Rate = None,
    size: Size = None,
    seed: Seed = 0,
    out: Out = None,
    resume: Resume = None,
    as_json: Json = False,
) -> None:
    """Train the biased network and a method that debiases it; compare both on a test part without the shortcut, and export."""
    require("torch", "fairnet[torch]")
    from edge_shared.files import open_run

    from fairnet.data.choose import load
    from fairnet.debias import debias as run_debias
    from fairnet.methods import method as find
    from fairnet.methods._train import Settings
    from fairnet.words import percent

    find(method)
    source = {"data": data, "layout": layout, "plant": plant, "rho": rho, "images": images, "balanced": balanced, "size": size}
    training = {"model": model, "epochs": epochs, "batch_size": batch_size, "lr": learning_rate}
    masks = {"granularity": granularity, "gamma": gamma, "min_depth": min_depth}
    work = open_run(out, resume, {"source": source, "training": training, "masks": masks, "method": method, "seed": seed})
    c = work.config
    loaded = load(**c["source"], seed=c["seed"])
    result = run_debias(loaded, c["method"], Settings(**c["training"], seed=c["seed"]), work, **c["masks"])

    def show(console: Console) -> None:
        rows: list[list[Any]] = [
            [name, percent(getattr(result.before, key)), percent(getattr(result.after, key))]
            for name, key in (
                ("unbiased accuracy", "unbiased"),
                ("aligned", "aligned"),
                ("conflicting", "conflicting"),
                ("bias read by a probe", "probe"),
            )
        ]
        rows += [
            [f"{key.replace('_', ' ')}", result.cost[f"{key}_before"], result.cost[f"{key}_after"]]
            for key in ("parameters", "macs", "latency_ms")
        ]
        console.print(table(f"{result.method}, test part without the shortcut", ["", "biased network", result.method], rows))
        if result.details.get("shortcut_found") is False:
            console.print(f"no shortcut found (depth {result.details['depth']:.2f}): nothing was changed")
        console.print(f"report: {work.out}/report.html")

    metrics = {"before": result.before, "after": result.after, "details": result.details}
    emit({"metrics": metrics, "cost": result.cost, "artifacts": {"folder": work.out, "model": work.out / "model"}}, as_json, show)


@app.command()
def compare(
    out: Annotated[
        Path, typer.Option("--out", help="Folder of cells, table and report; a second call goes on where the first one stopped.")
    ],
    data: DataOption = "digits",
    layout: Layout = None,
    plant: Plant = "colour",
    methods: Annotated[str, typer.Option("--methods", help="Names joined by commas, or all; vanilla is always run.")] = "all",
    granularity: Granularity = None,
    gamma: Gamma = 1.0,
    min_depth: MinDepth = None,
    rho: Annotated[str, typer.Option("--rho", help="Shares joined by commas; one is enough for data that is not planted.")] = "0.9",
    seeds: Annotated[int, typer.Option("--seeds", help="Runs per cell; each draws data, colours and weights anew.", min=1)] = 5,
    images: Images = 6000,
    balanced: Balanced = 1000,
    model: Model = "small",
    epochs: Epochs = 30,
    batch_size: Batch = 100,
    learning_rate: Rate = None,
    size: Size = None,
    as_json: Json = False,
) -> None:
    """Methods side by side over shares and seeds, with paired intervals, as a table and a report; goes on where it was stopped."""
    require("torch", "fairnet[torch]")
    from fairnet.compare import compare as run_compare
    from fairnet.compare import write_report
    from fairnet.data.choose import load
    from fairnet.methods import METHODS
    from fairnet.methods import method as find
    from fairnet.plots import difference

    names = list(METHODS) if methods == "all" else [name.strip() for name in methods.split(",")]
    for name in names:
        find(name)
    try:
        shares = [float(share) for share in rho.split(",")]
    except ValueError:
        raise InputError(f"--rho {rho!r}: write shares joined by commas, such as 0.9,0.95") from None
    source: dict[str, Any] = {"data": data, "layout": layout, "plant": plant, "images": images, "balanced": balanced, "size": size}
    first = load(**source, rho=shares[0])  # bad data ends the command here, with its one line, not in every cell
    if not first.attributes and methods == "all":
        names = [name for name in names if name in ("vanilla", "voronoi", "voronoi-ffw", "jtt", "lff")]
    training = {"model": model, "epochs": epochs, "batch_size": batch_size, "lr": learning_rate}
    result = run_compare(
        source, names, shares, range(seeds), settings=training, out=out, granularity=granularity, gamma=gamma, min_depth=min_depth
    )
    settings = {**source, **training, "rho": shares, "seeds": seeds, "granularity": granularity, "gamma": gamma, "min_depth": min_depth}
    write_report(out, result, "fairnet compare", settings, first.synthetic)
    for one in result["failed"]:
        say(f"{one['parameters']['method']} at seed {one['parameters']['seed']}: {one['error']}")

    def show(console: Console) -> None:
        for share, found in result["summary"].items():
            rows = [
                [
                    name,
                    difference(row.get("unbiased")),
                    difference(row.get("conflicting") or row.get("worst_class")),
                    difference(row.get("aligned")),
                ]
                for name, row in found.items()
            ]
            console.print(table(f"rho {share}, {seeds} seeds, %", ["method", "unbiased", "conflicting (or worst class)", "aligned"], rows))
        console.print("in parentheses: paired difference to vanilla in points [95 %]")
        console.print(f"report: {out}/report.html")

    emit({"metrics": result["summary"], "artifacts": {"folder": out}, "failed": result["failed"]}, as_json, show)
    if result["failed"] and not any("result" in one for one in result["cells"]):
        raise CheckFailed("every run failed; see above")


def main() -> int:
    """Run the command line; returns the exit code."""
    return run(app)
