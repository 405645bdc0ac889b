"""``edge-ids can ...``: thin shells over the functions of this package."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from edge_shared.cli import Json, Out, Seed, emit, emit_line, say, table
from edge_shared.errors import InputError

if TYPE_CHECKING:
    from edge_ids.can.frames import Frames

ATTACKS = "fuzzing, fabrication, correlated, masquerade, masquerade-constant, masquerade-replay, masquerade-offset, dos, replay, suspension"

app = typer.Typer(help="CAN bus: read traces, train and run a streaming detector, generate attacks, compare models.", no_args_is_help=True)

Trace = Annotated[Path, typer.Option("--data", help="Trace file, or a folder of them (each file is one capture).")]
Format = Annotated[str | None, typer.Option("--format", help="Format of the trace; by default it is recognised.")]
Metadata = Annotated[Path | None, typer.Option("--metadata", help="ROAD capture_metadata.json: labels by capture name.")]


def _load(data: Path, format: str | None = None, metadata: Path | None = None) -> tuple[Frames, dict[str, int]]:
    """All captures of a file or folder, labelled if there is metadata."""
    from collections import Counter
    from dataclasses import replace

    from edge_ids.can.frames import concat
    from edge_ids.can.readers import TraceReader
    from edge_ids.can.road import Labeller, read_metadata, rule_for

    files = [data]
    if data.is_dir():
        files = sorted(path for path in data.iterdir() if path.is_file() and not path.name.startswith(".") and path.suffix != ".json")
        if not files:
            raise InputError(f"--data {data} is a folder without trace files")
    rules = read_metadata(metadata) if metadata else None
    malformed: Counter[str] = Counter()
    parts = []
    for path in files:
        reader = TraceReader(path, format)
        frames = reader.read()
        malformed.update(reader.malformed)
        frames = replace(frames, synthetic=True) if _made_by_program(path) else frames
        parts.append(Labeller(rule_for(rules, path, metadata or "")).__call__(frames) if rules is not None else frames)
    return concat(parts), dict(malformed)


def _made_by_program(path: Path) -> bool:
    """Whether the result.json beside a trace says that `can generate` made it: most formats have no room for that word."""
    from edge_shared.files import read_json

    beside = path.with_name("result.json")
    try:
        result = read_json(beside, "result") if beside.is_file() else None
    except InputError:
        return False
    return isinstance(result, dict) and result.get("synthetic") is True and path.name in (result.get("artifacts") or [])


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="Trace file or folder.")],
    format: Format = None,
    metadata: Metadata = None,
    json: Json = False,
) -> None:
    """Show what a trace holds: frames, IDs with their periods, labels, and bad lines by kind."""
    from edge_ids.can.writers import summary

    frames, malformed = _load(file, format, metadata)
    document = summary(frames) | {"file": str(file), "malformed": sum(malformed.values()), "malformed_by_kind": malformed}

    def show(console: Any) -> None:
        console.print(f"{file}: {document['frames']:,} frames in {document['seconds']:.3f} s, {len(document['ids'])} IDs", soft_wrap=True)
        if malformed:
            console.print("bad lines skipped: " + ", ".join(f"{kind} {count}" for kind, count in malformed.items()))
        if document["labels"]:
            console.print("labels: " + ", ".join(f"{name} {count:,}" for name, count in document["labels"].items()))
        rows = [
            [i["id"], i["frames"], i["median_period_ms"], i["std_ms"], "/".join(map(str, i["lengths"])), i["payloads"]]
            for i in document["ids"]
        ]
        console.print(table("", ["ID", "frames", "period (ms)", "std (ms)", "bytes", "payloads"], rows))

    emit(document, json, show)


@app.command()
def convert(
    file: Annotated[Path, typer.Argument(help="Trace file or folder.")],
    to: Annotated[
        Path, typer.Option("--to", help="File to write: .log .csv (Car-Hacking) .parquet .arrow .asc .blf .trc, .log.gz .csv.gz.")
    ],
    format: Format = None,
    metadata: Metadata = None,
    json: Json = False,
) -> None:
    """Convert a trace to another format; labels survive in .parquet, .arrow and (as R/T) in .csv."""
    from edge_ids.can.writers import write_frames

    frames, malformed = _load(file, format, metadata)
    write_frames(frames, to)
    document = {"file": str(to), "frames": len(frames), "malformed": sum(malformed.values()), "malformed_by_kind": malformed}
    emit(document, json, lambda console: console.print(f"wrote {len(frames):,} frames to {to}", soft_wrap=True))


@app.command()
def label(
    data: Trace,
    metadata: Annotated[Path, typer.Option("--metadata", help="ROAD capture_metadata.json: labels by capture name.")],
    to: Annotated[Path, typer.Option("--to", help="Labelled table to write: .parquet, .arrow or .csv (R/T).")],
    json: Json = False,
) -> None:
    """Label ROAD captures per frame: interval, ID and payload nibbles, by capture name."""
    from edge_ids.can.writers import write_frames

    if to.suffix not in (".parquet", ".arrow", ".csv"):
        raise InputError(f"--to {to}: labels need .parquet, .arrow or .csv")
    frames, malformed = _load(data, None, metadata)
    write_frames(frames, to)
    counts = {name: int((frames.label == code).sum()) for code, name in enumerate(frames.classes)}
    document = {"file": str(to), "frames": len(frames), "labels": counts, "malformed": sum(malformed.values())}
    emit(document, json, lambda console: console.print(table(str(to), ["class", "frames"], [[*item] for item in counts.items()])))


@app.command()
def generate(
    out: Annotated[Path, typer.Option("--out", help="Folder to write: the trace, capture_metadata.json, result.json.")],
    seconds: Annotated[float, typer.Option("--seconds", help="Duration of synthetic traffic, s.")] = 60.0,
    background: Annotated[Path | None, typer.Option("--background", help="Inject into this trace instead of synthetic traffic.")] = None,
    like: Annotated[Path | None, typer.Option("--like", help="Synthetic traffic with IDs, periods and lengths of this trace.")] = None,
    attack: Annotated[
        list[str] | None,
        typer.Option("--attack", help=f"KIND:START:END[:ID[:MASK]], seconds and hexadecimal; may be repeated. KIND is one of {ATTACKS}."),
    ] = None,
    format: Annotated[str, typer.Option("--write", help="Suffix of the trace: log, csv, parquet, arrow, asc, blf, trc.")] = "log",
    bitrate: Annotated[int, typer.Option("--bitrate", help="Bits per second of the bus.")] = 500_000,
    name: Annotated[str, typer.Option("--name", help="Name of the capture.")] = "synthetic",
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Make synthetic CAN traffic, or inject attacks into a real trace; everything is marked synthetic."""
    from edge_shared.files import open_run, write_json

    from edge_ids.can import generate as generator
    from edge_ids.can.inject import Injection, inject
    from edge_ids.can.readers import read_frames
    from edge_ids.can.writers import SUFFIXES, write_frames

    suffix = "." + format.lstrip(".")
    if suffix not in SUFFIXES:
        raise InputError(f"--write {format!r} is unknown; use one of {', '.join(known.lstrip('.') for known in SUFFIXES)}")
    if not name or "/" in name or "." in name:
        raise InputError(f"--name {name!r} must be a plain name without dots and slashes")
    attacks = [_parse_attack(text) for text in attack or []]
    if background is not None and like is not None:
        raise InputError("give --background or --like, not both")
    about: dict[str, Any]
    if background is not None:
        frames, _ = read_frames(background)
        about = {"synthetic": True, "background": str(background), "seed": seed}
    else:
        vehicle = generator.like(read_frames(like)[0]) if like is not None else None
        frames, about = generator.generate(seconds, vehicle, seed=seed, bitrate=bitrate, name=name)
    injections: list[Injection] = []
    for index, item in enumerate(attacks):
        injections.append(inject(frames, item, seed=seed + index, bitrate=bitrate))
        frames = injections[-1].frames
    run = open_run(out, None, about)
    write_frames(frames, run.path / f"{name}{suffix}")
    entries = {name: injections[-1].metadata()} if len(injections) == 1 else {}
    if not injections:
        entries = {name: {"description": "benign, synthetic", "elapsed_sec": frames.seconds, "injection_interval": None, "synthetic": True}}
    if entries:
        write_json(run.path / "capture_metadata.json", entries)
    if len(injections) > 1 or (injections and suffix not in (".parquet", ".arrow")):
        write_frames(frames, run.path / f"{name}.labelled.parquet")
    document = about | {
        "frames": len(frames),
        "seconds": frames.seconds,
        "attack_frames": int(frames.attack.sum()),
        "attacks": [i.metadata() for i in injections],
        "artifacts": sorted(path.name for path in run.path.iterdir()),
    }
    write_json(run.path / "result.json", document)
    run.commit()
    text = f"wrote {len(frames):,} synthetic frames ({document['attack_frames']:,} of attacks) to {out}"
    emit(document, json, lambda console: console.print(text, soft_wrap=True))


