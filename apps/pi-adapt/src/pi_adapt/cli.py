"""The `pi-adapt` command: a thin shell over `pi_adapt.pipeline.adapt`."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
from edge_shared.cli import Json, Out, Resume, Seed, application, emit, run, say, table

app = application("pi-adapt", "One command takes a network and data to a Raspberry Pi: search, shorten, audit, personalise, export.")


@app.command("run")
def run_(
    data: Annotated[
        str, typer.Option("--data", help="Images by name (digits, mnist, cifar10, ...) or path (ImageFolder, .npz).")
    ] = "digits",
    model: Annotated[
        str | None, typer.Option("--model", help="Your network: a model folder, a torchvision name or timm:NAME; searched if omitted.")
    ] = None,
    weights: Annotated[str | None, typer.Option("--weights", help="State dict for a --model that is a name: safetensors or torch.")] = None,
    image_size: Annotated[
        int | None, typer.Option("--image-size", help="Pixels a side; the model's or the data's own if omitted.", min=4)
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", help="At most so many images of each part.", min=1)] = None,
    device: Annotated[str, typer.Option("--device", help="Device profile: a name (`edge devices` lists them) or a TOML file.")] = "pi-4b",
    budget: Annotated[
        str | None, typer.Option("--budget", help="RAM of the network: 8kB, 1MiB or bytes; what the device allows if omitted.")
    ] = None,
    space: Annotated[
        str, typer.Option("--space", help="What is searched: pi, a preset of moofa, or a JSON file of `moofa design`.")
    ] = "pi",
    shortcut: Annotated[
        str, typer.Option("--shortcut", help="light: plant one in the images (synthetic); none; auto: light in sets known by name.")
    ] = "auto",
    rho: Annotated[
        float, typer.Option("--rho", help="Share of training images whose planted light goes with the class.", min=0, max=1)
    ] = 0.9,
    shift: Annotated[str, typer.Option("--shift", help="The new domain: inverted, rotated, or images of your own by path.")] = "inverted",
    method: Annotated[
        str, typer.Option("--method", help="How the device learns; `ondevice-train fit --help` lists the methods.")
    ] = "sparse-update",
    training_budget: Annotated[str, typer.Option("--training-budget", help="Memory for training on the device, such as 64kB.")] = "64kB",
    epochs: Annotated[
        int | None, typer.Option("--epochs", help="Of the supernet (12), or of your model on the data (0 if it fits, else 4).", min=0)
    ] = None,
    finetune_epochs: Annotated[
        int, typer.Option("--finetune-epochs", help="After extraction and after each round of shortening.", min=0)
    ] = 6,
    gate_epochs: Annotated[int, typer.Option("--gate-epochs", help="At most, of the search for the shortcut's weights.", min=1)] = 40,
    personal_epochs: Annotated[int, typer.Option("--personal-epochs", help="Of training on the device.", min=1)] = 20,
    personal_lr: Annotated[float, typer.Option("--personal-lr", help="Learning rate of training on the device.")] = 0.02,
    networks: Annotated[int, typer.Option("--networks", help="Networks to measure for the accuracy predictor.", min=10)] = 24,
    tolerance: Annotated[float, typer.Option("--tolerance", help="Validation accuracy that shortening may cost (0.01 = 1 point).")] = 0.02,
    repeats: Annotated[int, typer.Option("--repeats", help="Timed runs of each exported file.", min=10)] = 100,
    seed: Seed = 0,
    out: Out = None,
    resume: Resume = None,
    as_json: Json = False,
) -> None:
    """Pick or take a network, shorten it, cut out a shortcut, let it learn a new domain within a byte budget, export and verify."""
    from edge_shared.units import parse_bytes

    from pi_adapt.config import AdaptConfig
    from pi_adapt.page import COLUMNS, headline, rows
    from pi_adapt.pipeline import adapt

    config = AdaptConfig(
        data=data, image_size=image_size, limit=limit, model=model, weights=weights, device=device,
        budget=None if budget is None else parse_bytes(budget), space=space, shortcut=shortcut, rho=rho, shift=shift, method=method,
        training_budget=training_budget, epochs=epochs, finetune_epochs=finetune_epochs, gate_epochs=gate_epochs,
        personal_epochs=personal_epochs, personal_lr=personal_lr, networks=networks, tolerance=tolerance, repeats=repeats, seed=seed,
    )  # fmt: skip
    done = adapt(config, out, resume=resume, say=say, command="pi-adapt " + " ".join(sys.argv[1:] or ["run"]))

    def show(console: Any) -> None:
        console.print(table(headline(done), list(COLUMNS), rows(done)))
        console.print(
            f"{sum(done.seconds.values()):.0f} s; the files for the Pi are in {done.out}/6-export/model (open {done.out}/report.html)"
        )

    from edge_shared.report import read_result

    result = read_result(done.out)
    emit({**result.model_dump(mode="json", include={"metrics", "cost", "artifacts", "seed", "notes"}), "out": str(done.out)}, as_json, show)


def main() -> int:
    """Run the command line; returns the exit code."""
    # Idle threads that spin make small networks several times slower on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return run(app)
