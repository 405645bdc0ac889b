"""The `tinyeeg` command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from edge_shared.cli import Json, Out, Resume, Seed, application, emit, emit_line, run, say, table
from edge_shared.errors import CheckFailed, InputError

if TYPE_CHECKING:
    from edge_shared.files import Run
    from rich.console import Console

    from tinyeeg.chain import Chain
    from tinyeeg.readers import Folder

app = application("tinyeeg", "Attention state from EEG: honest splits, C99 that fits a microcontroller.")

Source = Annotated[
    str, typer.Option("--data", help="`synthetic`, or a file or folder of recordings (CSV, MAT, EDF, BDF, SET, FIF, XDF ...).")
]
CsvDir = Annotated[Path | None, typer.Option("--csv-dir", help="Folder of Muse or EMOTIV CSV files named SUBJECT-STATE-SESSION.csv.")]
Pattern = Annotated[str | None, typer.Option("--pattern", help="Regular expression of file names with groups subject, state, session.")]
Rate = Annotated[float | None, typer.Option("--sfreq", help="Sampling rate in Hz of CSV files without times.", min=1)]
Protocol = Annotated[str, typer.Option("--protocol", help="within-session, cross-session, cross-subject or adaptable.")]
Preset = Annotated[str, typer.Option("--preset", help="Preprocessing: compact or aci2019-stft.")]
Classifier = Annotated[
    str, typer.Option("--model", help="lda, svm, logistic, forest, boosting, mlp; eegnet on raw windows (needs the torch extra).")
]
Normalise = Annotated[
    str,
    typer.Option(
        "--normalise",
        help="person, session: subtract the mean of each person or each of their sessions, no labels needed; global: training set only; "
        "auto: session where each holds all states alike, else person; between people only where it pays among the training people.",
    ),
]
Channels = Annotated[str | None, typer.Option("--channels", help="Channels to use, separated by commas; default: all common ones.")]
Calibration = Annotated[float, typer.Option("--calibration", help="Labelled seconds per state of a new person (adaptable).", min=0.1)]
AllSessions = Annotated[bool, typer.Option("--all-sessions", help="Keep habituation sessions and incomplete recordings (Aci set).")]
ModelFile = Annotated[Path, typer.Option("--model", help="Folder of `tinyeeg train --out`, or its model.json.")]


@app.command()
def train(
    data: Source = "synthetic",
    csv_dir: CsvDir = None,
    protocol: Protocol = "cross-subject",
    preset: Preset = "compact",
    model: Classifier = "lda",
    normalise: Normalise = "auto",
    tune: Annotated[bool, typer.Option("--tune", help="Choose the model's parameters by folds inside each training set.")] = False,
    channels: Channels = None,
    calibration: Calibration = 20.0,
    pattern: Pattern = None,
    sfreq: Rate = None,
    all_sessions: AllSessions = False,
    seed: Seed = 0,
    out: Out = None,
    resume: Resume = None,
    json: Json = False,
) -> None:
    """Score a chain and classifier under a protocol that cannot leak; with --out keep the model fitted on all recordings."""
    from edge_shared.files import open_run, plain

    from tinyeeg import training

    config: dict[str, Any] = {
        "data": data, "csv_dir": csv_dir and str(csv_dir.absolute()), "protocol": protocol, "preset": preset, "model": model,
        "normalise": normalise, "tune": tune, "channels": channels, "calibration": calibration, "pattern": pattern, "sfreq": sfreq,
        "all_sessions": all_sessions, "seed": seed,
    }  # fmt: skip
    folder = open_run(out, resume, config) if out is not None or resume is not None else None
    config = folder.config if folder else config
    found = _recordings(config)
    chain = training.chain_for(found.recordings, config["preset"], _names(config["channels"]))
    say(f"{len(found.recordings)} recordings, {len(chain.channels)} channels at {chain.sfreq:g} Hz: {', '.join(chain.channels)}")
    if config["model"] == "eegnet":
        _train_eegnet(config, found, chain, folder, json)
        return
    trained = training.train(
        found.recordings, chain=chain, protocol=config["protocol"], model=config["model"], normalise=config["normalise"],
        tune=config["tune"], calibration_s=config["calibration"], seed=config["seed"],
    )  # fmt: skip
    summary = trained.summary()
    if config["protocol"] != "adaptable" and summary["windows_never_tested"]:
        say(
            f"{summary['windows_never_tested']} of {summary['windows']} windows were never tested: no training window of their state was left"
        )
    summary["copies_left_out"], summary["left_out"] = found.copies, found.left_out
    summary["artifacts"] = {}
    if folder is not None:
        from edge_shared.report import DataInfo, Result, write_result

        from tinyeeg import report

        trained.model.save(folder.path / "model.json")
        result = Result(
            command="tinyeeg train",
            metrics=plain(summary["metrics"]),
            cost=plain(summary["cost"]),
            seed=config["seed"],
            data=DataInfo(
                name=config["csv_dir"] or config["data"],
                fingerprint=trained.table.fingerprint,
                synthetic=trained.table.synthetic,
                counts={"windows": summary["windows"], "subjects": summary["subjects"], "recordings": summary["recordings"]},
            ),
            settings=config,
            notes=list(trained.table.notes),
        )
        files = report.write(folder.path, trained, found.recordings, result=result)
        summary["artifacts"] = {"model": "model.json", "result": "result.json", "report": files[0].name}
        write_result(folder.path, result.model_copy(update={"artifacts": {"model": "model.json", "report": files[0].name}}))
        folder.commit()
        say(f"wrote {folder.out}")

    def show(console: Console) -> None:
        metrics = summary["metrics"]
        rows = [[fold.fold, fold.balanced_accuracy, fold.accuracy, fold.n_train, fold.n_test] for fold in trained.evaluation.folds]
        title = f"{summary['protocol']}, {summary['model']}, normalise {summary['normalise']}{', SYNTHETIC DATA' if trained.table.synthetic else ''}"
        console.print(table(title, ["fold", "balanced accuracy", "accuracy", "train windows", "test windows"], rows))
        rows = [["this model", metrics["balanced_accuracy"]]]
        if trained.without_person is not None:
            rows.append(["the same with --normalise global", trained.without_person.balanced_accuracy])
        rows += [["the clock alone", trained.clock.balanced_accuracy], ["chance", metrics["chance"]]]
        console.print(table("Balanced accuracy, mean over folds", ["", "balanced accuracy"], rows))
        cost = summary["cost"]
        rows = [[number, cost["ram_bytes"][number], cost["flash_bytes_estimate"][number]] for number in ("float", "q15")]
        console.print(table("On a Cortex-M4F", ["numbers", "RAM bytes", "flash bytes (estimate)"], rows))

    emit(summary, json, show)


def _train_eegnet(config: dict[str, Any], found: Folder, chain: Chain, folder: Run | None, json: bool) -> None:
    """Score EEGNet under the protocol; with a folder keep the network fitted on all windows."""
    from edge_shared.files import plain

    from tinyeeg import eegnet, protocols
    from tinyeeg.table import raw_windows

    if config["tune"] or config["normalise"] not in ("auto", "global"):
        raise InputError("--model eegnet takes raw windows: no --tune, and --normalise global only")
    windows = eegnet.window_chain(chain.sfreq, chain.channels)
    cut = raw_windows(found.recordings, windows)
    options = {"calibration_s": config["calibration"], "seed": config["seed"]}
    evaluation = eegnet.evaluate(cut, config["protocol"], **options)
    clock = protocols.time_only(cut.windows, config["protocol"], **options)
    summary: dict[str, Any] = plain({
        "protocol": evaluation.protocol, "model": "eegnet", "normalise": "global", "channels": chain.channels, "sfreq": chain.sfreq,
        "classes": evaluation.classes, "synthetic": cut.synthetic, "data_fingerprint": cut.fingerprint, "windows": len(cut.windows),
        "metrics": {
            "balanced_accuracy": evaluation.balanced_accuracy, "accuracy": evaluation.accuracy, "chance": 1 / len(evaluation.classes),
            "majority_accuracy": evaluation.majority, "time_only_balanced_accuracy": clock.balanced_accuracy, "folds": evaluation.folds,
        },
        "cost": eegnet.cost(len(chain.channels), windows.segment, len(evaluation.classes), round(chain.sfreq / 2)), "artifacts": {},
        "notes": cut.notes, "copies_left_out": found.copies, "left_out": found.left_out,
    })  # fmt: skip
    if folder is not None:
        from edge_shared.report import DataInfo, Result, write_result

        artifacts = eegnet.save(folder.path, cut, seed=config["seed"])
        summary["artifacts"] = artifacts | {"result": "result.json"}
        data = DataInfo(name=config["csv_dir"] or config["data"], fingerprint=cut.fingerprint, synthetic=cut.synthetic)
        result = Result(
            command="tinyeeg train", metrics=summary["metrics"], cost=summary["cost"], seed=config["seed"], data=data, settings=config,
            notes=list(cut.notes), artifacts=artifacts,
        )  # fmt: skip
        write_result(folder.path, result)
        folder.commit()
        say(f"wrote {folder.out}")

    def show(console: Console) -> None:
        rows = [[fold.fold, fold.balanced_accuracy, fold.accuracy, fold.n_train, fold.n_test] for fold in evaluation.folds]
        title = f"{evaluation.protocol}, eegnet{', SYNTHETIC DATA' if cut.synthetic else ''}"
        console.print(table(title, ["fold", "balanced accuracy", "accuracy", "train windows", "test windows"], rows))

    emit(summary, json, show)


@app.command()
def audit(
    data: Source = "synthetic",
    csv_dir: CsvDir = None,
    split: Annotated[Path | None, typer.Option("--split", help="Audit this JSON split of another tool instead of a protocol.")] = None,
    protocol: Annotated[
        str, typer.Option("--protocol", help="A protocol of `train`, or random-windows to see what a leaky split is worth.")
    ] = "cross-subject",
    preset: Preset = "compact",
    model: Classifier = "lda",
    normalise: Normalise = "auto",
    channels: Channels = None,
    calibration: Calibration = 20.0,
    pattern: Pattern = None,
    sfreq: Rate = None,
    all_sessions: AllSessions = False,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Look for leaks in a data set and its split; exit code 1 if there are any."""
    from tinyeeg import audit as auditing

    if split is not None:
        result = auditing.audit_file(split)
    else:
        from tinyeeg import training
        from tinyeeg.table import extract

        source = {"data": data, "csv_dir": csv_dir, "pattern": pattern, "sfreq": sfreq, "all_sessions": all_sessions, "seed": seed}
        found = _recordings(source)
        features = extract(found.recordings, training.chain_for(found.recordings, preset, _names(channels)))
        result = auditing.audit_table(
            features, protocol, copies=found.copies, model=model, normalise=normalise, calibration_s=calibration, seed=seed
        )

    def show(console: Console) -> None:
        rows = [[leak.kind, leak.fold or "all", leak.count, leak.detail] for leak in result.leaks]
        if rows:
            console.print(table(f"Leaks, {result.protocol}, {result.folds} folds", ["kind", "fold", "count", "what"], rows))
        else:
            console.print(f"No leak in {result.folds} folds of {result.protocol}.")
        if result.scores:
            names = {"model": model, "nearest": "nearest neighbour", "clock": "the clock alone"}
            clean, leaky = result.scores["clean"], result.scores["leaky"]
            rows = [[text, clean[key], leaky[key]] for key, text in names.items()]
            console.print(table("Balanced accuracy", ["", result.protocol, "random windows (leaks)"], rows))

    emit(result, json, show)
    if result.leaks:
        kinds = ", ".join(sorted({leak.kind for leak in result.leaks}))
        raise CheckFailed(f"{len(result.leaks)} leaks found ({kinds})")


