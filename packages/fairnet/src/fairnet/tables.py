"""CSV files with a header, read row by row with line numbers; the standard library alone."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from edge_shared.errors import InputError
from edge_shared.files import read_text


def read_csv(file: str | Path, columns: Sequence[str], what: str = "table") -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a CSV with a header, with their line numbers. Blanks behind a comma are no part of a cell.

    Args:
        file: the file.
        columns: names that the header must have, each once.
        what: what messages call a file that cannot be read.

    Raises:
        InputError: a column that is missing or stands twice, a broken line, a file without rows.
    """
    rows = csv.DictReader(io.StringIO(read_text(file, what)), strict=True, restval="", skipinitialspace=True)
    names = list(rows.fieldnames or [])
    for column in columns:
        if names.count(column) != 1:
            wrong = "two columns" if column in names else "no column"
            raise InputError(f"{file}: {wrong} {column!r}; it has {', '.join(names) or 'no header'}")
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
