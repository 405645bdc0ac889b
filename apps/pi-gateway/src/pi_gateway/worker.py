"""One source in one process: reads, detects, and tells the supervisor through a pipe.

Messages to the supervisor are tuples: ``("alert", record, sequence)``, ``("alive",)``, ``("status", numbers, metrics page)``,
``("done", summary)`` and ``("failed", message)``. The supervisor sends ``"stop"``; a pipe that closes means the same, so that
no worker outlives a supervisor that was killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from edge_shared.errors import InputError

from pi_gateway.source import Source

STATUS_SECONDS = 0.5
SAVE_SECONDS = 5.0


class Pipe:
    """The worker's end: sending from two threads, and the wish to stop.

    Args:
        connection: to the supervisor.
    """

    def __init__(self, connection: Connection):
        self._connection = connection
        self._lock = threading.Lock()
        self.stopped = threading.Event()

    def send(self, *message: Any) -> None:
        """Send a message; with nobody there any more the worker stops."""
        try:
            with self._lock:
                self._connection.send(message)
        except OSError:
            self.stopped.set()

    def listen(self) -> None:
        """Wait for the wish to stop (in a thread)."""
        with contextlib.suppress(EOFError, OSError):
            self._connection.recv()
        self.stopped.set()


class PipeSink:
    """Alerts into the pipe; `sequence` numbers those of a finite source the same after a restart."""

    def __init__(self, pipe: Pipe):
        self._pipe = pipe
        self._last = (-1, 0)

    def send(self, alert: Any, place: int) -> None:
        """Send one alert: numbered by its place in the source (frame or window), and within it in order."""
        from edge_ids.alerts import eve

        self._last = (place, self._last[1] + 1 if place == self._last[0] else 0)
        self._pipe.send("alert", eve(alert), self._last)

    def write(self, alert: Any) -> None:
        """Send one alert of the CAN service."""
        self.send(alert, int(alert.details["frame"]))

    def close(self) -> None:
        """Nothing to close."""


def main(source: Source, connection: Connection) -> None:
    """Entry point of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the supervisor says when to stop
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    pipe = Pipe(connection)
    threading.Thread(target=pipe.listen, name="listen", daemon=True).start()
    report = Report(pipe)
    try:
        summary = _can(source, pipe, report) if source.kind.startswith("can") else _flow(source, pipe, report)
    except InputError as error:
        pipe.send("failed", str(error))
        os._exit(3)
    except Exception as error:
        pipe.send("failed", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        os._exit(4)
    report.now()
    pipe.send("done", summary)


class Report:
    """Says twice a second that the worker is alive (importing and compiling take long on a small board) and how it stands.

    Args:
        pipe: to the supervisor.

    Attributes:
        ask: gives numbers and the metrics page; None before there are any.
    """

    def __init__(self, pipe: Pipe):
        self._pipe = pipe
        self.ask: Callable[[], tuple[dict[str, Any], str]] | None = None
        threading.Thread(target=self._loop, name="report", daemon=True).start()

    def _loop(self) -> None:
        while not self._pipe.stopped.wait(STATUS_SECONDS):
            self.now()

    def now(self) -> None:
        """Send it at once."""
        self._pipe.send(*(("alive",) if self.ask is None else ("status", *self.ask())))


def _can(source: Source, pipe: Pipe, report: Report) -> dict[str, Any]:
    from edge_ids.can.service import Service, open_bus

    service = Service(source.model, [PipeSink(pipe)], state=source.state)

    def numbers() -> dict[str, Any]:
        return {
            "items": service.skip + service.frames, "unit": "frames", "dropped": service.dropped,
            "malformed": sum(service.malformed.values()), "anomalies": sum(service.anomalies.values()),
        }  # fmt: skip

    def watch() -> None:
        pipe.stopped.wait()
        service.stop()

    threading.Thread(target=watch, name="watch", daemon=True).start()
    report.ask = lambda: (numbers(), service.metrics.render())
    if source.kind == "can-replay":
        summary = service.replay(source.target, speed=source.speed)
    else:
        bus = open_bus(source.target, source.interface)
        try:
            summary = service.live(bus, channel=source.target)
        finally:
            bus.shutdown()
    return summary


def _flow(source: Source, pipe: Pipe, report: Report) -> dict[str, Any]:
    from edge_ids.alerts import Metrics
    from edge_ids.flow import sources
    from edge_ids.flow.detector import load
    from edge_ids.flow.live import LiveFlows
    from edge_ids.flow.monitor import FlowMonitor

    detector = load(source.model)
    metrics = Metrics()
    monitor, sink = FlowMonitor(detector, metrics=metrics), PipeSink(pipe)
    live = LiveFlows(source.target) if source.kind == "flow-interface" else None
    if source.state is not None and source.state.is_file():
        monitor.restore(source.state)
    skip = monitor.summary.flows if live is None else 0

    def numbers() -> dict[str, Any]:
        return {
            "items": monitor.summary.flows,
            "unit": "flows",
            "dropped": 0 if live is None else live.dropped,
            "malformed": 0,
            "anomalies": 0,
        }

    def deliver(alerts: Any) -> None:
        for alert in alerts:
            sink.send(alert, monitor.summary.windows)

    def save() -> None:
        if source.state is not None:
            monitor.save(source.state, 0)

    report.ask = lambda: (numbers(), metrics.render())
    saved = time.monotonic()
    parts = sources.read(Path(source.target), "auto", 16_384, True) if live is None else live.read(None)
    for part in parts:
        if pipe.stopped.is_set():
            break
        if part is None:
            deliver(monitor.tick(time.time()))
            continue
        if skip >= len(part):  # an earlier run has taken these in
            skip -= len(part)
            continue
        part, skip = detector.check(part.rows(slice(skip, None)), source.target), 0
        deliver(monitor.feed(part))
        if time.monotonic() - saved > SAVE_SECONDS:
            save()
            saved = time.monotonic()
    if not pipe.stopped.is_set():
        deliver(monitor.flush())
    save()
    if live is not None:
        live.close()
    return asdict(monitor.summary)