@app.command()
def export(
    model: ModelFile,
    out: Annotated[Path, typer.Option("--out", help="Folder to write the sources to.")],
    target: Annotated[str, typer.Option("--target", help="c99: whole chain; onnx or emlearn: classifier on feature vectors.")] = "c99",
    fixed_point: Annotated[
        str, typer.Option("--fixed-point", help="float: single precision, microvolts; q15: integers, converter steps.")
    ] = "float",
    board: Annotated[
        str | None, typer.Option("--board", help="Check against stm32l475, nrf52840, another device profile or a TOML file.")
    ] = None,
    lsb_uv: Annotated[float | None, typer.Option("--lsb-uv", help="Microvolts per step of your converter (q15).")] = None,
    json: Json = False,
) -> None:
    """Write the chain from raw samples to class as C99, or the classifier as ONNX or by emlearn; with --board check that it fits."""
    from tinyeeg import boards
    from tinyeeg.codegen import export as codegen
    from tinyeeg.codegen import onnx
    from tinyeeg.deployed import Deployed

    deployed = Deployed.load(model)
    if lsb_uv is not None:
        from dataclasses import replace

        deployed = replace(deployed, chain=replace(deployed.chain, lsb_uv=lsb_uv))
    if target == "c99":
        written = codegen.export_c99(deployed, out, fixed_point)
        names = written.files
    elif target == "onnx":
        names = onnx.export_onnx(deployed, out)
    elif target == "emlearn":
        from tinyeeg.codegen import emlearn

        names = emlearn.export_emlearn(deployed, out)
    else:
        raise InputError(f"--target {target}: not known; choose c99, onnx or emlearn")
    fit = boards.check(deployed, fixed_point, board) if board else None
    measured = boards.measure(out) if target == "c99" else None
    summary = {"target": target, "fixed_point": fixed_point, "folder": str(out), "files": names, "board": fit, "measured": measured}

    def show(console: Console) -> None:
        console.print(f"wrote {len(names)} files to {out}")
        if measured is not None:
            console.print(f"measured by arm-none-eabi-size: {measured['flash_bytes']:,} B flash, {measured['ram_bytes']:,} B RAM")
        if fit is not None:
            rows = [[check.what, check.needed, check.available, "yes" if check.fits else "NO"] for check in fit.checks]
            console.print(table(f"{fit.board}: estimate against budget", ["", "needed", "available", "fits"], rows))

    emit(summary, json, show)
    if fit is not None and not fit.fits:
        worst = next(check for check in fit.checks if not check.fits)
        raise CheckFailed(f"{fit.board}: {worst.what} needs {worst.needed:,}, available are {worst.available:,}")