def _parse_attack(text: str) -> Any:
    from edge_ids.can.inject import KINDS, Attack

    parts = text.split(":")
    try:
        if not 3 <= len(parts) <= 5 or parts[0] not in KINDS:
            raise ValueError
        target = int(parts[3], 16) if len(parts) > 3 and parts[3] else None
        return Attack(parts[0], float(parts[1]), float(parts[2]), target, parts[4] if len(parts) > 4 else None)
    except ValueError:
        raise InputError(f"--attack {text!r}: write KIND:START:END[:ID[:MASK]] with KIND one of {', '.join(KINDS)}") from None


@app.command()
def train(
    data: Trace,
    out: Out = None,
    format: Format = None,
    metadata: Metadata = None,
    json: Json = False,
) -> None:
    """Train the streaming detector on benign traffic (labelled attack frames are left out) and calibrate its thresholds."""
    from edge_ids.can.fit import train_to

    if out is None:
        raise InputError("give --out DIR for the model")
    frames, malformed = _load(data, format, metadata)
    result = train_to(frames, out, source=str(data), malformed=malformed)

    def show(console: Any) -> None:
        info = result["profile"]
        console.print(
            f"trained on {info['frames']:,} benign frames, {info['seconds']:.1f} s, {info['ids']} IDs ({info['periodic_ids']} periodic)"
        )
        if not info["mature"]:
            console.print("under 5 minutes of traffic: detectors of payload values report anomalies only, not alerts", soft_wrap=True)
        held = result["metrics"]
        console.print(
            f"held out (last quarter, {held['benign_seconds']:.1f} s benign): {held['false_alarms']} false alarms", soft_wrap=True
        )
        console.print(f"model in {out}", soft_wrap=True)

    emit(result, json, show)


