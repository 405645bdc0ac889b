"""Waterbirds (Sagawa 2020): the folder with ``metadata.csv``, as published. Land and water birds before land and water."""

from __future__ import annotations

from pathlib import Path

from edge_shared.errors import InputError

from fairnet.data.parts import BiasedSet
from fairnet.data.rows import Row, assemble, folder_of
from fairnet.tables import read_csv

CLASSES, PLACES = ("landbird", "waterbird"), ("land", "water")
PARTS = ("train", "val", "test")


def read_waterbirds(path: str | Path, *, size: int = 64) -> BiasedSet:
    """Read the set: label ``y`` 0 landbird, 1 waterbird; group ``place`` 0 land, 1 water; split 0 train, 1 val, 2 test.

    Args:
        path: folder with metadata.csv and the images below it.
        size: pixels a side after resizing.

    Raises:
        InputError: a missing column or file, a number out of range (with its line).
    """
    file = folder_of(path, "metadata.csv") / "metadata.csv"
    rows = []
    for line, row in read_csv(file, ("img_filename", "y", "split", "place")):
        names = []
        for column, allowed in (("split", PARTS), ("y", CLASSES), ("place", PLACES)):
            if row[column] not in map(str, range(len(allowed))):
                raise InputError(f"{file}:{line}: {column} is {row[column]!r}; it is 0 to {len(allowed) - 1}")
            names.append(allowed[int(row[column])])
        rows.append(Row(names[0], file.parent / row["img_filename"], names[1], names[2], f"{file}:{line}"))
    return assemble(file.parent.name, rows, size=size, group="place", classes=CLASSES)
