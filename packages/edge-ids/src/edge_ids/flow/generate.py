"""Write SYNTHETIC flows as a NetFlow table, so that everything can be tried without data; see `synthetic` for what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edge_shared.errors import InputError
from edge_shared.files import atomic_path

from edge_ids.flow.netflow import DATASET, columns_of
from edge_ids.flow.synthetic import EXTRACTOR, hard_cases


def generate(path: Path, flows: int = 20_000, planted: int = 40, seed: int = 0) -> dict[str, Any]:
    """Write `flows` rows with the columns of NF-v2, labels, classes and times; each class and the column Dataset say that they are synthetic.

    Args:
        path: ``.csv`` or ``.parquet`` file.
        flows: rows, attacks included.
        planted: attacks of each of the two kinds, in the last fifth of the hour.
        seed: of everything.

    Returns:
        Flows per class.

    Raises:
        InputError: for another suffix, or more attacks than flows.
    """
    import polars as pl

    if path.suffix not in (".csv", ".parquet"):
        raise InputError(f"--out {path}: the name must end in .csv or .parquet")
    if path.is_dir():
        raise InputError(f"--out {path} is a folder; give a file name")
    if flows <= 2 * planted:
        raise InputError(f"--flows {flows}: {planted} attacks of each of two kinds leave no benign flow; give more than {2 * planted}")
    table = hard_cases(flows - 2 * planted, planted, seed)
    frame = pl.DataFrame(columns_of(table)).with_columns(
        pl.format("{} (synthetic)", "Attack").alias("Attack"), pl.lit(EXTRACTOR).alias(DATASET)
    )
    with atomic_path(path) as temporary:
        (frame.write_csv if path.suffix == ".csv" else frame.write_parquet)(temporary)
    return dict(sorted(frame.group_by("Attack").len().iter_rows()))
