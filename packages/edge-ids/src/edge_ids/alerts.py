"""Where alerts and numbers go: EVE-shaped JSON lines, RFC 5424 syslog, and a Prometheus text endpoint.

Shared by the CAN and the flow half. The JSON shape follows Suricata's EVE log (``timestamp``, ``event_type``,
``alert{action, gid, signature_id, rev, signature, category, severity}``); the ``can`` object and ``event_type`` values
other than ``alert`` are an extension of this project.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal, TextIO

from edge_shared.errors import InputError
from edge_shared.files import plain

GENERATOR_ID = 9100  # the EVE `gid` of every alert of this project; Suricata's own rules use 1


@dataclass(frozen=True)
class Alert:
    """One alert.

    Attributes:
        time: seconds since the epoch.
        signature_id: number of the rule or detector, stable across versions.
        signature: what was seen, in a few words.
        category: kind of attack or detector.
        severity: 1 (high) to 3 (low), as in EVE.
        fields: further EVE fields at the top level: ``src_ip, src_port, dest_ip, dest_port, proto, flow_id`` for
            flows, ``can{channel, id, extended, dlc, data}`` for CAN.
        details: what the detector adds under ``alert.metadata`` (scores, thresholds, counts).
        event_type: EVE event type.
    """

    time: float
    signature_id: int
    signature: str
    category: str
    severity: Literal[1, 2, 3] = 2
    fields: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    event_type: str = "alert"


def timestamp(seconds: float) -> str:
    """ISO 8601 in UTC with microseconds, as EVE writes it; times outside of years 1 to 9999 are clipped."""
    seconds = min(max(seconds, -62135596800.0), 253402300799.0)
    moment = datetime.fromtimestamp(round(seconds * 1e6) // 1_000_000, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{round(seconds * 1e6) % 1_000_000:06d}+0000"


def eve(alert: Alert) -> dict[str, Any]:
    """The alert as one EVE record, plain JSON values."""
    return plain(
        {
            "timestamp": timestamp(alert.time),
            "event_type": alert.event_type,
            **alert.fields,
            "alert": {
                "action": "allowed",
                "gid": GENERATOR_ID,
                "signature_id": alert.signature_id,
                "rev": 1,
                "signature": alert.signature,
                "category": alert.category,
                "severity": alert.severity,
                "metadata": alert.details,
            },
        }
    )


class EveWriter:
    """Write alerts as JSON lines to an open stream, or append them to a file; each line is flushed at once."""

    def __init__(self, target: TextIO | str | Path):
        self._own = isinstance(target, str | Path)
        if isinstance(target, str | Path):
            try:
                Path(target).parent.mkdir(parents=True, exist_ok=True)
                self._stream: TextIO = Path(target).open("a", encoding="utf-8")  # noqa: SIM115 - closed by close()
            except OSError as error:
                raise InputError(f"cannot write alerts to {target}: {error.strerror or error}") from error
        else:
            self._stream = target

    def write(self, alert: Alert) -> None:
        """Write one alert."""
        self._stream.write(json.dumps(eve(alert), allow_nan=False) + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Close the file, if this object opened it."""
        if self._own:
            self._stream.close()


class SyslogWriter:
    """Send alerts to syslog as RFC 5424 lines over UDP or a local datagram socket.

    Args:
        address: ``host:port`` (UDP) or the path of a socket such as ``/dev/log``.
        application: the APP-NAME field.
    """

    _severity = {1: 1, 2: 4, 3: 5}  # alert, warning, notice
    _facility = 10  # security/authorization messages

    def __init__(self, address: str, application: str = "edge-ids"):
        self._application = application
        host, _, port = address.rpartition(":")
        self._target: str | tuple[str, int] = address
        if not address.startswith("/"):
            if not host or not port.isdecimal() or not 0 < int(port) < 65536:
                raise InputError(f"--syslog {address!r}: write host:port or the path of a socket such as /dev/log")
            self._target = (host.strip("[]"), int(port))
        elif not Path(address).is_socket():
            raise InputError(f"--syslog {address!r}: no socket there")
        try:
            family = socket.AF_UNIX
            if isinstance(self._target, tuple):
                family = socket.getaddrinfo(*self._target, type=socket.SOCK_DGRAM)[0][0]
            self._socket = socket.socket(family, socket.SOCK_DGRAM)
        except OSError as error:
            raise InputError(f"--syslog {address!r}: {error.strerror or error}") from error
        self.failed = 0

    def format(self, alert: Alert) -> str:
        """The RFC 5424 line; the message part is the EVE record."""
        priority = self._facility * 8 + self._severity[alert.severity]
        stamp = timestamp(alert.time).replace("+0000", "Z")
        host = socket.gethostname() or "-"
        record = json.dumps(eve(alert), allow_nan=False)
        return f"<{priority}>1 {stamp} {host} {self._application} - {alert.signature_id} - {record}"

    def write(self, alert: Alert) -> None:
        """Send one alert; a syslog that is down is counted in `failed` and never stops the detector."""
        try:
            self._socket.sendto(self.format(alert).encode(), self._target)
        except OSError:
            self.failed += 1

    def close(self) -> None:
        """Close the socket, and say how many alerts did not get through."""
        self._socket.close()
        if self.failed:
            print(f"warning: {self.failed} alerts did not reach syslog", file=sys.stderr, flush=True)


