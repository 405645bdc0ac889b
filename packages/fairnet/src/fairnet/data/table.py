"""One's own images: a CSV with the columns path, label, group and split."""

from __future__ import annotations

from pathlib import Path

from edge_shared.errors import InputError

from fairnet.data.parts import BiasedSet
from fairnet.data.rows import PARTS, UNKNOWN, Row, assemble
from fairnet.tables import read_csv

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
