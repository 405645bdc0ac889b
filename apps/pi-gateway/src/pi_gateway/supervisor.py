"""Start a worker per source, merge their alerts into one stream, restart what dies, and tell how things stand.

A source that dies never takes another with it: its worker is started again after a pause that doubles (up to a minute), it
goes on from its saved state, and alerts that were already written are not written twice.
"""

from __future__ import annotations

import json
import multiprocessing
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal, TextIO

from edge_shared.errors import InputError

from pi_gateway.source import Source
from pi_gateway.worker import main as worker_main

State = Literal["starting", "running", "waiting", "finished", "stopped", "failed"]
RECENT = 500
SILENT_SECONDS = 60.0


@dataclass(frozen=True)
class Policy:
    """When a dead worker is started again.

    Attributes:
        first, longest: seconds of the first pause and of the longest; each pause is twice the one before.
        attempts: deaths in a row after which a source is given up; one that ran for `healthy` seconds starts counting anew.
        healthy: seconds.
    """

    first: float = 1.0
    longest: float = 60.0
    attempts: int = 6
    healthy: float = 60.0

    def pause(self, deaths: int) -> float:
        """Seconds to wait after so many deaths in a row."""
        return min(self.first * 2 ** (deaths - 1), self.longest)


@dataclass
class Watched:
    """A source with its process and what is known of it."""

    source: Source
    state: State = "starting"
    process: BaseProcess | None = None
    connection: Connection | None = None
    numbers: dict[str, Any] = field(default_factory=dict)
    page: str = ""
    alerts: int = 0
    restarts: int = 0
    deaths: int = 0
    error: str = ""
    summary: dict[str, Any] | None = None
    since: float = 0.0
    heard: float = 0.0
    due: float = 0.0
    last: tuple[int, int] = (-1, -1)
    rate: float = 0.0
    measured: tuple[float, int] = (0.0, 0)
    rss: int = 0


