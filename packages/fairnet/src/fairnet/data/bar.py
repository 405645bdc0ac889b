"""BAR, Biased Action Recognition (LfF 2020): six actions, each in its usual place in train and in other places in test.

The places are not labelled, so groups are unknown: methods that need none can be trained, and all of the test part is conflicting.
"""

from __future__ import annotations

import re
from pathlib import Path

from edge_shared.data.sources import SUFFIXES
from edge_shared.errors import InputError

from fairnet.data.parts import BiasedSet
from fairnet.data.rows import UNKNOWN, Row, assemble, folder_of


def read_bar(path: str | Path, *, size: int = 64) -> BiasedSet:
    """Read the set: ``train/ACTION_NUMBER.jpg`` and ``test/ACTION_NUMBER.jpg``; a tenth of train becomes val.

    Args:
        path: folder with train and test.
        size: pixels a side after resizing.

    Raises:
        InputError: a missing folder, a file name that does not say its action.
    """
    folder = folder_of(path, "train", "test")
    rows = []
    for part in ("train", "test"):
        for file in sorted(p for p in (folder / part).rglob("*") if p.suffix.lower() in SUFFIXES):
            named = re.fullmatch(r"(.+)_\d+", file.stem)
            if named is None:
                raise InputError(f"{file}: the name does not say its action; BAR's files are called like climbing_12.jpg")
            rows.append(Row(part, file, named[1], UNKNOWN, str(file)))
    return assemble(folder.name, rows, size=size, cut_val=True)
