"""NetFlow tables of the NF-*-v2 and v3 family (University of Queensland): CSV, CSV.gz and Parquet, in batches.

Every feature is read as float64: the v2 columns SRC_TO_DST_SECOND_BYTES and DST_TO_SRC_SECOND_BYTES are concatenated
digits that reach 8.9e211, which float32 turns into infinity.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from edge_shared.errors import InputError

from edge_ids.flow.schema import Schema, netflow_schema
from edge_ids.flow.table import FlowTable

if TYPE_CHECKING:
    import polars as pl

EXTRACTOR = "nprobe"
START, END = "FLOW_START_MILLISECONDS", "FLOW_END_MILLISECONDS"
DATASET = "Dataset"
SYNTHETIC = "synthetic"
_BLOCK = 32 << 20
"""Bytes of a CSV file read at once."""
_ROWS = 250_000
"""Rows of a Parquet file read at once, unless more are asked for."""


def read_netflow(path: str | Path, batch: int = 200_000) -> Iterator[FlowTable]:
    """Read a NetFlow table in batches, so that the file may be larger than the memory.

    Args:
        path: ``.csv``, ``.csv.gz`` or ``.parquet`` file with the columns of NF-v2 (45) or NF-v3 (55); others are ignored.
        batch: flows per table.

    Yields:
        Tables in file order; labels only where the file has a ``Label`` column.

    Raises:
        InputError: for a file that cannot be read, a missing column, or a cell that is no number (with its line).
    """
    import polars as pl

    path = Path(path)
    frame, schema = _scan(path)
    extractor = _extractor(path, frame)
    # Polars' own batches run ahead of whoever asks for them, up to the whole file.
    parts = _parquet_parts(frame, max(batch, _ROWS)) if path.suffix == ".parquet" else _csv_parts(path, schema)
    try:
        for part in parts:
            for piece in part.iter_slices(batch):
                if len(piece):
                    yield _table(piece, schema, extractor, path)
    except pl.exceptions.PolarsError as error:
        raise InputError(_diagnose(path, schema, error)) from error
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read to its end: {error}") from error


def _parquet_parts(frame: pl.LazyFrame, rows: int) -> Iterator[pl.DataFrame]:
    import polars as pl

    total = frame.select(pl.len()).collect().item()
    for start in range(0, total, rows):
        yield frame.slice(start, rows).collect()


def _csv_parts(path: Path, schema: Schema) -> Iterator[pl.DataFrame]:
    import polars as pl

    with _open(path) as file:
        columns = pl.read_csv(io.BytesIO(file.readline()), infer_schema=False).columns
        given, select = _csv_columns(columns, schema)
        for block in _lines(file):
            yield pl.read_csv(io.BytesIO(block), has_header=False, schema=given).select(select)


def _open(path: Path) -> BinaryIO:
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if zipped else path.open("rb")  # type: ignore[return-value]


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Blocks of whole lines, from where the file stands."""
    held = b""
    while block := file.read(_BLOCK):
        cut = block.rfind(b"\n") + 1
        if not cut:
            held += block
            continue
        yield held + block[:cut]
        held = block[cut:]
    if held.strip():
        yield held