@app.command()
def stream(
    model: ModelFile,
    replay: Annotated[Path | None, typer.Option("--replay", help="Recording to play as if it arrived now.")] = None,
    lsl: Annotated[str | None, typer.Option("--lsl", help="Name of a live LSL stream (needs the lsl extra).")] = None,
    brainflow: Annotated[int | None, typer.Option("--brainflow", help="BrainFlow board number; -1 is its synthetic board.")] = None,
    seconds: Annotated[float | None, typer.Option("--seconds", help="Stop a live stream after this long.", min=0.1)] = None,
    chunk: Annotated[int, typer.Option("--chunk", help="Samples per chunk of a replay.", min=1)] = 32,
    calibrate: Annotated[
        float, typer.Option("--calibrate", help="Seconds at the start from which the person's mean is taken (models that use it).", min=0)
    ] = 0.0,
    realtime: Annotated[bool, typer.Option("--realtime", help="Replay at the speed of the recording instead of at once.")] = False,
    sfreq: Rate = None,
    json: Json = False,
) -> None:
    """Decide on a stream, one line per decision: time, state, scores, latency, dropped samples."""
    from tinyeeg import live
    from tinyeeg.deployed import Deployed

    chosen = [option for option, value in (("--replay", replay), ("--lsl", lsl), ("--brainflow", brainflow)) if value is not None]
    if len(chosen) != 1:
        raise InputError(f"give one of --replay, --lsl and --brainflow; got {', '.join(chosen) or 'none'}")
    deployed = Deployed.load(model)
    if replay is not None:
        source = live.replay(replay, deployed.chain, chunk=chunk, realtime=realtime, sfreq=sfreq)
    elif lsl is not None:
        source = live.from_lsl(lsl, deployed.chain, seconds)
    else:
        source = live.from_brainflow(brainflow or 0, deployed.chain, seconds)
    summary = live.decide(source, deployed, calibrate_s=calibrate, on_decision=emit_line if json else _print_decision)
    if json:
        emit_line({"summary": summary})
    else:
        rows: list[list[Any]] = [
            ["decisions", summary.decisions], ["samples", summary.samples], ["dropped", summary.dropped], ["gaps", summary.gaps],
            ["latency mean (ms)", summary.latency_ms_mean], ["latency worst (ms)", summary.latency_ms_worst],
        ]  # fmt: skip
        emit(summary, False, lambda console: console.print(table("Stream", ["", "value"], rows)))


