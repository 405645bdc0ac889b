"""Write docs/reproduction.md from the rows in benchmarks/*/ledger.toml and the records in benchmarks/results/*.json.

    python benchmarks/ledger.py [--check]

A row's ``reproduced`` text holds placeholders such as ``{rows.0.accuracy:.1f}``: a dotted path into the row's record, a number for a
place in a list, ``?key=value`` for the first item of a list that has it, and a format as in f-strings. A row without its record prints
"not run". `--check` changes nothing and exits 1 if the page is not what the records say.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "reproduction.md"
PLACEHOLDER = re.compile(r"\{([^{}:!]+)(?::([^{}]*))?\}")
KEYS = {"paper", "method", "claim", "results", "reproduced", "not_reproduced", "command"}
HEAD = """# Reproduction ledger

One row per method: what its paper claims, what was measured here, what was not and why, and the command that does it again. The figures are
taken from the JSON records in `benchmarks/results/` by `python benchmarks/ledger.py`; nobody typed them. A row that was not run says "not run".

Paper figures are the authors', on their hardware and data; those beside them are ours, at the scale of a two-core machine without a GPU.
Data, seeds, intervals and machine stand in each record.
"""


def lookup(record: Any, path: str) -> Any:
    """The value at a dotted path: a key, a number for a place in a list, ``?key=value`` for the first item that has it."""
    for part in path.split("."):
        if part.startswith("?"):
            key, _, value = part[1:].partition("=")
            record = next((item for item in record if str(item.get(key)) == value), None)
        elif isinstance(record, list):
            record = record[int(part)]
        else:
            record = record[part]
        if record is None:
            raise KeyError(path)
    return record


def fill(text: str, record: Any) -> str:
    """Replace every placeholder of `text` by its value in `record`."""
    return PLACEHOLDER.sub(lambda match: format(lookup(record, match[1]), match[2] or ""), text)


def row(entry: dict[str, str], where: Path) -> str:
    """One line of the table."""
    if wrong := set(entry) ^ KEYS:
        raise SystemExit(f"{where}: row {entry.get('method', '?')!r}: key {', '.join(sorted(wrong))} is unknown or missing")
    record = HERE / "results" / entry["results"]
    found = "not run"
    if entry["results"] and record.exists():
        try:
            found = fill(entry["reproduced"], json.loads(record.read_text()))
        except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
            raise SystemExit(f"{where}: row {entry['method']!r}: {record.name} has no value for {error}") from None
    command = f"`{entry['command']}`" if entry["command"] else ""
    cells = [f"`{entry['method']}`<br>{entry['paper']}", entry["claim"], found, entry["not_reproduced"], command]
    return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for path in sorted(HERE.glob("*/ledger.toml")):
        rows = [row(entry, path) for entry in tomllib.loads(path.read_text())["row"]]
        parts.append(
            f"## {path.parent.name}\n\n| method | the paper claims | measured here | not reproduced, and why | command |\n|---|---|---|---|---|\n"
            + "\n".join(rows)
            + "\n"
        )
    return "\n".join(parts)


def main() -> None:
    text = page()
    if "--check" in sys.argv[1:]:
        if not PAGE.exists() or PAGE.read_text() != text:
            sys.exit("docs/reproduction.md is not what the records say: run python benchmarks/ledger.py")
        return
    PAGE.write_text(text)


if __name__ == "__main__":
    main()