def _scan(path: Path) -> tuple[pl.LazyFrame, Schema]:
    import polars as pl

    if not path.is_file():
        raise InputError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}; give a .csv, .csv.gz or .parquet file")
    try:
        if path.suffix == ".parquet":
            frame = pl.scan_parquet(path)
            columns = frame.collect_schema().names()
        else:
            with _open(path) as file:
                columns = pl.read_csv(io.BytesIO(file.readline()), infer_schema=False).columns
            frame = None
    except (pl.exceptions.PolarsError, OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a flow table: {' '.join(str(error).split())[:160]}") from error
    schema = netflow_schema([_clean(name) for name in columns], str(path))
    given, select = _csv_columns(columns, schema)
    return (pl.scan_csv(path, schema=given) if frame is None else frame).select(select), schema


def _csv_columns(columns: list[str], schema: Schema) -> tuple[dict[str, Any], list[pl.Expr]]:
    """The type of each column of a file, and the columns wanted, by their names without blanks."""
    import polars as pl

    names = {_clean(name): name for name in columns}
    kinds = _kinds(schema)
    wanted = {name: kind for name, kind in kinds.items() if name in names} | ({DATASET: pl.String} if DATASET in names else {})
    given = {name: kinds.get(_clean(name), pl.String) for name in columns}
    return given, [pl.col(names[name]).cast(kind).alias(name) for name, kind in wanted.items()]


def _clean(name: str) -> str:
    return name.strip().removeprefix("\ufeff")


def _kinds(schema: Schema) -> dict[str, Any]:
    import polars as pl

    kinds: dict[str, Any] = {"IPV4_SRC_ADDR": pl.String, "IPV4_DST_ADDR": pl.String}
    kinds |= dict.fromkeys(schema.features, pl.Float64)
    return kinds | {"Label": pl.Float64, "Attack": pl.String, START: pl.Float64, END: pl.Float64}


def _extractor(path: Path, frame: pl.LazyFrame) -> str:
    """Who measured the flows: `convert` notes it in the Parquet file, `generate` in the column Dataset; everything else is nProbe's."""
    import polars as pl

    try:
        if path.suffix == ".parquet":
            noted = pl.read_parquet_metadata(path).get("edge_ids.extractor")
            if noted is not None:
                return noted
        if DATASET in frame.collect_schema().names():
            first = frame.select(DATASET).head(1).collect()
            if len(first) and str(first[0, 0]).startswith(SYNTHETIC):
                return str(first[0, 0])
    except pl.exceptions.PolarsError:
        pass  # the reading proper says what is wrong
    return EXTRACTOR


def columns_of(table: FlowTable) -> dict[str, Any]:
    """The columns of a NetFlow file that holds `table`, whose schema is NF-v2 or v3."""
    columns: dict[str, Any] = {"IPV4_SRC_ADDR": table.hosts[table.src], "IPV4_DST_ADDR": table.hosts[table.dst]}
    columns |= {name: table.features[:, index] for index, name in enumerate(table.schema.features)}
    if table.label is not None:
        columns["Label"] = table.label
    if table.attack is not None:
        columns["Attack"] = table.attack
    if table.start is not None and table.end is not None:
        columns |= {START: table.start * 1000, END: table.end * 1000}
    return columns


def _table(frame: pl.DataFrame, schema: Schema, extractor: str, path: Path) -> FlowTable:
    import polars as pl

    src, dst = frame["IPV4_SRC_ADDR"], frame["IPV4_DST_ADDR"]
    if src.null_count() or dst.null_count():
        raise InputError(f"{path}: a flow has no address (IPV4_SRC_ADDR or IPV4_DST_ADDR is empty)")
    hosts = pl.concat([src.unique(), dst.unique()]).unique().sort()
    kind = pl.Enum(hosts)
    columns = set(frame.columns)
    label = None
    if "Label" in columns:
        values = frame["Label"].to_numpy()
        if not np.isin(values, (0, 1)).all():
            bad = values[~np.isin(values, (0, 1))][0]
            raise InputError(f"{path}: column Label holds {bad:g}; it must be 0 (benign) or 1 (attack)")
        label = values.astype(np.int8)
    features = np.empty((len(frame), len(schema)))
    # Column by column into the row-major array: polars' own to_numpy makes a second copy of everything.
    for column, name in enumerate(schema.features):
        features[:, column] = frame[name].to_numpy()
    return FlowTable(
        schema, extractor, hosts.to_numpy().astype(str),
        src.cast(kind).to_physical().to_numpy().astype(np.int32), dst.cast(kind).to_physical().to_numpy().astype(np.int32),
        features, label,
        frame["Attack"].fill_null("").to_numpy().astype(str) if "Attack" in columns else None,
        frame[START].to_numpy() / 1000 if START in columns else None,
        frame[END].to_numpy() / 1000 if END in columns else None,
    )  # fmt: skip


def _diagnose(path: Path, schema: Schema, error: Exception) -> str:
    """Say in which line a cell is no number; polars only names the column."""
    import polars as pl

    if path.suffix != ".parquet":
        try:
            frame = pl.scan_csv(path, infer_schema=False).with_row_index("line", 2)
            for name in (*schema.features, "Label"):
                if name not in frame.collect_schema().names():
                    continue
                bad = frame.filter(pl.col(name).is_not_null() & pl.col(name).cast(pl.Float64, strict=False).is_null())
                row = bad.select("line", name).head(1).collect()
                if len(row):
                    return f"{path}:{row['line'][0]}: column {name} holds {row[name][0]!r}, which is no number"
        except (pl.exceptions.PolarsError, OSError):
            pass
    return f"{path}: cannot be read as a flow table: {' '.join(str(error).split())[:160]}"
