"""`edge-ids flow`: train, run, generate, collect, inspect, convert, export, bench."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from edge_shared.cli import Json, Out, Resume, Seed, emit, emit_line, say, table
from edge_shared.errors import InputError

if TYPE_CHECKING:
    from edge_shared.files import Run
    from rich.console import Console

    from edge_ids.alerts import Alert
    from edge_ids.flow.collector import Collector
    from edge_ids.flow.fit import FitResult
    from edge_ids.flow.live import LiveFlows
    from edge_ids.flow.nfstream_meter import NfstreamFlows

_LIVE = ("interface", "collector")

app = typer.Typer(
    name="flow",
    help="Find attacks in network flows: NetFlow tables, pcap, Zeek conn.log, Suricata EVE.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command()
def train(
    data: Annotated[
        str | None, typer.Option("--data", help="Flows: NF-v2/v3 .csv(.gz) or .parquet, .pcap(ng), conn.log, eve.json.")
    ] = None,
    out: Out = None,
    model: Annotated[str, typer.Option(help="graphids, simpleae, edge-aware (need torch), iforest, pca, hbos or cblof.")] = "edge-aware",
    split: Annotated[str, typer.Option(help="chronological, unseen-host-pair, or random (paper; leaks).")] = "chronological",
    scaler: Annotated[str, typer.Option(help="minmax (paper) or log1p (heavy tails).")] = "minmax",
    threshold: Annotated[
        str, typer.Option(help="f1 (paper, needs labels), mad, quantile, or auto: the first that the data allows.")
    ] = "auto",
    false_alarm_rate: Annotated[float, typer.Option(help="Target of --threshold quantile, share of benign flows.")] = 0.01,
    confidence: Annotated[float, typer.Option(help="That the target holds, for --threshold quantile.")] = 0.95,
    preset: Annotated[str, typer.Option(help="Settings: auto, own, or the paper's unsw-v3, cse-v3, unsw-v2, cse-v2.")] = "auto",
    epochs: Annotated[int | None, typer.Option(min=1, help="At most; default 100.")] = None,
    patience: Annotated[int | None, typer.Option(min=1, help="Epochs without a better validation PR-AUC; default 20.")] = None,
    exclude: Annotated[str, typer.Option(help="Features to leave out, separated by commas.")] = "",
    horizon_flows: Annotated[int, typer.Option(min=1, help="Flows that a stream remembers.")] = 32_768,
    horizon_seconds: Annotated[float | None, typer.Option(min=0, help="Seconds that a stream remembers; default no limit.")] = None,
    delay: Annotated[float, typer.Option(min=0, help="Seconds of flow time after which a stream scores a window that is not full.")] = 10.0,
    precision: Annotated[str, typer.Option(help="Inside a torch model while it trains: auto (by the CPU), float32 or bfloat16.")] = "auto",
    sample: Annotated[
        int | None,
        typer.Option(min=10, help="At most so many flows, drawn at random while the file is read: for files larger than memory."),
    ] = None,
    controls: Annotated[bool, typer.Option("--controls/--no-controls", help="Also score an untrained and a raw-feature model.")] = True,
    format: Annotated[str, typer.Option(help="auto, netflow, pcap, nfstream (a capture, by nfstream), eve or zeek.")] = "auto",
    seed: Seed = 0,
    resume: Resume = None,
    json: Json = False,
) -> None:
    """Train a detector on benign flows, calibrate its threshold, test it."""
    from edge_shared.files import open_run

    from edge_ids.flow import sources
    from edge_ids.flow.detector import Horizon
    from edge_ids.flow.fit import CHECKPOINT, FitConfig, check, fit
    from edge_ids.flow.processes import rank
    from edge_ids.flow.report import write_report

    if data is None and resume is None:
        raise InputError("--data FILE is missing: give a .csv(.gz), .parquet, .pcap, conn.log or eve.json file")
    config = FitConfig(
        data or "", model, split, scaler, threshold, false_alarm_rate, confidence, preset, epochs, patience,
        tuple(name.strip() for name in exclude.split(",") if name.strip()), Horizon(horizon_flows, horizon_seconds, delay=delay), controls,
        seed, format, precision, sample,
    )  # fmt: skip
    if data is not None and resume is None:
        check(config)
        sources.detect(Path(data))
    if rank() and resume is None:
        fit(config)
        return
    run = open_run(out, resume, asdict(config))
    if run.resumed:
        stored = run.config
        config = FitConfig(**stored | {"horizon": Horizon(**stored["horizon"]), "exclude": tuple(stored["exclude"])})
    if rank():
        fit(config, checkpoint=run.path)
        return
    with _nothing_left(run):
        result = fit(config, checkpoint=run.path, on_epoch=say)
    result.detector.save(run.path)
    cost = result.cost | {"model_bytes": (run.path / "model.safetensors").stat().st_size, "peak_rss_bytes": _peak_rss()}
    outcome = write_report(run.path, config, result, sources.fingerprint(config.data), "edge-ids flow train", cost)
    for leftover in run.path.glob(f"{Path(CHECKPOINT).stem}*"):
        leftover.unlink()
    run.commit()
    emit(outcome, json, lambda console: _show(console, result, run.out))


@contextmanager
def _nothing_left(run: Run) -> Iterator[None]:
    """Take away the folder of a run that bad input ended before it had anything to keep."""
    try:
        yield
    except InputError:
        if not any(path.name != "config.json" and path.stat().st_size for path in run.path.iterdir()):
            shutil.rmtree(run.path, ignore_errors=True)
        raise


def _peak_rss() -> int:
    import resource
    import sys

    status = Path("/proc/self/status")
    if status.is_file():
        # getrusage also counts what the program that started this one had in memory.
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _show(console: Console, result: FitResult, out: Path) -> None:
    from edge_ids.flow.report import lines_of

    names = {
        "pr_auc": "PR-AUC",
        "benign_pr_auc": "benign",
        "roc_auc": "ROC",
        "macro_f1": "F1",
        "false_alarm_rate": "FAR",
        "flows_per_second": "flows/s",
    }
    rows = [[name, *(figures.get(key) for key in names)] for name, figures in lines_of(result)]
    console.print(table(f"test flows, split {result.split}", ["model", *names.values()], rows))
    share = result.metrics["prevalence"]
    coin = "" if share is None else f"attacks are {share:.1%} of the test flows: a coin has that PR-AUC; "
    console.print(f"{coin}model and report in {out}")


@app.command()
def run(
    model: Annotated[Path, typer.Option(help="Folder that `flow train` wrote.")],
    csv: Annotated[Path | None, typer.Option(help="NetFlow table, .csv(.gz) or .parquet.")] = None,
    pcap: Annotated[Path | None, typer.Option(help="Packet capture, .pcap or .pcapng.")] = None,
    eve: Annotated[Path | None, typer.Option(help="Suricata EVE log with flow events.")] = None,
    zeek: Annotated[Path | None, typer.Option(help="Zeek conn.log, TSV or JSON.")] = None,
    interface: Annotated[str | None, typer.Option(help="Listen on a network interface (Linux, needs CAP_NET_RAW).")] = None,
    netflow: Annotated[
        str | None, typer.Option(help="Collect NetFlow v5/v9 or IPFIX datagrams at [host:]port, default host 127.0.0.1.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0, help="With --interface or --netflow: stop after that long; default at Ctrl-C.")
    ] = None,
    threshold_value: Annotated[float | None, typer.Option(help="Score above which a flow raises an alert; default the model's.")] = None,
    cooldown: Annotated[float, typer.Option(min=0, help="Seconds of flow time in which a pair of hosts raises one alert.")] = 60.0,
    batch: Annotated[int, typer.Option(min=1, help="Flows read at once; changes memory, not results.")] = 16_384,
    allow_truncated: Annotated[
        bool, typer.Option("--allow-truncated", help="Take a capture that ends within a packet as far as it goes.")
    ] = False,
    metrics: Annotated[str | None, typer.Option(help="Serve Prometheus metrics at host:port while running.")] = None,
    syslog: Annotated[str | None, typer.Option(help="Also send alerts to syslog: host:port or a socket path.")] = None,
    out: Out = None,
    resume: Resume = None,
    json: Json = False,
) -> None:
    """Score flows as they come; alerts are EVE JSON lines (with --json on stdout, the last line a summary; with --out in alerts.jsonl)."""
    from edge_shared.files import open_run
    from edge_shared.report import DataInfo, Result, write_result

    from edge_ids.alerts import EveWriter, Metrics, MetricsServer, SyslogWriter
    from edge_ids.alerts import eve as record
    from edge_ids.flow import sources
    from edge_ids.flow.collector import Collector
    from edge_ids.flow.detector import load
    from edge_ids.flow.monitor import FlowMonitor
    from edge_ids.flow.nfstream_meter import EXTRACTOR

    choices = (("netflow", csv), ("pcap", pcap), ("eve", eve), ("zeek", zeek), ("interface", interface), ("collector", netflow))
    given = [(name, path) for name, path in choices if path is not None]
    if resume is None and len(given) != 1:
        raise InputError("give one of --csv, --pcap, --eve, --zeek, --interface, --netflow")
    detector = load(model)
    if resume is None and given[0][0] not in _LIVE and not Path(str(given[0][1])).is_file():
        raise InputError(f"{given[0][1]}: no such file")
    settings: dict[str, Any] = {"source": [(name, str(path)) for name, path in given], "cooldown": cooldown, "threshold": threshold_value}
    with ExitStack() as stack:
        folder = open_run(out, resume, settings) if out is not None or resume is not None else None
        if folder is not None:
            stack.enter_context(_nothing_left(folder))
            settings = folder.config
        format, source = settings["source"][0]
        if format == "pcap" and detector.extractor == EXTRACTOR:
            format = "nfstream"
        live = stack.enter_context(closing(_listen(format, source, detector.extractor))) if format in _LIVE else None
        pages = Metrics() if metrics is not None else None
        if pages is not None and metrics is not None:
            stack.enter_context(closing(MetricsServer(pages, metrics)))
        monitor = FlowMonitor(detector, settings["cooldown"], settings["threshold"], pages)
        alerts_path = None if folder is None else folder.path / "alerts.jsonl"
        state_path = None if folder is None else folder.path / "state.npz"
        skip = 0
        if alerts_path is not None and state_path is not None and state_path.is_file():
            length = monitor.restore(state_path)
            if alerts_path.is_file():
                os.truncate(alerts_path, length)
            skip = 0 if live is not None else monitor.summary.flows
        writer = None if alerts_path is None else stack.enter_context(closing(EveWriter(alerts_path)))
        remote = None if syslog is None else stack.enter_context(closing(SyslogWriter(syslog)))

        def deliver(alerts: Any) -> None:
            for alert in alerts:
                if writer is not None:
                    writer.write(alert)
                if remote is not None:
                    remote.write(alert)
                if json:
                    emit_line(record(alert))
                elif writer is None:
                    say(_line(alert))

        def save() -> None:
            if state_path is not None and alerts_path is not None:
                monitor.save(state_path, alerts_path.stat().st_size)

        since = 0
        check = stack.enter_context(_stop_between_batches())
        parts = sources.read(source, format, batch, allow_truncated) if live is None else live.read(seconds)
        for part in parts:
            if part is None:
                deliver(monitor.tick(time.time()))
                check()
                continue
            # What an interrupted run had taken in already is skipped.
            if skip >= len(part):
                skip -= len(part)
                continue
            part = detector.check(part.rows(slice(skip, None)), source)
            skip = 0
            deliver(monitor.feed(part))
            since += len(part)
            try:
                check()
            except KeyboardInterrupt:
                save()
                raise
            if since >= 100_000:
                save()
                since = 0
        deliver(monitor.flush())
        counted = {} if live is None else {"packets": live.packets, "dropped": live.dropped}
        if isinstance(live, Collector):
            counted |= asdict(live.counts) | {"flows": monitor.summary.flows}
    cost = {"peak_rss_bytes": _peak_rss()}
    metrics_of_run = asdict(monitor.summary) | {"threshold": monitor.threshold} | counted
    artifacts = {} if folder is None else {"alerts": "alerts.jsonl"}
    if folder is not None and state_path is not None:
        state_path.unlink(missing_ok=True)
        outcome = Result(command="edge-ids flow run", metrics=metrics_of_run, cost=cost, artifacts=artifacts,
                         data=DataInfo(name=source), settings=settings | {"model": str(model), "kind": detector.kind})  # fmt: skip
        write_result(folder.path, outcome)
        folder.commit()
    if json:
        emit_line(
            {
                "event_type": "summary",
                "metrics": metrics_of_run,
                "cost": cost,
                "artifacts": artifacts,
                "model": detector.kind,
                "source": source,
            }
        )
        return
    rows = [[name.replace("_", " "), value] for name, value in metrics_of_run.items()]
    emit(metrics_of_run, False, lambda console: console.print(table(f"{detector.kind} on {source}", ["what", "value"], rows)))


def _listen(kind: str, where: str, extractor: str) -> LiveFlows | NfstreamFlows | Collector:
    """Open a live source: packets of an interface, metered as for the model, or flows that exporters send."""
    from edge_ids.flow import nfstream_meter

    if kind == "collector":
        from edge_ids.flow.collector import Collector
        from edge_ids.flow.netflow_wire import VERSIONS

        if extractor not in VERSIONS.values():
            raise InputError(
                f"--netflow: the model was trained on flows by {extractor}; record some with `edge-ids flow collect` and train on them"
            )
        return Collector(where, extractor)
    if extractor == nfstream_meter.EXTRACTOR:
        return nfstream_meter.NfstreamFlows(where)
    from edge_ids.flow import meter
    from edge_ids.flow.live import LiveFlows

    if extractor != meter.EXTRACTOR:
        raise InputError(
            f"--interface: the model was trained on flows by {extractor}; record packets with tcpdump or dumpcap and train on them"
        )
    return LiveFlows(where)


@contextmanager
def _stop_between_batches() -> Iterator[Callable[[], None]]:
    """Ctrl-C is heard between batches, where the state is whole; a second one at once. Yields the function that asks."""
    asked = False

    def handler(number: int, frame: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    def check() -> None:
        if asked:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield check
        return
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)


def _line(alert: Alert) -> str:
    """An alert in one line for people."""
    if not alert.fields:
        return f"{alert.signature} ({', '.join(f'{name} {value:.3g}' for name, value in alert.details.items())})"
    reasons = alert.details["explanation"]
    words = ", ".join(f"{item['feature']} {item['value']:g}" for item in reasons["flow"])
    if not words and "score_shares" in reasons:
        words = "unusual combination: " + ", ".join(item["feature"] for item in reasons["score_shares"])
    ends = f"{alert.fields['src_ip']} -> {alert.fields['dest_ip']}:{alert.fields['dest_port']}"
    return f"{alert.signature}: {ends}, score {alert.details['score']:.4g}, {alert.details['flows']} flows ({words or 'its hosts, not its own features'})"


@app.command()
def generate(
    out: Annotated[Path, typer.Option("--out", help="File to write, .csv or .parquet.")],
    flows: Annotated[int, typer.Option(min=1, help="Rows, attacks included.")] = 20_000,
    planted: Annotated[int, typer.Option(min=0, help="Attacks of each of two kinds: an odd flow in a busy pair, a new host.")] = 40,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Write SYNTHETIC flows, one hour of clients and servers with planted attacks, to try everything without data."""
    from edge_ids.flow.generate import generate as write

    counts = write(out, flows, planted, seed)
    text = f"{flows:,} synthetic flows to {out}: " + ", ".join(
        f"{count:,} {name.removesuffix(' (synthetic)')}" for name, count in counts.items()
    )
    outcome = {"flows": flows, "synthetic": True, "seed": seed, "classes": counts, "artifacts": {"flows": str(out)}}
    emit(outcome, json, lambda console: console.print(text))