@app.command()
def export(
    model: Annotated[Path, typer.Option("--model", help="Folder made by `edge-ids can train`.")],
    out: Out = None,
    target: Annotated[str, typer.Option("--target", help="c99: constant tables and the detector, no heap, no floating point.")] = "c99",
    json: Json = False,
) -> None:
    """Export the detector with its tables as C99 sources whose alerts equal Python's bit for bit."""
    from edge_ids.can.export import export_c99
    from edge_ids.can.profile import Profile

    if target != "c99":
        raise InputError(f"--target {target!r} is unknown; use c99")
    if out is None:
        raise InputError("give --out DIR for the sources")
    result = export_c99(Profile.load(model), out)
    cost = result["cost"]
    text = f"C99 sources in {out}: {cost['table_bytes']:,} bytes of tables, {cost['state_bytes']:,} bytes of state\n{result['compile']}"
    emit(result, json, lambda console: console.print(text, soft_wrap=True))


@app.command()
def run(
    model: Annotated[Path, typer.Option("--model", help="Folder made by `edge-ids can train`.")],
    replay: Annotated[Path | None, typer.Option("--replay", help="Run over this trace.")] = None,
    channel: Annotated[str | None, typer.Option("--channel", help="Run live on this bus, such as can0.")] = None,
    interface: Annotated[
        str, typer.Option("--interface", help="python-can interface of --channel: socketcan, virtual, udp_multicast, ...")
    ] = "socketcan",
    bitrate: Annotated[int | None, typer.Option("--bitrate", help="Bits per second, for interfaces that set it.")] = None,
    speed: Annotated[float, typer.Option("--speed", help="Pace of --replay: 1 real time, 0 as fast as possible.", min=0)] = 0.0,
    duration: Annotated[float | None, typer.Option("--duration", help="Stop a live run after so many seconds.", min=0)] = None,
    alerts: Annotated[Path | None, typer.Option("--alerts", help="Append alerts to this file, one EVE JSON record a line.")] = None,
    syslog: Annotated[str | None, typer.Option("--syslog", help="Send alerts to syslog: host:port or a socket such as /dev/log.")] = None,
    metrics: Annotated[str | None, typer.Option("--metrics", help="Serve Prometheus metrics: [host:]port, loopback by default.")] = None,
    state: Annotated[Path | None, typer.Option("--state", help="Keep the detector's state in this file, and go on from it.")] = None,
    queue: Annotated[int, typer.Option("--queue", help="Most frames waiting in a live run; more are dropped and counted.", min=1)] = 65536,
    anomalies: Annotated[
        bool, typer.Option("--anomalies", help="Report anomalies too: payload values that a profile of under 5 minutes never saw.")
    ] = False,
    metadata: Metadata = None,
    format: Format = None,
    json: Annotated[bool, typer.Option("--json", help="JSON lines on stdout: one per alert, the last one a summary.")] = False,
) -> None:
    """Run the detector over a trace or live on a bus; alerts as they come, a summary at the end.

    SIGINT and SIGTERM stop it gracefully with the state saved; SIGHUP, or a new model in the folder, reloads the model.
    """
    from edge_ids.alerts import EveWriter, MetricsServer, SyslogWriter
    from edge_ids.can.readers import TraceReader
    from edge_ids.can.road import Labeller, read_metadata, rule_for
    from edge_ids.can.service import Service, Sink, open_bus

    if (replay is None) == (channel is None):
        raise InputError("give either --replay FILE or --channel NAME")
    live_only, replay_only = {"--duration": duration, "--bitrate": bitrate}, {"--speed": speed, "--metadata": metadata, "--format": format}
    for option, value in (live_only if channel is None else replay_only).items():
        if value:
            raise InputError(f"{option} needs {'--channel' if channel is None else '--replay'}")
    sinks: list[Sink] = []
    if json:
        sinks.append(EveWriter(sys.stdout))
    elif alerts is None:
        sinks.append(_Plain())
    if replay is not None:
        TraceReader(replay, format)  # a bad file is reported before anything is opened
    service = Service(model, sinks, state=state, queue=queue, anomalies_too=anomalies)
    if alerts is not None:
        sinks.append(EveWriter(alerts))
    if syslog is not None:
        sinks.append(SyslogWriter(syslog))
    server = MetricsServer(service.metrics, metrics) if metrics is not None else None
    if server is not None:
        say(f"metrics on port {server.port}")
    try:
        with service.signals():
            if replay is not None:
                labeller = Labeller(rule_for(read_metadata(metadata), replay, metadata)) if metadata is not None else None
                planned = labeller.planned(_first_time(replay, format)) if labeller is not None else None
                summary = service.replay(replay, speed=speed, format=format, planned=planned, relabel=labeller)
            else:
                bus = open_bus(str(channel), interface, bitrate)
                say(f"listening on {interface} {channel}")
                try:
                    summary = service.live(bus, duration=duration, channel=str(channel))
                finally:
                    bus.shutdown()
    finally:
        for sink in sinks:
            sink.close()
        if server is not None:
            server.close()
    if alerts is not None:
        summary["artifacts"].append(str(alerts))
    if json:
        emit_line(summary)
    else:
        shown = {key: value for key, value in summary.items() if not isinstance(value, dict | list) and value is not None}
        rows = [[name, value] for name, value in shown.items()] + [
            [name, value] for name, value in summary["metrics"].items() if not isinstance(value, dict)
        ]
        emit(summary, False, lambda console: console.print(table("summary", ["", "value"], rows)))


