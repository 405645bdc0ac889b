"""The `moofa` command: thin shells over documented functions."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from edge_shared.cli import Device, Json, Out, Resume, Seed, application, emit, run, say, table

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
    from edge_shared.errors import InputError
    from edge_shared.files import read_json
    from edge_shared.units import format_bytes, format_count

    from moofa.profile import profile_all

    if compat is not None and (compat != "moofa-paper" or memory_model not in (None, "A")):
        raise InputError(f"--compat {compat!r}: the one known is moofa-paper, which counts with --memory-model A")
    chosen = _target(memory_model, bits, device).device  # a wrong option ends the command here, and is no fault of a network
    documents = read_json(file, "network")
    profiles = profile_all(
        documents, where=str(file), memory_model=memory_model, bits=bits, device=chosen, compat=compat, with_layers=layers
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


RamBudget = Annotated[str | None, typer.Option("--budget", help="RAM limit: 256kB, 1.5MiB or bytes; the device's if omitted.")]
FlashBudget = Annotated[str | None, typer.Option("--flash", help="Flash limit for weights: 1MiB or bytes; the device's if omitted.")]
MacsBudget = Annotated[int | None, typer.Option("--macs", help="Limit on multiply-accumulates.", min=1)]
LatencyBudget = Annotated[float | None, typer.Option("--latency", help="Limit in ms, estimated from --latency-table.", min=0)]
LatencyFile = Annotated[
    Path | None, typer.Option("--latency-table", help="File of `moofa latency`, of the machine that will run the network.")
]
Model = Annotated[Path, typer.Option("--model", help="Folder of `moofa train`.")]


def _target(memory_model: str | None, bits: int, device: str | None) -> Any:
    from moofa.budget import Target

    profile = _device(device)
    return Target(memory_model or (profile.memory_model if profile else "D"), bits, profile)  # type: ignore[arg-type]


def _latency(path: Path | None, space: Any) -> Any:
    if path is None:
        return None
    from moofa.latency import LatencyTable

    return LatencyTable.load(path, space)


def _budget(target: Any, budget: str | None, flash: str | None, macs: int | None, latency: float | None = None) -> Any:
    from edge_shared.units import parse_bytes

    from moofa.budget import Budget, device_budget

    base = device_budget(target) if target.device else Budget()
    return Budget(
        ram=parse_bytes(budget) if budget is not None else base.ram,
        flash=parse_bytes(flash) if flash is not None else base.flash,
        macs=macs,
        latency_ms=latency,
    )


def _numbers(text: str, option: str, kind: Any) -> tuple[Any, ...]:
    from edge_shared.errors import InputError

    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{option} {text!r}: write numbers with commas, such as 3,5,7") from None


def _infeasible(error: Any, as_json: bool) -> None:
    # The caller still gets one document on stdout, then exit code 1 and the line on stderr.
    if as_json:
        emit({"feasible": False, "error": str(error), "smallest": error.smallest}, True)


@app.command()
def design(
    budget: RamBudget = None,
    flash: FlashBudget = None,
    resolution: Annotated[int, typer.Option("--resolution", help="Input pixels.", min=4, max=4096)] = 32,
    in_channels: Annotated[int, typer.Option("--in-channels", help="Channels of the images.", min=1, max=64)] = 3,
    classes: Annotated[int, typer.Option("--classes", help="Outputs of the classifier.", min=2)] = 10,
    stages: Annotated[
        int | None, typer.Option("--stages", help="Elastic stages; down to about 4 pixels if omitted.", min=1, max=12)
    ] = None,
    depths: Annotated[str, typer.Option("--depths", help="Blocks per stage to choose from.")] = "1,2",
    kernels: Annotated[str, typer.Option("--kernels", help="Kernels to choose from.")] = "3,5",
    expands: Annotated[str, typer.Option("--expands", help="Expansions to choose from.")] = "2,3,4",
    divisor: Annotated[int, typer.Option("--divisor", help="Widths are multiples of it.", min=1, max=64)] = 4,
    se: Annotated[bool, typer.Option("--se/--no-se", help="Squeeze-and-excite in every block.")] = False,
    activation: Annotated[str, typer.Option("--activation", help="relu, relu6 or hardswish.")] = "relu6",
    memory_model: MemoryModelOption = None,
    bits: Bits = 8,
    device: Device = None,
    out: Annotated[Path | None, typer.Option("--out", help="JSON file to write the space to (for `moofa train --space`).")] = None,
    as_json: Json = False,
) -> None:
    """Solve the widths of a space whose blocks all need about as much memory as the budget allows.

    Stem, stride-2 blocks and skip tensors count. Where weights lie in flash, limit them with --flash: widths would grow
    fourfold with each halving of the size.
    """
    from edge_shared.files import write_json
    from edge_shared.units import format_bytes, format_count

    from moofa.budget import Infeasible
    from moofa.design import DesignConfig
    from moofa.design import design as solve
    from moofa.space import Space

    target = _target(memory_model, bits, device)
    config = DesignConfig(
        resolution=resolution,
        in_channels=in_channels,
        classes=classes,
        stages=stages,
        depths=_numbers(depths, "--depths", int),
        kernels=_numbers(kernels, "--kernels", int),
        expands=_numbers(expands, "--expands", float),
        divisor=divisor,
        se=se,
        activation=activation,  # type: ignore[arg-type]
    )
    # Options are checked by the space's own rules before anything is solved.
    probe = {"depths": config.depths, "kernels": config.kernels, "expands": config.expands, "activation": activation, "width": 8}
    Space.from_json({"stem": {"out": 8}, "stages": [probe]}, "design")
    try:
        found = solve(_budget(target, budget, flash, None), target, config)
    except Infeasible as error:
        _infeasible(error, as_json)
        raise
    document = {
        "space": found.space,
        "budget": found.budget,
        "memory_model": target.memory_model,
        "bits": bits,
        "device": target.device.name if target.device else None,
        "widths": [stage.width for stage in found.space.stages],
        "networks": found.space.size,
        "largest": found.largest,
        "smallest": found.smallest,
        "cap": found.cap,
        "control": found.control,
        "same_stages": found.same_stages,
    }
    if out:
        write_json(out, document)
        say(f"wrote {out}")

    def show(console: Any) -> None:
        stem = found.space.stem
        console.print(f"stem {stem.out} channels, stride {stem.stride}; widths {document['widths']}; {found.space.size:,} networks")
        rows: list[list[Any]] = [
            [name, format_bytes(ends["ram"]), format_bytes(ends["flash"]), format_count(ends["macs"]), ends["flatness"]]
            for name, ends in (("largest", found.largest), ("smallest", found.smallest))
        ]
        for name, other in (("Once-For-All's layout", found.control), ("its widths, same stages", found.same_stages)):
            if other:
                rows.append([f"{name} {other['widths']}", format_bytes(other["ram"]), None, None, other["flatness"]])
        console.print(table("networks", ["network", "RAM", "flash", "MACs", "flatness"], rows))

    emit(document, as_json, show)


@app.command()
def train(
    space: Annotated[
        str, typer.Option("--space", help="Preset or JSON file of `moofa design`; channels and classes follow the data.")
    ] = "digits8",
    data: Annotated[str, typer.Option("--data", help="Data set by name, or a path: ImageFolder, .npz, IDX.")] = "digits",
    limit: Annotated[int | None, typer.Option("--limit", help="At most so many images of each part.", min=1)] = None,
    schedule: Annotated[str, typer.Option("--schedule", help="sandwich, or progressive (the papers' phases).")] = "sandwich",
    source: Annotated[str, typer.Option("--source", help="Whose phases progressive follows: once-for-all or moofa.")] = "once-for-all",
    epochs: Annotated[int, typer.Option("--epochs", help="Epochs, all phases together.", min=1)] = 30,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Images per step.", min=1)] = 64,
    lr: Annotated[float, typer.Option("--lr", help="Base learning rate.")] = 0.1,
    networks: Annotated[int, typer.Option("--networks", help="Networks to measure for the accuracy predictor.", min=10)] = 200,
    accelerator: Annotated[str, typer.Option("--accelerator", help="Where to train: auto, cpu or cuda.")] = "auto",
    seed: Seed = 0,
    out: Out = None,
    resume: Resume = None,
    as_json: Json = False,
) -> None:
    """Train a supernet and its accuracy predictor (on held-out training images, never the test part)."""
    from edge_shared.errors import require
    from edge_shared.files import open_run
    from edge_shared.report import DataInfo, Result, Section, Table, write_html, write_result

    require("torch", "moofa[torch]")
    from moofa.plots import training_curves
    from moofa.space import Space, load_space
    from moofa.training import SupernetConfig
    from moofa.workflow import train as train_run

    options: dict[str, Any] = {
        "data": data, "limit": limit, "schedule": schedule, "source": source, "epochs": epochs, "batch_size": batch_size, "lr": lr,
        "networks": networks, "accelerator": accelerator, "seed": seed,
    }  # fmt: skip
    if resume is None:
        SupernetConfig(schedule=schedule, source=source, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed)  # type: ignore[arg-type]
        options["space"] = load_space(space).model_dump(mode="json")
    folder = open_run(out, resume, options)
    done = train_run(folder, Space.from_json(folder.config["space"]))
    figures = [training_curves(folder.path, done["histories"])]
    settings = {name: value for name, value in folder.config.items() if name != "space"}
    result = Result(
        command=f"moofa train --out {folder.out}",
        metrics=done["metrics"],
        cost=done["cost"],
        artifacts={
            "supernet": "supernet.safetensors",
            "predictor": "predictor.safetensors",
            "space": "space.json",
            "labels": "labels.json",
        },
        seed=folder.config["seed"],
        data=DataInfo(**done["data"]),
        settings=settings,
    )
    write_result(folder.path, result)
    quality = done["metrics"]["predictor"]
    rows: list[list[Any]] = [
        ["largest network, held-out accuracy", done["metrics"]["largest_val_accuracy"]],
        ["smallest network, held-out accuracy", done["metrics"]["smallest_val_accuracy"]],
        ["networks measured", quality["networks"]],
        ["predictor, Kendall's tau on unseen networks", quality["kendall_tau"]],
        ["predictor, RMSE on unseen networks", quality["rmse"]],
    ]
    sections = [Section("Supernet", table=Table(["", "value"], rows)), Section("Training", figures=figures)]
    write_html(folder.path, f"moofa: supernet {folder.config['space']['name']}", sections, result)
    folder.commit()
    say(f"wrote {folder.out}")
    emit({**_result_keys(result), "out": str(folder.out)}, as_json, lambda console: console.print(table("supernet", ["", "value"], rows)))


def _result_keys(result: Any) -> dict[str, Any]:
    return {"metrics": result.metrics, "cost": result.cost, "artifacts": result.artifacts, "seed": result.seed, "settings": result.settings}


@app.command()
def search(
    model: Model,
    budget: RamBudget = None,
    flash: FlashBudget = None,
    macs: MacsBudget = None,
    latency: LatencyBudget = None,
    latency_table: LatencyFile = None,
    memory_model: MemoryModelOption = None,
    bits: Bits = 8,
    device: Device = None,
    method: Annotated[str, typer.Option("--method", help="evolution, exhaustive, or auto: exhaustive up to 100,000 networks.")] = "auto",
    seed: Seed = 0,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Find the network with the best predicted accuracy within a budget; exit code 1 if there is none.

    A larger budget never gives a worse network.
    """
    from edge_shared.files import open_run, write_json
    from edge_shared.report import Result, Section, Table, write_html, write_result
    from edge_shared.units import format_bytes, format_count

    from moofa.budget import Infeasible
    from moofa.costs import CostTable
    from moofa.profile import profile as profile_of
    from moofa.search import search as find
    from moofa.workflow import Trained

    trained = Trained.load(model)
    target = _target(memory_model, bits, device)
    limits = _budget(target, budget, flash, macs, latency)
    times = _latency(latency_table, trained.space)
    try:
        found = find(CostTable(trained.space, target, times), trained.predictor, limits, method=method, seed=seed)  # type: ignore[arg-type]
    except Infeasible as error:
        _infeasible(error, as_json)
        raise
    config = trained.space.config(found.found.choice)
    settings = {
        "model": str(model),
        "budget": limits.limits,
        "memory_model": target.memory_model,
        "bits": bits,
        "device": device,
        "method": method,
    }
    metrics: dict[str, Any] = {
        "predicted_accuracy": found.found.score,
        "utilisation": found.utilisation,
        "flatness": found.found.costs["flatness"],
        "evaluated": found.evaluated,
        "method": found.method,
        "search_seconds": found.seconds,
    }
    if times is not None:
        from moofa.latency import measure

        # The estimate is for the table's machine; this one is measured with as many threads.
        metrics["estimated_latency_ms"] = found.found.costs["latency_ms"]
        metrics["measured_latency"] = asdict(measure(config, threads=times.machine["threads"]))
    choice = {"choice": found.found.choice.to_json(), "network": config.model_dump(mode="json")}
    artifacts: dict[str, str] = {}
    if out:
        from moofa.plots import architecture, memory_histogram, pareto

        folder = open_run(out, None, settings)
        write_json(folder.path / "choice.json", choice)
        artifacts = {"choice": "choice.json"}
        one = profile_of(config, memory_model=target.memory_model, bits=bits, device=target.device)
        figures = [
            memory_histogram(folder.path, one, limits.ram),
            architecture(folder.path, config),
            pareto(folder.path, found.archive, found.archive.front(("ram",)), [limits.ram] if limits.ram else []),
        ]
        result = Result(
            command="moofa search", metrics=metrics, cost=found.found.costs, artifacts=artifacts, seed=seed, settings=settings,
            notes=["The accuracy is the predictor's estimate; `moofa extract` measures it on the test part."],
        )  # fmt: skip
        write_result(folder.path, result)
        cells: list[list[Any]] = [[name, value] for name, value in {**metrics, **found.found.costs}.items()]
        write_html(
            folder.path, "moofa: network within a budget", [Section("Found", table=Table(["", "value"], cells), figures=figures)], result
        )
        folder.commit()
        say(f"wrote {out}")

    def show(console: Any) -> None:
        costs = found.found.costs
        use = "" if found.utilisation is None else f", {found.utilisation:.1%} of the budget"
        latency_rows: list[list[Any]] = []
        if times is not None:
            latency_rows.append(["latency, estimated", f"{costs['latency_ms']:.3g} ms"])
            latency_rows.append(["latency, measured here (median)", f"{metrics['measured_latency']['median_ms']:.3g} ms"])
        rows: list[list[Any]] = [
            ["predicted accuracy", f"{found.found.score:.2%}"],
            ["RAM", f"{format_bytes(costs['ram'])}{use}"],
            ["flash", format_bytes(costs["flash"])],
            ["MACs", format_count(costs["macs"])],
            *latency_rows,
            ["flatness", costs["flatness"]],
            ["networks looked at", found.evaluated],
            ["seconds", found.seconds],
        ]
        console.print(table(f"within {limits.describe()}", ["", "value"], rows))
        for index, stage in enumerate(found.found.choice.stages):
            console.print(f"stage {index}: " + ", ".join(f"kernel {k} expand {e:g}" for k, e in stage))

    document = {
        "feasible": True,
        "metrics": metrics,
        "cost": found.found.costs,
        "artifacts": artifacts,
        "settings": settings,
        "seed": seed,
        **choice,
    }
    emit(document, as_json, show)