@app.command()
def collect(
    netflow: Annotated[str, typer.Option(help="NetFlow v5/v9 or IPFIX datagrams at [host:]port, default host 127.0.0.1.")],
    to: Annotated[Path, typer.Option("--to", help="Parquet file to write.")],
    seconds: Annotated[float, typer.Option(min=0, help="How long.")] = 3600.0,
    json: Json = False,
) -> None:
    """Record the flows that exporters send, to train a model on them; the first version seen (v5, v9 or IPFIX) is taken."""
    from edge_ids.flow.collector import Collector
    from edge_ids.flow.inspect import write_parquet

    with closing(Collector(netflow)) as source:
        say(f"listening on UDP port {source.port} for {seconds:g} s")
        count = write_parquet((part for part in source.read(seconds) if part is not None), to, f"--netflow {netflow}")
        figures = asdict(source.counts) | {"dropped": source.dropped}
    outcome = {"flows": count, "metrics": figures, "artifacts": {"parquet": str(to)}}
    emit(outcome, json, lambda console: console.print(f"{count:,} flows from {figures['datagrams']:,} datagrams to {to}"))


@app.command()
def inspect(
    data: Annotated[str, typer.Option("--data", help="Flows of any supported kind.")],
    format: Annotated[str, typer.Option(help="auto, netflow, pcap, nfstream (a capture, by nfstream), eve or zeek.")] = "auto",
    allow_truncated: Annotated[
        bool, typer.Option("--allow-truncated", help="Take a capture that ends within a packet as far as it goes.")
    ] = False,
    json: Json = False,
) -> None:
    """Say what a file of flows holds: schema, extractor, hosts, pairs, classes, odd values."""
    from edge_ids.flow.inspect import inspect as look

    report = look(data, format, allow_truncated)
    rows = [
        [name.replace("_", " "), str(value) if isinstance(value, dict) else value]
        for name, value in asdict(report).items()
        if name != "attacks"
    ]
    rows += [[f"class {name}", count] for name, count in report.attacks.items()]
    emit(report, json, lambda console: console.print(table(data, ["what", "value"], rows)))