class Supervisor:
    """The process tree of a gateway.

    Args:
        sources: with unique names.
        alerts: file of EVE JSON lines that alerts are appended to; None keeps the recent ones only. Alerts found in it are
            those of an earlier run: a file that is replayed again goes on without repeating them.
        policy: of restarts.
        on_alert: called with each record.
    """

    def __init__(self, sources: list[Source], alerts: Path | None = None, policy: Policy | None = None, on_alert: Any = None):
        names = [source.name for source in sources]
        if not sources:
            raise InputError("nothing to watch: give --can-replay, --can-channel, --flow-pcap, --flow-csv or --flow-interface")
        if len(set(names)) != len(names):
            raise InputError(f"two sources have the same name: {', '.join(names)}")
        for source in sources:
            source.check()
        self.watched = [Watched(source) for source in sources]
        self.policy = policy or Policy()
        self.started = time.time()
        self.recent: deque[tuple[int, dict[str, Any]]] = deque(maxlen=RECENT)
        self.total = 0
        self.kinds: Counter[str] = Counter()
        self.severities: Counter[int] = Counter()
        self._context = multiprocessing.get_context("spawn")
        self._stopping = threading.Event()
        self._on_alert = on_alert
        self._lock = threading.Lock()
        self._path = alerts
        self._file: TextIO | None = None
        self._recall(alerts)

    def _recall(self, alerts: Path | None) -> None:
        """What an earlier run has written; a last line that was cut off by a crash is removed."""
        if alerts is None or not alerts.exists():
            return
        by_name = {watched.source.name: watched for watched in self.watched}
        whole = 0
        with alerts.open("rb") as file:
            for line in file:
                try:
                    record = json.loads(line)
                    watched = by_name.get(record["gateway"]["source"])
                    if not line.endswith(b"\n"):
                        break
                except (ValueError, KeyError, TypeError):
                    break
                whole += len(line)
                if watched is not None:
                    watched.last = max(watched.last, tuple(record["gateway"]["sequence"]))
                    self._keep(watched, record)
        if whole < alerts.stat().st_size:
            with alerts.open("rb+") as file:
                file.truncate(whole)

    # --- processes

    def _start(self, watched: Watched) -> None:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=worker_main, args=(watched.source, theirs), name=watched.source.name, daemon=True)
        process.start()
        theirs.close()
        watched.process, watched.connection = process, ours
        watched.state, watched.since = "starting", time.monotonic()
        watched.heard = watched.since

    def _died(self, watched: Watched, reason: str) -> None:
        """Close what is left of a worker, and plan its restart."""
        if watched.connection is not None:
            watched.connection.close()
        if watched.process is not None:
            watched.process.join(timeout=5)
        code = watched.process.exitcode if watched.process is not None else None
        watched.process = watched.connection = None
        watched.rate = 0.0
        if watched.summary is not None:
            watched.state = "stopped" if self._stopping.is_set() else "finished"
            return
        if self._stopping.is_set():
            watched.state = "stopped"
            return
        if time.monotonic() - watched.since > self.policy.healthy:
            watched.deaths = 0
        watched.deaths += 1
        watched.error = watched.error if reason == "" and watched.error else reason or f"the process ended with code {code}"
        if watched.deaths >= self.policy.attempts:
            watched.state = "failed"
            return
        watched.state = "waiting"
        watched.due = time.monotonic() + self.policy.pause(watched.deaths)

    def _receive(self, watched: Watched) -> None:
        assert watched.connection is not None
        try:
            while watched.connection.poll():
                self._take(watched, watched.connection.recv())
        except (EOFError, OSError):
            self._died(watched, "")

    def _take(self, watched: Watched, message: tuple[Any, ...]) -> None:
        watched.heard = time.monotonic()
        kind = message[0]
        if kind == "alert":
            self._alert(watched, message[1], tuple(message[2]))
        elif kind == "status":
            watched.state = "running"
            with self._lock:
                watched.numbers, watched.page = message[1], message[2]
            then, items = watched.measured
            if watched.heard - then >= 0.9:
                if then:
                    watched.rate = max((watched.numbers["items"] - items) / (watched.heard - then), 0.0)
                watched.measured = (watched.heard, watched.numbers["items"])
        elif kind == "done":
            watched.summary = message[1]
        elif kind == "failed":
            watched.error = message[1]

    def _alert(self, watched: Watched, record: dict[str, Any], sequence: tuple[int, int]) -> None:
        if watched.source.finite and sequence <= watched.last:
            return  # written before the worker died
        watched.last = max(watched.last, sequence)
        record = record | {"gateway": {"source": watched.source.name, "sequence": list(sequence)}}
        if self._file is not None:
            self._file.write(json.dumps(record, allow_nan=False) + "\n")
            self._file.flush()
        self._keep(watched, record)
        if self._on_alert is not None:
            self._on_alert(record)

    def _keep(self, watched: Watched, record: dict[str, Any]) -> None:
        with self._lock:
            watched.alerts += 1
            self.total += 1
            self.kinds[record["alert"]["signature"].split(":")[0]] += 1
            self.severities[int(record["alert"]["severity"])] += 1
            self.recent.append((self.total, record))

    # --- the loop

    def stop(self) -> None:
        """Ask for the end; safe from signal handlers and other threads."""
        self._stopping.set()

    def run(self, duration: float | None = None) -> dict[str, Any]:
        """Watch until every file has ended (live sources: until `stop`), or for `duration` seconds; returns `summary`."""
        begin = time.monotonic()
        if self._path is not None:
            self._file = self._path.open("a", encoding="utf-8")
        for watched in self.watched:
            self._start(watched)
        while not self._stopping.is_set():
            self._once()
            if duration is not None and time.monotonic() - begin >= duration:
                break
            if all(watched.state in ("finished", "failed") for watched in self.watched):
                break
        self._stopping.set()
        self._wind_up()
        if self._file is not None:
            self._file.close()
        return self.summary(time.monotonic() - begin)

    def _once(self) -> None:
        open_ = {watched.connection: watched for watched in self.watched if watched.connection is not None}
        if open_:
            for ready in wait(list(open_), timeout=0.2):
                self._receive(open_[ready])  # type: ignore[index]
        else:
            self._stopping.wait(0.05)
        now = time.monotonic()
        for watched in self.watched:
            if watched.state == "waiting" and now >= watched.due:
                watched.restarts += 1
                self._start(watched)
            elif watched.process is not None and now - watched.heard > SILENT_SECONDS:
                watched.process.kill()
                self._died(watched, f"nothing heard for {SILENT_SECONDS:.0f} s; killed")

    def _wind_up(self) -> None:
        """Stop what runs, hear it out, kill what does not listen; who is still starting has nothing to say."""
        for watched in self.watched:
            if watched.state == "starting" and watched.process is not None:
                watched.process.kill()
                self._died(watched, "")
                continue
            if watched.connection is not None:
                try:
                    watched.connection.send("stop")
                except OSError:
                    continue
        until = time.monotonic() + 15
        while any(watched.connection is not None for watched in self.watched) and time.monotonic() < until:
            self._once()
        for watched in self.watched:
            if watched.process is not None:
                watched.process.kill()
                self._died(watched, "did not stop in time; killed")
            if watched.state == "waiting":
                watched.state = "stopped"

    # --- how things stand

    def status(self, after: int | None = None) -> dict[str, Any]:
        """Plain values for the dashboard.

        Args:
            after: also give recent alerts with a higher number.
        """
        import psutil

        rows = []
        for watched in self.watched:
            process = watched.process
            try:
                watched.rss = psutil.Process(process.pid).memory_info().rss if process is not None and process.pid else 0
            except psutil.Error:
                watched.rss = 0
            with self._lock:
                numbers = dict(watched.numbers)
            rows.append(
                {
                    "name": watched.source.name, "kind": watched.source.kind, "target": watched.source.target, "state": watched.state,
                    "items": numbers.get("items", 0), "unit": numbers.get("unit", "frames" if watched.source.kind.startswith("can") else "flows"),
                    "per_second": watched.rate, "alerts": watched.alerts, "anomalies": numbers.get("anomalies", 0),
                    "dropped": numbers.get("dropped", 0), "malformed": numbers.get("malformed", 0), "restarts": watched.restarts,
                    "error": watched.error, "rss_bytes": watched.rss, "pid": process.pid if process is not None else None,
                }
            )  # fmt: skip
        states = {row["state"] for row in rows}
        document: dict[str, Any] = {
            "uptime": time.time() - self.started, "alerts": self.total, "sources": rows,
            "health": "failed" if states <= {"failed"} else "degraded" if states & {"failed", "waiting"} else "ok",
        }  # fmt: skip
        if after is not None:
            with self._lock:
                document["recent"] = [{"number": number, "record": record} for number, record in self.recent if number > after]
                document["by_signature"] = dict(self.kinds.most_common(20))
        return document

    def page(self) -> str:
        """One Prometheus page: the gateway's own numbers, then those of each worker with a label for its source."""
        lines = [
            "# HELP pi_gateway_up Whether a source's worker runs.", "# TYPE pi_gateway_up gauge",
            *[f'pi_gateway_up{{source="{w.source.name}"}} {int(w.state == "running")}' for w in self.watched],
            "# HELP pi_gateway_restarts_total Times a worker was started again.", "# TYPE pi_gateway_restarts_total counter",
            *[f'pi_gateway_restarts_total{{source="{w.source.name}"}} {w.restarts}' for w in self.watched],
            "# HELP pi_gateway_alerts_total Alerts written.", "# TYPE pi_gateway_alerts_total counter",
            *[f'pi_gateway_alerts_total{{source="{w.source.name}"}} {w.alerts}' for w in self.watched],
        ]  # fmt: skip
        families: dict[str, list[str]] = {}
        for watched in self.watched:
            with self._lock:
                page = watched.page
            family = ""
            for line in page.splitlines():
                if line.startswith("# HELP "):
                    family = line.split()[2]
                    families.setdefault(family, [line])
                elif line.startswith("# TYPE "):
                    if len(families[family]) == 1:
                        families[family].append(line)
                elif line:
                    families[family].append(labelled(line, watched.source.name))
        return "\n".join([*lines, *(line for family in families.values() for line in family)]) + "\n"

    def summary(self, seconds: float) -> dict[str, Any]:
        """What happened, plain values; the last line of ``pi-gateway run --json``."""
        return {
            "event_type": "summary", "seconds": seconds, "alerts": self.total, "alerts_by_signature": dict(self.kinds.most_common()),
            "alerts_by_severity": {str(level): count for level, count in sorted(self.severities.items())},
            "sources": [
                {
                    "name": w.source.name, "state": w.state, "items": w.numbers.get("items", 0), "alerts": w.alerts, "restarts": w.restarts,
                    "error": w.error, "summary": w.summary,
                }
                for w in self.watched
            ],
        }  # fmt: skip


def labelled(line: str, name: str) -> str:
    """A sample of a Prometheus page with ``source="name"`` added to its labels."""
    head, _, value = line.rpartition(" ")
    if head.endswith("}"):
        return f'{head[:-1]},source="{name}"}} {value}'
    return f'{head}{{source="{name}"}} {value}'
