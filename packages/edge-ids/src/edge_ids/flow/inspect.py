"""What a file of flows holds, and the same flows as Parquet; both in pieces, whatever the size of the file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from edge_shared.errors import InputError
from edge_shared.files import atomic_path

from edge_ids.flow import sources
from edge_ids.flow.netflow import columns_of
from edge_ids.flow.table import FlowTable


@dataclass
class Inspection:
    """Figures of one file.

    Attributes:
        schema: ``nf-v2``, ``nf-v3`` or ``conn``.
        extractor: program that measured the flows.
        flows: their number.
        hosts: addresses.
        pairs: ordered pairs of hosts with a flow.
        benign: flows labelled 0; None without labels.
        attack: flows labelled 1.
        attacks: flows per class name.
        seconds: from first start to last end; None without times.
        not_finite: cells that are inf, NaN or empty.
        beyond_float32: cells above 3.4e38, which only float64 can hold.
    """

    schema: str
    extractor: str
    flows: int = 0
    hosts: int = 0
    pairs: int = 0
    benign: int | None = None
    attack: int | None = None
    attacks: dict[str, int] = field(default_factory=dict)
    seconds: float | None = None
    not_finite: int = 0
    beyond_float32: int = 0


def inspect(path: str, format: str = "auto", allow_truncated: bool = False) -> Inspection:
    """Look through all flows of `path`.

    Raises:
        InputError: if it cannot be read or holds no flow.
    """
    report: Inspection | None = None
    hosts: set[str] = set()
    pairs: set[tuple[str, str]] = set()
    first, last = np.inf, -np.inf
    for table in sources.read(path, format, allow_truncated=allow_truncated):
        report = report or Inspection(table.schema.name, table.extractor)
        report.flows += len(table)
        hosts.update(table.hosts.tolist())
        codes = np.unique(np.stack([table.src, table.dst]), axis=1)
        pairs.update(zip(table.hosts[codes[0]].tolist(), table.hosts[codes[1]].tolist(), strict=True))
        if table.label is not None:
            attacks = int(table.label.sum())
            report.attack = (report.attack or 0) + attacks
            report.benign = (report.benign or 0) + len(table) - attacks
        if table.attack is not None:
            for name, count in zip(*np.unique(table.attack, return_counts=True), strict=True):
                report.attacks[str(name)] = report.attacks.get(str(name), 0) + int(count)
        if table.start is not None and table.end is not None:
            first, last = min(first, float(table.start.min())), max(last, float(table.end.max()))
        report.not_finite += int((~np.isfinite(table.features)).sum())
        report.beyond_float32 += int((np.abs(np.nan_to_num(table.features)) > np.finfo(np.float32).max).sum())
    if report is None:
        raise InputError(f"{path}: holds no flow")
    report.hosts, report.pairs = len(hosts), len(pairs)
    report.seconds = last - first if last >= first else None
    return report


def convert(path: str, to: Path, format: str = "auto", allow_truncated: bool = False) -> int:
    """Write the flows of `path` as Parquet with the columns of their schema; returns their number.

    Raises:
        InputError: if `path` cannot be read or holds no flow.
    """
    return write_parquet(sources.read(path, format, allow_truncated=allow_truncated), to, path)


def write_parquet(tables: Iterable[FlowTable], to: Path, where: str) -> int:
    """Write flows as one Parquet file, atomically, piece by piece; returns their number.

    Raises:
        InputError: if there is none; `where` is what the message calls their source.
    """
    from edge_shared.errors import require

    require("pyarrow", "edge-ids[flow]")
    import pyarrow as pa
    import pyarrow.parquet as pq

    count = 0
    writer = None
    with atomic_path(to) as temporary:
        try:
            for table in tables:
                piece = pa.table(columns_of(table))
                if writer is None:
                    writer = pq.ParquetWriter(temporary, piece.schema.with_metadata({"edge_ids.extractor": table.extractor}))
                writer.write_table(piece.cast(writer.schema))
                count += len(table)
            if writer is None:
                raise InputError(f"{where}: holds no flow")
        finally:
            if writer is not None:
                writer.close()
    return count
