"""The `pi-gateway` command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from edge_shared.cli import Out, Resume, application, emit, emit_line, say, table
from edge_shared.cli import run as run_app
from edge_shared.errors import CheckFailed, InputError

app = application("pi-gateway", "CAN and network-flow intrusion detection on one gateway: one alert stream, one dashboard.")


@app.command()
def run(
    can_model: Annotated[Path | None, typer.Option("--can-model", help="Folder that `edge-ids can train` wrote.")] = None,
    flow_model: Annotated[Path | None, typer.Option("--flow-model", help="Folder that `edge-ids flow train` wrote.")] = None,
    can_replay: Annotated[list[Path] | None, typer.Option("--can-replay", help="Run over this CAN trace; may be repeated.")] = None,
    can_channel: Annotated[list[str] | None, typer.Option("--can-channel", help="Listen on this CAN bus, such as can0.")] = None,
    can_interface: Annotated[str, typer.Option("--can-interface", help="python-can interface of --can-channel.")] = "socketcan",
    flow_pcap: Annotated[list[Path] | None, typer.Option("--flow-pcap", help="Run over this packet capture; may be repeated.")] = None,
    flow_csv: Annotated[list[Path] | None, typer.Option("--flow-csv", help="Run over this NetFlow table, .csv(.gz) or .parquet.")] = None,
    flow_interface: Annotated[list[str] | None, typer.Option("--flow-interface", help="Listen on this network interface.")] = None,
    speed: Annotated[float, typer.Option("--speed", help="Pace of --can-replay: 1 real time, 0 as fast as possible.", min=0)] = 0.0,
    duration: Annotated[float | None, typer.Option("--duration", help="Stop after so many seconds.", min=0)] = None,
    hold: Annotated[float, typer.Option("--hold", help="Keep the pages up so many seconds after the last file has ended.", min=0)] = 0.0,
    serve: Annotated[
        str | None, typer.Option("--serve", help="Dashboard, status and metrics at [host:]port, loopback by default; 0: any.")
    ] = None,
    attempts: Annotated[int, typer.Option("--attempts", help="Deaths of a worker in a row after which it is given up.", min=1)] = 6,
    out: Out = None,
    resume: Resume = None,
    json: Annotated[bool, typer.Option("--json", help="JSON lines on stdout: one per alert, the last one a summary.")] = False,
) -> None:
    """Watch all sources at once, each in a process of its own; alerts are merged into one EVE stream.

    With --out, alerts go to alerts.jsonl and the state is kept; --resume goes on there. Exit code 1 if a source was given up.
    """
    from pi_gateway.gateway import run_gateway
    from pi_gateway.source import Source
    from pi_gateway.supervisor import Policy

    if out is not None and resume is not None:
        raise InputError("give --out DIR for a new run or --resume DIR to go on, not both")
    sources: list[Source] = []

    def add(kind: str, targets: list[Path] | list[str] | None, model: Path | None, half: str) -> None:
        for target in targets or []:
            if model is None:
                raise InputError(f"give --{half}-model DIR for {target}; `edge-ids {half} train --out DIR` makes one")
            number = sum(source.name.startswith(half) for source in sources)
            name = half if number == 0 else f"{half}-{number + 1}"
            sources.append(Source(name, kind, str(target), model, can_interface, speed))  # type: ignore[arg-type]

    add("can-replay", can_replay, can_model, "can")
    add("can-channel", can_channel, can_model, "can")
    add("flow-file", flow_pcap, flow_model, "flow")
    add("flow-file", flow_csv, flow_model, "flow")
    add("flow-interface", flow_interface, flow_model, "flow")
    summary = run_gateway(
        sources, out if resume is None else resume, resumed=resume is not None, serve=serve, duration=duration, hold=hold,
        policy=Policy(attempts=attempts), on_alert=emit_line if json else None if out or resume else _plain,
    )  # fmt: skip
    if json:
        emit_line(summary)
    else:
        rows = [[s["name"], s["state"], s["items"], s["alerts"], s["restarts"], s["error"]] for s in summary["sources"]]
        columns = ["source", "state", "items", "alerts", "restarts", "last error"]
        emit(summary, False, lambda console: console.print(table(f"{summary['alerts']} alerts", columns, rows)))
    lost = [source["name"] for source in summary["sources"] if source["state"] == "failed"]
    if lost:
        raise CheckFailed(f"given up after repeated failures: {', '.join(lost)}")


@app.command()
def unit(
    arguments: Annotated[
        str, typer.Option("--arguments", help="What `pi-gateway run` gets, such as '--can-channel can0 --can-model ...'.")
    ] = "--can-channel can0 --can-model /var/lib/pi-gateway/can --flow-interface eth0 --flow-model /var/lib/pi-gateway/flow",
    user: Annotated[str, typer.Option("--user", help="Account the service runs as.")] = "pi-gateway",
) -> None:
    """Print a systemd unit file for this installation."""
    from pi_gateway.unit import unit_file

    text = unit_file(arguments, user)
    say("# save as /etc/systemd/system/pi-gateway.service")
    typer.echo(text, nl=False)


def _plain(record: dict) -> None:
    place = record["can"]["id"] if "can" in record else f"{record.get('src_ip', '')} -> {record.get('dest_ip', '')}"
    print(f"{record['timestamp']} {record['gateway']['source']} {place} {record['alert']['signature']}", flush=True)


def main() -> int:
    """Run the command line; returns the exit code."""
    return run_app(app)
