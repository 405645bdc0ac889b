"""The `fairnet` command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from edge_shared.cli import Json, Out, Resume, Seed, application, emit, run, table
from edge_shared.errors import CheckFailed, InputError, require

if TYPE_CHECKING:
    from rich.console import Console

    from fairnet.data.parts import BiasedSet

app = application("fairnet", "Find the shortcut in an image model, cut it out, prove it.")

DataOption = Annotated[
    str, typer.Option("--data", help="CSV of your own images (path, label, group, split), or an image set to plant a colour shortcut in.")
]
Rho = Annotated[float, typer.Option("--rho", help="Share of images whose planted colour goes with the class.", min=0, max=1)]
Images = Annotated[int, typer.Option("--images", help="Training images of a planted set.", min=10)]
Epochs = Annotated[int, typer.Option("--epochs", help="Epochs of every training phase.", min=1)]
Model = Annotated[str, typer.Option("--model", help="small, or a torchvision classifier such as resnet18.")]
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
    found = run_audit(
        read_predictions(file, label, prediction, group),
        aligned=pairs or None,
        positive=positive,
        resamples=resamples,
        min_group=min_group,
        seed=seed,
    )

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
    rho: Rho = 0.9,
    images: Images = 6000,
    model: Model = "small",
    epochs: Epochs = 10,
    size: Size = None,
    seed: Seed = 0,
    out: Out = None,
    resume: Resume = None,
    as_json: Json = False,
) -> None:
    """Find a shortcut without bias labels: which training images contradict it, and a page that shows them."""
    require("torch", "fairnet[torch]")
    from edge_shared.files import open_run

    from fairnet.debias import discover_to
    from fairnet.methods._train import Settings

    work = open_run(out, resume, {"data": data, "rho": rho, "images": images, "model": model, "epochs": epochs, "size": size, "seed": seed})
    loaded, c = _load(work.config), work.config
    found = discover_to(loaded, Settings(model=c["model"], epochs=c["epochs"], seed=c["seed"]), work)

    def show(console: Console) -> None:
        console.print(
            f"[bold]{found['conflicting']} of {len(loaded.train)} training images contradict the shortcut[/bold] (step {found['revealing_step']})"
        )
        console.print(
            table("by class", ["class", "conflicting images"], [[name, count] for name, count in found["conflicting_per_class"].items()])
        )
        console.print(f"They may also be hard or wrongly labelled: look at {work.out}/report.html")

    emit({"metrics": found, "out": work.out}, as_json, show)


@app.command()
def debias(
    data: DataOption = "digits",
    method: Annotated[str, typer.Option("--method", help="voronoi, ffw, voronoi-ffw, jtt, lff, dfr, reweight or groupdro.")] = "voronoi",
    rho: Rho = 0.9,
    images: Images = 6000,
    model: Model = "small",
    epochs: Epochs = 30,
    size: Size = None,
    seed: Seed = 0,
    out: Out = None,
    resume: Resume = None,
    as_json: Json = False,
) -> None:
    """Train the biased network and a method that debiases it; compare both on a test part without the shortcut, and export."""
    require("torch", "fairnet[torch]")
    from edge_shared.files import open_run

    from fairnet.debias import debias as run_debias
    from fairnet.methods import method as find
    from fairnet.methods._train import Settings
    from fairnet.words import percent

    find(method)
    settings = {"data": data, "method": method, "rho": rho, "images": images, "model": model, "epochs": epochs, "size": size, "seed": seed}
    work = open_run(out, resume, settings)
    c = work.config
    result = run_debias(_load(c), c["method"], Settings(model=c["model"], epochs=c["epochs"], seed=c["seed"]), work)

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
        console.print(f"report: {work.out}/report.html")

    metrics = {"before": result.before, "after": result.after, "details": result.details}
    emit({"metrics": metrics, "cost": result.cost, "artifacts": {"folder": work.out, "model": work.out / "model"}}, as_json, show)


@app.command()
def compare(
    out: Annotated[Path, typer.Option("--out", help="Folder of the cells and the summary; a second call goes on where the first stopped.")],
    data: DataOption = "digits",
    methods: Annotated[
        str, typer.Option("--methods", help="Names joined by commas; vanilla is always run.")
    ] = "voronoi,ffw,voronoi-ffw,dfr,jtt",
    rho: Annotated[str, typer.Option("--rho", help="Shares joined by commas.")] = "0.9,0.95",
    seeds: Annotated[int, typer.Option("--seeds", help="Runs per cell; each draws data, colours and weights anew.", min=1)] = 5,
    images: Images = 6000,
    model: Model = "small",
    epochs: Epochs = 30,
    as_json: Json = False,
) -> None:
    """Methods side by side over shares and seeds, with paired intervals; resumable."""
    require("torch", "fairnet[torch]")
    from edge_shared.files import write_json

    from fairnet.compare import compare as run_compare
    from fairnet.methods import method as find

    names = [name.strip() for name in methods.split(",")]
    for name in names:
        find(name)
    try:
        shares = [float(share) for share in rho.split(",")]
    except ValueError:
        raise InputError(f"--rho {rho!r}: write shares joined by commas, such as 0.9,0.95") from None
    result = run_compare(data, names, shares, range(seeds), images=images, epochs=epochs, model=model, out=out)
    write_json(out / "compare.json", result)

    def show(console: Console) -> None:
        for share, found in result["summary"].items():
            rows: list[list[Any]] = []
            for name, values in found.items():
                one = values.get("unbiased")
                if one:
                    change = (
                        "" if one["low"] is None else f"{100 * one['difference']:+.1f} [{100 * one['low']:+.1f}, {100 * one['high']:+.1f}]"
                    )
                    rows.append([name, f"{100 * one['mean']:.1f}", change])
            console.print(
                table(
                    f"rho {share}: unbiased test accuracy over {seeds} seeds",
                    ["method", "mean, %", "paired difference to vanilla, points [95 %]"],
                    rows,
                )
            )

    emit(result["summary"], as_json, show)


def _load(config: dict[str, Any]) -> BiasedSet:
    from fairnet.debias import load

    return load(config["data"], rho=config["rho"], images=config["images"], seed=config["seed"], size=config["size"])


def main() -> int:
    """Run the command line; returns the exit code."""
    return run(app)
