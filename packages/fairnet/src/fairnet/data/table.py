"""One's own images: a CSV with the columns path, label, group and split.

Waterbirds and CelebA fit after renaming columns; `label`, `group`, `path` and `split` say which column is which.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
from edge_shared.errors import InputError
from edge_shared.files import read_text

from fairnet.data.parts import BiasedSet, Part, statistics

PARTS = ("train", "val", "balanced", "test")
_NAMES = {"0": "train", "1": "val", "2": "test", "valid": "val", "validation": "val"}


def read_image_table(
    file: str | Path, *, size: int = 64, path: str = "path", label: str = "label", group: str = "group", split: str = "split"
) -> BiasedSet:
    """Read images named in a CSV; paths are relative to the CSV's folder.

    The column `split` holds train, val, test and optionally balanced (or 0, 1, 2 for the first three). Without balanced rows, the
    val part is cut down to equal (label, group) cells for that.

    Args:
        file: the CSV.
        size: pixels a side after resizing.
        path, label, group, split: names of the columns.

    Raises:
        InputError: a column that is missing, an unknown split, an image that cannot be read (with its line), an empty part, a label
            or group that only one part has, one class only.
    """
    file = Path(file)
    rows = csv.DictReader(io.StringIO(read_text(file, "image table")))
    for column in (path, label, group, split):
        if column not in (rows.fieldnames or []):
            raise InputError(f"{file}: no column {column!r}; it has {', '.join(rows.fieldnames or []) or 'no header'}")
    found: dict[str, list[tuple[np.ndarray, str, str]]] = {name: [] for name in PARTS}
    for row in rows:
        name = _NAMES.get(row[split], row[split])
        if name not in found:
            raise InputError(f"{file}:{rows.line_num}: split {row[split]!r}; use train, val, test or balanced")
        if not row[label] or not row[group]:
            raise InputError(f"{file}:{rows.line_num}: empty {label if not row[label] else group}")
        found[name].append((_image(file, rows.line_num, file.parent / row[path], size), row[label], row[group]))
    for name in ("train", "val", "test"):
        if not found[name]:
            raise InputError(f"{file}: no rows of split {name}")
    classes = sorted({row[1] for row in found["train"]})
    groups = sorted({row[2] for part in found.values() for row in part})
    if len(classes) < 2:
        raise InputError(f"{file}: all training labels are {classes[0]!r}; there must be two classes or more")
    if strange := {row[1] for part in found.values() for row in part} - set(classes):
        raise InputError(f"{file}: label {sorted(strange)[0]!r} does not occur in the training rows")

    def part(name: str) -> Part:
        rows = found[name]
        return Part(
            np.stack([row[0] for row in rows]),
            np.array([classes.index(row[1]) for row in rows]),
            np.array([groups.index(row[2]) for row in rows]),
        )

    train, val, test = part("train"), part("val"), part("test")
    balanced = part("balanced") if found["balanced"] else equal_cells(val)
    mean, std = statistics(train.x)
    return BiasedSet(file.stem, tuple(classes), tuple(groups), train, val, balanced, test, synthetic=False, mean=mean, std=std)


def equal_cells(part: Part, seed: int = 0) -> Part:
    """As many rows of each present (label, group) cell as the smallest has."""
    random = np.random.default_rng(seed)
    cells = part.y * (part.b.max() + 1) + part.b
    names, counts = np.unique(cells, return_counts=True)
    rows = [random.permutation(np.flatnonzero(cells == name))[: counts.min()] for name in names]
    return part.take(np.sort(np.concatenate(rows)))


def _image(file: Path, line: int, path: Path, size: int) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise InputError(f"{file}:{line}: cannot read image {path}: {str(error).splitlines()[0]}") from error