Labels = tuple[tuple[str, str], ...]


class Metrics:
    """Counters, gauges and histograms, rendered in Prometheus' text format 0.0.4; safe across threads.

    Args:
        prefix: put before every name.
    """

    def __init__(self, prefix: str = "edge_ids_"):
        self._prefix = prefix
        self._lock = threading.Lock()
        self._help: OrderedDict[str, tuple[str, str]] = OrderedDict()
        self._values: dict[str, dict[Labels, float]] = {}
        self._buckets: dict[str, tuple[float, ...]] = {}
        self._histograms: dict[str, tuple[list[int], float]] = {}

    def counter(self, name: str, help: str) -> None:
        """Declare a counter; by convention the name ends in ``_total``."""
        self._declare(name, "counter", help)

    def gauge(self, name: str, help: str) -> None:
        """Declare a gauge."""
        self._declare(name, "gauge", help)

    def histogram(self, name: str, help: str, buckets: Sequence[float]) -> None:
        """Declare a histogram with ascending upper bounds; ``+Inf`` is added."""
        self._declare(name, "histogram", help)
        self._buckets[name] = tuple(buckets)
        self._histograms[name] = ([0] * (len(buckets) + 1), 0.0)

    def _declare(self, name: str, kind: str, help: str) -> None:
        self._help[name] = (kind, help)
        self._values[name] = {}

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add to a counter or gauge."""
        key = tuple(sorted(labels.items()))
        with self._lock:
            self._values[name][key] = self._values[name].get(key, 0) + amount

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge (or a counter kept elsewhere)."""
        with self._lock:
            self._values[name][tuple(sorted(labels.items()))] = value

    def observe(self, name: str, value: float, count: int = 1) -> None:
        """Add `count` observations of `value` to a histogram."""
        bounds = self._buckets[name]
        index = next((i for i, bound in enumerate(bounds) if value <= bound), len(bounds))
        with self._lock:
            counts, total = self._histograms[name]
            counts[index] += count
            self._histograms[name] = (counts, total + value * count)

    def render(self) -> str:
        """The page that Prometheus scrapes."""
        lines: list[str] = []
        with self._lock:
            for name, (kind, help) in self._help.items():
                full = self._prefix + name
                lines += [f"# HELP {full} {_escape(help)}", f"# TYPE {full} {kind}"]
                if kind == "histogram":
                    counts, total = self._histograms[name]
                    seen = 0
                    for bound, count in zip([*self._buckets[name], float("inf")], counts, strict=True):
                        seen += count
                        text = "+Inf" if bound == float("inf") else f"{bound:g}"
                        lines.append(f'{full}_bucket{{le="{text}"}} {seen}')
                    lines += [f"{full}_sum {total!r}", f"{full}_count {seen}"]
                    continue
                for labels, value in self._values[name].items() or ([((), 0)] if kind == "counter" else []):
                    inside = ",".join(f'{key}="{_escape(text, quote=True)}"' for key, text in labels)
                    lines.append(f"{full}{{{inside}}} {value}" if inside else f"{full} {value}")
        return "\n".join(lines) + "\n"


def _escape(text: str, quote: bool = False) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quote else text


class MetricsServer:
    """Serve ``/metrics`` over HTTP in a background thread, on loopback unless told otherwise.

    Args:
        metrics: what to serve.
        address: ``port``, ``:port`` or ``host:port``; port 0 takes a free one, see `port`.
    """

    def __init__(self, metrics: Metrics, address: str = "127.0.0.1:9464"):
        host, _, port = address.rpartition(":")
        host = host.strip("[]") or "127.0.0.1"
        if not port.isdecimal() or int(port) > 65535:
            raise InputError(f"metrics address {address!r}: write host:port, such as 127.0.0.1:9464")

        class Handler(BaseHTTPRequestHandler):
            timeout = 10  # seconds; a client that sends its request drop by drop holds no thread for longer

            def do_GET(self) -> None:
                found = self.path.split("?")[0] in ("/metrics", "/")
                body = metrics.render().encode() if found else b"only /metrics is here\n"
                self.send_response(200 if found else 404)
                self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass  # a scrape every few seconds is no news

        try:
            self._server = ThreadingHTTPServer((host, int(port)), Handler)
        except OSError as error:
            raise InputError(f"metrics address {address}: {error.strerror or error}") from error
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
