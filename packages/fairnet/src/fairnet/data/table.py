"""One's own images: a CSV with the columns path, label, group and split."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from edge_shared.errors import InputError
from edge_shared.files import read_text

from fairnet.data.parts import BiasedSet
from fairnet.data.rows import PARTS, UNKNOWN, Row, assemble

_NAMES = {"0": "train", "1": "val", "2": "test", "valid": "val", "validation": "val"}


def read_image_table(
    file: str | Path, *, size: int = 64, path: str = "path", label: str = "label", group: str = "group", split: str = "split"
) -> BiasedSet:
    """Read images named in a CSV; paths are relative to the CSV's folder.

    The column `split` holds train, val, test and optionally balanced (or 0, 1, 2 for the first three). Without balanced rows, the
    val part is cut down to equal (label, group) cells for that. A table without a column `group` has unknown groups: methods that
    need none work on it.

    Args:
        file: the CSV.
        size: pixels a side after resizing.
        path, label, group, split: names of the columns.

    Raises:
        InputError: a column that is missing, an empty cell, an unknown split, an image that cannot be read (each with its line), an
            empty part, a label that train lacks, one class only.
    """
    file = Path(file)
    rows = []
    for line, row in read_csv(file, (path, label, split)):
        part = _NAMES.get(row[split], row[split])
        if part not in PARTS:
            raise InputError(f"{file}:{line}: split {row[split]!r}; use train, val, test or balanced")
        for column in (path, label, *((group,) if group in row else ())):
            if not row[column]:
                raise InputError(f"{file}:{line}: empty {column}")
        rows.append(Row(part, file.parent / row[path], row[label], row.get(group) or UNKNOWN, f"{file}:{line}"))
    return assemble(str(file), rows, size=size, group=group)


def read_csv(file: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a CSV with a header, with their line numbers.

    Raises:
        InputError: a column that is missing, a broken line, a file without rows.
    """
    rows = csv.DictReader(io.StringIO(read_text(file, "table")), strict=True, restval="")
    names = rows.fieldnames or []
    for column in columns:
        if column not in names:
            raise InputError(f"{file}: no column {column!r}; it has {', '.join(names) or 'no header'}")
    empty = True
    try:
        for row in rows:
            empty = False
            if None in row:
                raise InputError(f"{file}:{rows.line_num}: more cells than the header has columns")
            yield rows.line_num, row
    except csv.Error as error:
        raise InputError(f"{file}:{rows.line_num}: {error}") from error
    if empty:
        raise InputError(f"{file} has a header but no rows")
