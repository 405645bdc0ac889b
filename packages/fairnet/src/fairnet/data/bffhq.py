"""BFFHQ (Lee 2021): faces, young or old, where in train young goes with female and old with male in all but 0.5 % (or another share)."""

from __future__ import annotations

from pathlib import Path

from edge_shared.data.sources import SUFFIXES
from edge_shared.errors import InputError

from fairnet.data.parts import BiasedSet
from fairnet.data.rows import Row, assemble, folder_of

AGES, GENDERS = ("young", "old"), ("female", "male")


def read_bffhq(path: str | Path, *, size: int = 64) -> BiasedSet:
    """Read the set: ``0.5pct/align/*/*``, ``0.5pct/conflict/*/*`` (or another share), ``valid/*``, ``test/*``.

    Every file is called ``NUMBER_AGE_GENDER.png``: 0 young, 1 old; 0 female, 1 male. The balanced part comes from ``valid``, as the
    published test has conflicting faces and aligned ones alike.

    Args:
        path: folder with one ``...pct`` folder, valid and test.
        size: pixels a side after resizing.

    Raises:
        InputError: a missing folder, none or several shares, a file name that does not say age and gender.
    """
    folder = folder_of(path, "valid", "test")
    shares = sorted(p for p in folder.glob("*pct") if p.is_dir())
    if len(shares) != 1:
        raise InputError(f"{folder}: {len(shares)} folders called like 0.5pct; keep the one to train on")
    rows = []
    for part, place in (("train", shares[0]), ("val", folder / "valid"), ("test", folder / "test")):
        for file in sorted(p for p in place.rglob("*") if p.suffix.lower() in SUFFIXES):
            marks = file.stem.split("_")[-2:]
            if len(marks) != 2 or not set(marks) <= {"0", "1"}:
                raise InputError(f"{file}: the name does not say age and gender; BFFHQ's files are called like 01234_0_1.png")
            rows.append(Row(part, file, AGES[int(marks[0])], GENDERS[int(marks[1])], str(file)))
    return assemble(f"{folder.name} {shares[0].name}", rows, size=size, group="gender", classes=AGES)
