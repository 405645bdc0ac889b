"""Whatever holds flows, read as tables in batches: the suffix and the first bytes tell which reader."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from edge_shared.errors import InputError

from edge_ids.flow.table import FlowTable

Format = Literal["auto", "netflow", "pcap", "nfstream", "eve", "zeek"]
FORMATS = ("auto", "netflow", "pcap", "nfstream", "eve", "zeek")
"""``nfstream`` is a capture too, read by nfstream instead of our own meter."""


def detect(path: Path) -> str:
    """Tell the format of a file: ``netflow``, ``pcap``, ``eve`` or ``zeek``.

    Raises:
        InputError: if it is absent or of no known kind.
    """
    if not path.is_file():
        raise InputError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}; give a flow table, pcap, conn.log or EVE file")
    name = path.name.removesuffix(".gz")
    if name.endswith((".csv", ".parquet")):
        return "netflow"
    if name.endswith((".pcap", ".pcapng", ".cap")):
        return "pcap"
    from edge_ids.flow.packets import MAGICS
    from edge_ids.flow.textlog import first_line

    with path.open("rb") as file:
        head = file.read(4)
    if head in MAGICS:
        return "pcap"
    line = first_line(path)
    if line.startswith("#separator"):
        return "zeek"
    if line.startswith("{"):
        return "zeek" if '"id.orig_h"' in line else "eve"
    if "IPV4_SRC_ADDR" in line:
        return "netflow"
    raise InputError(
        f"{path}: no flow source known by its suffix or first line; use .csv, .parquet, .pcap(ng), Zeek conn.log or Suricata EVE"
    )


def read(path: str | Path, format: str = "auto", batch: int = 200_000, allow_truncated: bool = False) -> Iterator[FlowTable]:
    """Read flows from `path` in batches of at most about `batch` flows.

    Raises:
        InputError: for an unknown format or a file that cannot be read.
    """
    path = Path(path)
    if format not in FORMATS:
        raise InputError(f"--format {format}: choose one of {', '.join(FORMATS)}")
    kind = detect(path) if format == "auto" else format
    if kind == "netflow":
        from edge_ids.flow.netflow import read_netflow

        return read_netflow(path, batch)
    if kind == "pcap":
        from edge_ids.flow.meter import read_pcap

        return read_pcap(path, batch, allow_truncated=allow_truncated)
    if kind == "nfstream":
        from edge_ids.flow import nfstream_meter

        return nfstream_meter.read_pcap(path, batch, allow_truncated=allow_truncated)
    from edge_ids.flow.textlog import read_eve, read_zeek

    return read_eve(path, batch) if kind == "eve" else read_zeek(path, batch)


def fingerprint(path: str | Path) -> str:
    """SHA-256 of the file."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