@app.command()
def compare(
    data: Trace,
    models: Annotated[
        str, typer.Option("--models", help="Comma separated: streaming, random-forest, lightgbm, lccde, lstm, dcnn, attention.")
    ] = "streaming,random-forest,lightgbm,lccde",
    protocol: Annotated[
        str, typer.Option("--protocol", help="time (cannot leak), paper (random frames: leaks), or both side by side.")
    ] = "time",
    multiclass: Annotated[bool, typer.Option("--multiclass", help="Tell attack classes apart.")] = False,
    smote: Annotated[
        int, typer.Option("--smote", help="Raise attack classes to so many training rows (the paper: 100000); 0 for none.", min=0)
    ] = 0,
    epochs: Annotated[
        int | None, typer.Option("--epochs", help="Of the deep models; by default the paper's (LSTM 10, DCNN 30).", min=1)
    ] = None,
    residual: Annotated[bool, typer.Option("--residual", help="Give the DCNN true residual blocks; the paper's code has none.")] = False,
    format: Format = None,
    metadata: Metadata = None,
    seed: Seed = 0,
    out: Out = None,
    json: Json = False,
) -> None:
    """Train and test the models of the comparative study; the paper's leaky protocol and an honest one side by side."""
    from edge_shared.files import open_run, plain, write_json

    from edge_ids.can.compare import PROTOCOLS, Protocol
    from edge_ids.can.compare import compare as run_all

    if protocol not in (*PROTOCOLS, "both"):
        raise InputError(f"--protocol {protocol!r}: use time, paper or both")
    protocols: list[Protocol] = [p for p in PROTOCOLS if protocol in (p, "both")]
    frames, malformed = _load(data, format, metadata)
    frames = frames.sorted()
    run_folder = open_run(out, None, {"data": str(data), "models": models}) if out is not None else None
    names = [name.strip() for name in models.split(",") if name.strip()]
    results = run_all(frames, names, protocols, seed=seed, binary=not multiclass, smote=smote, epochs=epochs, residual=residual)
    document = plain({"data": str(data), "synthetic": frames.synthetic, "frames": len(frames), "seed": seed, "results": results})
    document["malformed"] = sum(malformed.values())
    if run_folder is not None:
        write_json(run_folder.path / "result.json", document)
        run_folder.commit()

    def show(console: Any) -> None:
        columns = ["model", "protocol", "F1", "FNR", "MCC", "PR-AUC", "event recall", "false alarms/h"]
        rows = []
        for item in results:
            m = item["metrics"]
            rows.append(
                [
                    item["model"],
                    item["protocol"],
                    *[m.get(k) for k in ("f1", "fnr", "mcc", "pr_auc", "event_recall", "false_alarms_per_hour")],
                ]
            )
        console.print(table(f"{data}: {len(frames):,} frames", columns, rows))
        if "paper" in protocols:
            console.print("protocol paper splits random frames and leaks; do not read its scores as detection", soft_wrap=True)

    emit(document, json, show)


def _first_time(path: Path, format: str | None) -> int:
    from edge_ids.can.readers import TraceReader

    return int(next(iter(TraceReader(path, format))).time_us[0])


class _Plain:
    """Alerts as words."""

    def write(self, alert: Any) -> None:
        from edge_ids.alerts import timestamp

        can = alert.fields["can"]
        print(f"{timestamp(alert.time)} {alert.event_type} {can['channel']} {can['id']} {alert.signature}", flush=True)

    def close(self) -> None:
        pass