@app.command()
def convert(
    data: Annotated[str, typer.Option("--data", help="Flows of any supported kind.")],
    to: Annotated[Path, typer.Option("--to", help="Parquet file to write, of the NF-v2/v3 or conn columns.")],
    format: Annotated[str, typer.Option(help="auto, netflow, pcap, nfstream (a capture, by nfstream), eve or zeek.")] = "auto",
    allow_truncated: Annotated[
        bool, typer.Option("--allow-truncated", help="Take a capture that ends within a packet as far as it goes.")
    ] = False,
    json: Json = False,
) -> None:
    """Write flows as Parquet, in pieces, whatever the size of the file."""
    from edge_ids.flow.inspect import convert as write

    count = write(data, to, format, allow_truncated)
    emit({"flows": count, "artifacts": {"parquet": str(to)}}, json, lambda console: console.print(f"{count:,} flows to {to}"))


@app.command()
def export(
    model: Annotated[Path, typer.Option(help="Folder that `flow train` wrote, of a torch model.")],
    to: Annotated[Path, typer.Option("--to", help="ONNX file to write.")],
    int8: Annotated[bool, typer.Option("--int8", help="8-bit weights.")] = False,
    json: Json = False,
) -> None:
    """Write a torch model as ONNX, checked against torch in ONNX Runtime."""
    from edge_shared.errors import require

    from edge_ids.flow.detector import load

    detector = load(model)
    if detector.config is not None:
        require("torch", "edge-ids[torch]")
    from edge_ids.flow.export import export as write

    result = write(detector, to, int8)
    text = f"{result.bytes:,} bytes to {to}, scores within {result.max_relative_error:.2g} of torch's"
    emit(result, json, lambda console: console.print(text))


@app.command()
def bench(
    model: Annotated[Path, typer.Option(help="Folder that `flow train` wrote.")],
    flows: Annotated[int, typer.Option(min=1, help="Random flows to score.")] = 20_000,
    hosts: Annotated[int, typer.Option(min=1, help="Addresses among them; more pairs of hosts cost GraphIDS more.")] = 50,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Measure a detector's speed on this machine."""
    from edge_ids.flow.bench import bench as measure
    from edge_ids.flow.detector import load

    result = asdict(measure(load(model), flows, hosts, seed)) | {"peak_rss_bytes": _peak_rss()}
    rows = [[name.replace("_", " "), value] for name, value in result.items()]
    emit({"metrics": result}, json, lambda console: console.print(table(f"{model}, synthetic flows", ["what", "value"], rows)))
