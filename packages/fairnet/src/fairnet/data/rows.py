"""From a list of image files with labels, groups and parts to a `BiasedSet`: what all readers end in."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from edge_shared.errors import InputError
from numpy.typing import NDArray

from fairnet.data.parts import BiasedSet, Part, own_groups, statistics

PARTS = ("train", "val", "balanced", "test")
UNKNOWN = "unknown"
"""The group of every image of a set whose groups are not published."""


@dataclass(frozen=True)
class Row:
    """One image file; `where` says for messages where the row stands."""

    part: str
    path: Path
    label: str
    group: str
    where: str


def assemble(
    name: str,
    rows: Sequence[Row],
    *,
    size: int,
    group: str = "group",
    classes: Sequence[str] | None = None,
    cut_val: bool = False,
    seed: int = 0,
) -> BiasedSet:
    """Read the images and put the parts together.

    Without balanced rows, val cut down to equal (label, group) cells becomes that part.

    Args:
        name: of the set; stands in messages.
        rows: the files, of parts train, val, balanced, test.
        size: pixels a side after resizing.
        group: what the groups are.
        classes: names in the order of their numbers; sorted labels of train by default.
        cut_val: make a tenth of train the val part, for sets that are published without one.
        seed: of the cuts.

    Raises:
        InputError: an empty part, one class only, a label that train lacks, an image that cannot be read.
    """
    rows = _with_val(rows, seed) if cut_val else rows
    for needed in ("train", "val", "test"):
        if not any(row.part == needed for row in rows):
            raise InputError(f"{name}: no rows of split {needed}")
    known = list(classes or sorted({row.label for row in rows if row.part == "train"}))
    groups = sorted({row.group for row in rows})
    if lonely := set(groups) - {row.group for row in rows if row.part == "train"}:
        raise InputError(f"{name}: {group} {min(lonely)!r} has no training image; only other parts have it")
    if len({row.label for row in rows if row.part == "train"}) < 2:
        raise InputError(f"{name}: all training labels are {rows[0].label!r}; there must be two classes or more")
    for row in rows:
        if row.label not in known:
            raise InputError(f"{row.where}: label {row.label!r} does not occur in the training rows; those have {', '.join(known)}")

    def part(which: str) -> Part:
        chosen = [row for row in rows if row.part == which]
        with ThreadPoolExecutor() as pool:
            images = list(pool.map(lambda row: _image(row, size), chosen))
        return Part(
            np.stack(images), np.array([known.index(row.label) for row in chosen]), np.array([groups.index(row.group) for row in chosen])
        )

    train, val, test = part("train"), part("val"), part("test")
    balanced = part("balanced") if any(row.part == "balanced" for row in rows) else equal_cells(val, seed)
    mean, std = statistics(train.x)
    return BiasedSet(
        name=name,
        classes=tuple(known),
        groups=tuple(groups),
        train=train,
        val=val,
        balanced=balanced,
        test=test,
        synthetic=False,
        mean=mean,
        std=std,
        attributes=own_groups(train, len(known), tuple(groups), group),
        files=tuple(str(row.path) for row in rows if row.part == "train"),
    )


def equal_cells(part: Part, seed: int = 0) -> Part:
    """As many rows of each present (label, group) cell as the smallest has."""
    random = np.random.default_rng(seed)
    cells = part.y * (part.b.max() + 1) + part.b
    names, counts = np.unique(cells, return_counts=True)
    rows = [random.permutation(np.flatnonzero(cells == name))[: counts.min()] for name in names]
    return part.take(np.sort(np.concatenate(rows)))


def folder_of(path: str | Path, *needed: str) -> Path:
    """The folder of a published set.

    Raises:
        InputError: if it is absent or lacks something that the layout has.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder")
    for name in needed:
        if not (folder / name).exists():
            raise InputError(f"{folder}: no {name} in it; found {', '.join(sorted(p.name for p in folder.iterdir())[:6]) or 'nothing'}")
    return folder


def _with_val(rows: Sequence[Row], seed: int) -> list[Row]:
    train = [index for index, row in enumerate(rows) if row.part == "train"]
    held = set(np.random.default_rng(seed).permutation(train)[: len(train) // 10].tolist())
    return [Row("val", r.path, r.label, r.group, r.where) if index in held else r for index, r in enumerate(rows)]


def _image(row: Row, size: int) -> NDArray[np.uint8]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(row.path) as image:
            return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError) as error:
        raise InputError(f"{row.where}: cannot read image {row.path}: {(str(error).splitlines() or ['broken file'])[0]}") from error