@app.command()
def report(
    run_folder: Annotated[Path, typer.Option("--run", help="Folder of `tinyeeg train --out`.")],
    pareto: Annotated[
        bool, typer.Option("--pareto", help="Also score variants of the chain: accuracy against RAM, flash and operations.")
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write; default: the run's own.")] = None,
    json: Json = False,
) -> None:
    """Write the report of a run as an MNE Report, with leaky against clean, and with --pareto accuracy against cost."""
    from edge_shared.report import read_result

    from tinyeeg import report as reporting
    from tinyeeg import training

    result = read_result(run_folder)
    if result.command != "tinyeeg train" or result.data is None:
        raise InputError(f"{run_folder} holds a result of {result.command}; this needs the folder of tinyeeg train --out")
    config = result.settings
    found = _recordings(config)
    chain = training.chain_for(found.recordings, config["preset"], _names(config["channels"]))
    trained = training.train(
        found.recordings, chain=chain, protocol=config["protocol"], model=config["model"], normalise=config["normalise"],
        tune=config["tune"], calibration_s=config["calibration"], seed=config["seed"],
    )  # fmt: skip
    if trained.table.fingerprint != result.data.fingerprint:
        raise InputError(f"the recordings are no longer those of the run in {run_folder} (fingerprint differs); train again")
    files = reporting.write(out or run_folder, trained, found.recordings, leaky=True, pareto=pareto, mne=True, result=result)
    emit({"report": str(files[0]), "files": [str(path) for path in files]}, json, lambda console: console.print(f"wrote {files[0]}"))


@app.command()
def convert(
    out: Annotated[Path, typer.Option("--out", help="BIDS folder to write.")],
    data: Source = "synthetic",
    csv_dir: CsvDir = None,
    task: Annotated[str, typer.Option("--task", help="What the people did, as BIDS calls it.")] = "attention",
    mains: Annotated[float, typer.Option("--mains", help="Mains frequency where it was recorded, Hz.", min=1)] = 50.0,
    pattern: Pattern = None,
    sfreq: Rate = None,
    all_sessions: AllSessions = False,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Write recordings as a BIDS folder (needs the bids extra); the other commands read it by --data."""
    from tinyeeg.bids import write_bids

    source = {"data": data, "csv_dir": csv_dir, "pattern": pattern, "sfreq": sfreq, "all_sessions": all_sessions, "seed": seed}
    found = _recordings(source)
    paths = write_bids(out, found.recordings, task=task, line_hz=mains)
    summary = {"folder": str(out), "files": [str(path.relative_to(out)) for path in paths], "copies_left_out": found.copies}
    emit(summary, json, lambda console: console.print(f"wrote {len(paths)} recordings to {out}"))


@app.command()
def generate(
    out: Annotated[Path, typer.Option("--out", help="Folder to write CSV files to.")],
    subjects: Annotated[int, typer.Option("--subjects", help="People.", min=1)] = 4,
    sessions: Annotated[int, typer.Option("--sessions", help="Sessions of each.", min=1)] = 2,
    seconds: Annotated[float, typer.Option("--seconds", help="Length of each recording in seconds.", min=2)] = 60.0,
    headset: Annotated[str, typer.Option("--headset", help="muse (4 channels, 256 Hz) or epoc7 (7 channels, 128 Hz).")] = "muse",
    effect: Annotated[float, typer.Option("--effect", help="Strength of the states' effect; 0 makes them alike.", min=0)] = 1.0,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Write synthetic recordings, one CSV file per person, session and state, marked as synthetic."""
    from tinyeeg import synthetic

    recordings = synthetic.generate(subjects=subjects, sessions=sessions, seconds=seconds, headset=headset, effect=effect, seed=seed)
    paths = synthetic.write_folder(out, recordings)
    summary = {"folder": str(out), "files": [path.name for path in paths], "synthetic": True}
    emit(summary, json, lambda console: console.print(f"wrote {len(paths)} synthetic recordings to {out}"))


def _recordings(config: dict[str, Any]) -> Folder:
    from tinyeeg import readers, synthetic

    suffixes = (".csv",) if config["csv_dir"] else readers.SUFFIXES
    path = config["csv_dir"] or config["data"]
    if path == "synthetic":
        say("synthetic recordings: the numbers say nothing about real EEG")
        return readers.Folder(tuple(synthetic.generate(seed=config["seed"])), (), ())
    found = readers.read_folder(
        path, pattern=config["pattern"] or readers.PATTERN, sfreq=config["sfreq"], suffixes=suffixes, all_roles=config["all_sessions"]
    )
    for copy, original in found.copies:
        say(f"left out: {copy} is a copy of {original}")
    for name, why in found.left_out:
        say(f"left out: {name} ({why})")
    return found


def _names(channels: str | None) -> tuple[str, ...] | None:
    return None if channels is None else tuple(name.strip() for name in channels.split(",") if name.strip())


def _print_decision(decision: Any) -> None:
    scores = " ".join(f"{score:.2f}" for score in decision.scores)
    print(
        f"{decision.time_s:8.2f} s  {decision.state:<16} {scores}  {decision.latency_ms:.2f} ms{'  (after a gap)' if decision.after_gap else ''}"
    )


def main() -> int:
    """Run the command line; returns the exit code."""
    return run(app)
