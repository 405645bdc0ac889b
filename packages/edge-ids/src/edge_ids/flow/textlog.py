"""Flows that other programs log as text: Zeek's conn.log (TSV or JSON) and Suricata's EVE flow events, in what the two have in common.

A bad line is counted, never fatal; a file without a single flow is.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from edge_shared.cli import say
from edge_shared.errors import InputError

from edge_ids.flow.schema import SCHEMAS
from edge_ids.flow.table import FlowTable

ZEEK, SURICATA = "zeek", "suricata"
_PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17, "ipv6-icmp": 58, "icmpv6": 58, "sctp": 132}
_ESTABLISHED = {"SF", "S1", "S2", "S3", "RSTO", "RSTR", "established", "closed"}
_REJECTED = {"REJ", "S0", "RSTOS0", "RSTRH", "SH", "SHR"}

Flow = tuple[str, str, float, float, list[float]]


@contextmanager
def _open(path: Path) -> Iterator[TextIO]:
    try:
        with path.open("rb") as plain:
            zipped = plain.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rt", errors="replace") if zipped else path.open(errors="replace") as file:
            yield file  # type: ignore[misc]
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error


def first_line(path: Path) -> str:
    """The first line of a text file, at most 4,096 characters."""
    with _open(path) as file:
        return file.readline(4096).strip()


def read_eve(path: str | Path, batch: int = 200_000) -> Iterator[FlowTable]:
    """Read the ``flow`` events of a Suricata EVE log; other events are passed over."""

    def parse(line: str) -> Flow | None:
        record = json.loads(line)
        if record.get("event_type") != "flow":
            return None
        flow = record["flow"]
        start, end = _seconds(flow["start"]), _seconds(flow.get("end", flow["start"]))
        sizes = [float(flow.get(name, 0)) for name in ("bytes_toserver", "bytes_toclient", "pkts_toserver", "pkts_toclient")]
        state = flow.get("state", "")
        # A "closed" flow without an answer was refused or ignored.
        rejected = sizes[3] == 0 or (state != "established" and sizes[3] <= 1 and record.get("proto") == "TCP")
        ports = float(record.get("src_port", 0)), float(record.get("dest_port", 0))
        established = state in _ESTABLISHED and not rejected
        return record["src_ip"], record["dest_ip"], start, end, _row(ports, record["proto"], end - start, sizes, established, rejected)

    return _read(Path(path), parse, SURICATA, batch)


def read_zeek(path: str | Path, batch: int = 200_000) -> Iterator[FlowTable]:
    """Read a Zeek conn.log, tab separated with its ``#fields`` line, or JSON lines."""
    fields: list[str] = []

    def parse(line: str) -> Flow | None:
        nonlocal fields
        if line.startswith("#"):
            if line.startswith("#fields"):
                fields = line.rstrip("\n").split("\t")[1:]
            return None
        if line.startswith("{"):
            record: dict[str, Any] = json.loads(line)
        else:
            values = line.rstrip("\n").split("\t")
            if len(values) != len(fields):
                raise ValueError
            record = {name: value for name, value in zip(fields, values, strict=True) if value not in ("-", "(empty)")}
        start = float(record["ts"])
        duration = float(record.get("duration", 0))
        sizes = [float(record.get(name, 0)) for name in ("orig_ip_bytes", "resp_ip_bytes", "orig_pkts", "resp_pkts")]
        ports = float(record["id.orig_p"]), float(record["id.resp_p"])
        state = record.get("conn_state", "")
        row = _row(ports, record["proto"], duration, sizes, state in _ESTABLISHED, state in _REJECTED)
        return record["id.orig_h"], record["id.resp_h"], start, start + duration, row

    return _read(Path(path), parse, ZEEK, batch)


def _row(ports: tuple[float, float], protocol: str, duration: float, sizes: list[float], established: bool, rejected: bool) -> list[float]:
    number = _PROTOCOLS.get(str(protocol).lower(), 0)
    per_packet = sizes[0] / max(sizes[2], 1), sizes[1] / max(sizes[3], 1)
    return [*ports, number, duration, *sizes, *per_packet, float(established), float(rejected)]


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _read(path: Path, parse: Callable[[str], Flow | None], extractor: str, batch: int) -> Iterator[FlowTable]:
    flows: list[Flow] = []
    count = bad = 0
    with _open(path) as file:
        for line in file:
            try:
                flow = parse(line) if line.strip() else None
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                bad += 1
                continue
            if flow is not None:
                flows.append(flow)
                count += 1
            if len(flows) >= batch:
                yield _table(flows, extractor)
                flows = []
    if flows:
        yield _table(flows, extractor)
    if bad:
        say(f"{path}: {bad:,} lines are no {extractor} record and were passed over")
    if not count:
        what = "flow events (set `types: - flow` in suricata.yaml's eve-log)" if extractor == SURICATA else "connections"
        raise InputError(f"{path}: holds no {extractor} {what}")


def _table(flows: list[Flow], extractor: str) -> FlowTable:
    hosts, codes = np.unique(np.array([str(flow[0]) for flow in flows] + [str(flow[1]) for flow in flows]), return_inverse=True)
    src, dst = np.split(codes.astype(np.int32), 2)
    start, end = np.array([flow[2] for flow in flows]), np.array([flow[3] for flow in flows])
    return FlowTable(SCHEMAS["conn"], extractor, hosts, src, dst, np.array([flow[4] for flow in flows], float), start=start, end=end)