@app.command()
def pareto(
    model: Model,
    costs: Annotated[str, typer.Option("--costs", help="Costs to keep low, with commas: ram, flash, macs, latency.")] = "ram",
    budget: RamBudget = None,
    flash: FlashBudget = None,
    macs: MacsBudget = None,
    latency: LatencyBudget = None,
    latency_table: LatencyFile = None,
    memory_model: MemoryModelOption = None,
    bits: Bits = 8,
    device: Device = None,
    population: Annotated[int, typer.Option("--population", help="Networks per generation of NSGA-II.", min=8)] = 100,
    generations: Annotated[int, typer.Option("--generations", help="Generations of NSGA-II.", min=1)] = 40,
    seed: Seed = 0,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """List the networks that no other beats in predicted accuracy and the costs (NSGA-II)."""
    import csv
    import io

    from edge_shared.files import open_run, write_json, write_text
    from edge_shared.report import Result, Section, Table, write_html, write_result
    from edge_shared.units import format_bytes, format_count

    from moofa.budget import Infeasible
    from moofa.costs import CostTable
    from moofa.search import Archive, nsga2
    from moofa.workflow import Trained

    trained = Trained.load(model)
    target = _target(memory_model, bits, device)
    limits = _budget(target, budget, flash, macs, latency)
    times = _latency(latency_table, trained.space)
    names = tuple({"latency": "latency_ms"}.get(part.strip(), part.strip()) for part in costs.split(","))
    archive = Archive(CostTable(trained.space, target, times), trained.predictor)
    try:
        front = nsga2(archive, names=names, budget=limits, population=population, generations=generations, seed=seed)
    except Infeasible as error:
        _infeasible(error, as_json)
        raise
    points = [{"predicted_accuracy": one.score, **one.costs, "choice": one.choice.to_json()} for one in front]
    metrics = {"networks": len(points), "evaluated": len(archive), "best_predicted_accuracy": max(one.score for one in front)}
    settings = {
        "model": str(model),
        "costs": names,
        "budget": limits.limits,
        "memory_model": target.memory_model,
        "bits": bits,
        "device": device,
    }
    artifacts: dict[str, str] = {}
    columns = ["predicted_accuracy", "ram", "flash", "macs", *(["latency_ms"] if times is not None else []), "params", "flatness"]
    if out:
        from moofa.plots import pareto as draw

        folder = open_run(out, None, settings)
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(columns)
        writer.writerows([point[name] for name in columns] for point in points)
        write_text(folder.path / "front.csv", text.getvalue())
        write_json(folder.path / "front.json", points)
        artifacts = {"csv": "front.csv", "json": "front.json"}
        plot = draw(folder.path, archive, front, [limits.ram] if limits.ram else [])
        result = Result(command="moofa pareto", metrics=metrics, artifacts=artifacts, seed=seed, settings=settings)
        write_result(folder.path, result)
        cells = [[point[name] for name in columns] for point in points]
        write_html(folder.path, "moofa: accuracy against cost", [Section("Front", table=Table(columns, cells), figures=[plot])], result)
        folder.commit()
        say(f"wrote {out}")

    def show(console: Any) -> None:
        rows: list[list[Any]] = [
            [f"{one.score:.2%}", format_bytes(one.costs["ram"]), format_bytes(one.costs["flash"]), format_count(one.costs["macs"])]
            + ([f"{one.costs['latency_ms']:.3g}"] if times is not None else [])
            for one in front
        ]
        heads = ["predicted accuracy", "RAM", "flash", "MACs", *(["ms, estimated"] if times is not None else [])]
        console.print(table("front", heads, rows))

    emit({"metrics": metrics, "cost": {}, "artifacts": artifacts, "settings": settings, "seed": seed, "front": points}, as_json, show)


@app.command()
def latency(
    space: Annotated[str | None, typer.Option("--space", help="Preset or JSON file of the space.")] = None,
    model: Annotated[Path | None, typer.Option("--model", help="Folder of `moofa train`, whose space is timed.")] = None,
    threads: Annotated[int, typer.Option("--threads", help="Threads of ONNX Runtime.", min=1)] = 1,
    milliseconds: Annotated[float, typer.Option("--milliseconds", help="Time spent on each block.", min=1)] = 20.0,
    out: Annotated[Path | None, typer.Option("--out", help="JSON file for --latency-table.")] = None,
    as_json: Json = False,
) -> None:
    """Time every block of a space on this machine, so that searches can limit and trade latency.

    A network's latency is then estimated as the sum of its blocks; the smallest and the largest network are also timed as a whole.
    """
    from edge_shared.cli import progress
    from edge_shared.errors import InputError

    from moofa.budget import Target
    from moofa.costs import CostTable
    from moofa.latency import measure, measure_space
    from moofa.space import Space, load_space
    from moofa.workflow import Trained

    if (space is None) == (model is None):
        raise InputError("give --space (a preset or a file) or --model (a folder of `moofa train`)")
    timed: Space = Trained.load(model).space if model is not None else load_space(str(space))
    rounds = len(timed.resolutions) * max(len(stage.kernels) for stage in timed.stages) * max(len(stage.expands) for stage in timed.stages)
    with progress("timing blocks", rounds) as advance:
        found = measure_space(timed, threads=threads, milliseconds=milliseconds, advance=advance)
    if out:
        found.save(out)
        say(f"wrote {out}")
    costs = CostTable(timed, Target(), found)
    ends = {}
    for name, choice in (("smallest", timed.smallest()), ("largest", timed.largest())):
        estimate = costs.costs(costs.genes.encode([choice])).latency_ms[0].item()
        ends[name] = {"estimated_ms": estimate, "measured": asdict(measure(timed.config(choice), threads=threads))}
    document = {"machine": found.machine, "blocks": rounds * len(found.blocks), **ends}

    def show(console: Any) -> None:
        rows: list[list[Any]] = [[name, f"{end['estimated_ms']:.3g}", f"{end['measured']['median_ms']:.3g}"] for name, end in ends.items()]
        console.print(table(f"{timed.name}: {document['blocks']} blocks timed", ["network", "ms, estimated", "ms, measured"], rows))

    emit(document, as_json, show)


@app.command()
def extract(
    model: Annotated[Path | None, typer.Option("--model", help="Folder of `moofa train`.")] = None,
    choice: Annotated[
        Path | None, typer.Option("--choice", help="choice.json of `moofa search --out`; else the best within the budget.")
    ] = None,
    budget: RamBudget = None,
    flash: FlashBudget = None,
    macs: MacsBudget = None,
    latency: LatencyBudget = None,
    latency_table: LatencyFile = None,
    memory_model: MemoryModelOption = None,
    bits: Bits = 8,
    device: Device = None,
    epochs: Annotated[int, typer.Option("--epochs", help="Epochs of fine-tuning; 0 keeps the supernet's weights.", min=0)] = 0,
    lr: Annotated[float, typer.Option("--lr", help="Learning rate of fine-tuning.")] = 0.01,
    data: Annotated[str | None, typer.Option("--data", help="The images, if they moved since training.")] = None,
    out: Out = None,
    resume: Resume = None,
    as_json: Json = False,
) -> None:
    """Cut one network out of the supernet, fine-tune it, and export it: safetensors with recipe, ONNX in float and int8.

    The accuracies of all three are measured on the test part, the live bytes on this machine.
    """
    from edge_shared.errors import InputError, require
    from edge_shared.files import open_run, read_json, write_json
    from edge_shared.report import DataInfo, Result, Section, Table, write_html, write_result

    require("torch", "moofa[torch]")
    from moofa.budget import Infeasible
    from moofa.costs import CostTable
    from moofa.plots import architecture, memory_histogram
    from moofa.profile import profile as profile_of
    from moofa.search import search as find
    from moofa.space import Choice
    from moofa.workflow import Trained, specialise

    if resume is not None:
        folder = open_run(None, resume, {})
    else:
        if model is None:
            raise InputError("give --model (a folder of `moofa train`), or --resume")
        trained = Trained.load(model)
        target = _target(memory_model, bits, device)
        limits = _budget(target, budget, flash, macs, latency)
        if choice is not None:
            document = read_json(choice, "choice")
            if not isinstance(document, dict):
                raise InputError(f"--choice {choice}: this is no choice of `moofa search`")
            chosen = Choice.from_json(document.get("choice", document))
            trained.space.check(chosen)
        else:
            times = _latency(latency_table, trained.space)
            try:
                chosen = find(CostTable(trained.space, target, times), trained.predictor, limits).found.choice
            except Infeasible as error:
                _infeasible(error, as_json)
                raise
        settings = {
            "model": str(model),
            "choice": chosen.to_json(),
            "epochs": epochs,
            "lr": lr,
            "memory_model": target.memory_model,
            "bits": bits,
            "device": device,
            "ram_budget": limits.ram,
            "data": data,
        }
        folder = open_run(out, None, settings)
    settings = folder.config
    trained = Trained.load(Path(settings["model"]))
    target = _target(settings["memory_model"], settings["bits"], settings["device"])
    chosen = Choice.from_json(settings["choice"])
    done = specialise(trained, chosen, folder.path, epochs=settings["epochs"], lr=settings["lr"], data=settings["data"], target=target)
    config = trained.space.config(chosen)
    write_json(folder.path / "choice.json", {"choice": chosen.to_json(), "network": config.model_dump(mode="json")})
    one = profile_of(config, memory_model=target.memory_model, bits=target.bits, device=target.device)
    figures = [memory_histogram(folder.path, one, settings["ram_budget"]), architecture(folder.path, config)]
    artifacts = {**done["artifacts"], "choice": "choice.json"}
    result = Result(
        command="moofa extract", metrics=done["metrics"], cost=done["cost"], artifacts=artifacts, seed=trained.settings["seed"],
        data=DataInfo(**done["data"]), settings=settings,
    )  # fmt: skip
    write_result(folder.path, result)
    cells: list[list[Any]] = [[name.replace("_", " "), value] for name, value in {**done["metrics"], **done["cost"]}.items()]
    write_html(folder.path, "moofa: extracted network", [Section("Network", table=Table(["", "value"], cells), figures=figures)], result)
    folder.commit()
    say(f"wrote {folder.out}")
    emit({**_result_keys(result), "out": str(folder.out)}, as_json, lambda console: console.print(table("network", ["", "value"], cells)))


def main() -> int:
    """Run the command line; returns the exit code."""
    return run(app)
