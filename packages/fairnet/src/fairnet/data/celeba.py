"""CelebA (Liu 2015): the aligned images with their attribute list and partition, as published (.txt) or as tables (.csv)."""

from __future__ import annotations

from pathlib import Path

from edge_shared.errors import InputError
from edge_shared.files import read_text

from fairnet.data.parts import BiasedSet
from fairnet.data.rows import Row, assemble, folder_of

PARTS = ("train", "val", "test")


def read_celeba(path: str | Path, *, size: int = 64, target: str = "Blond_Hair", bias: str = "Male", limit: int | None = None) -> BiasedSet:
    """Read the set with one attribute as the label and another as the group.

    Args:
        path: folder with ``list_attr_celeba`` and ``list_eval_partition`` (.txt or .csv) and ``img_align_celeba``, with or without a
            second folder of that name in it.
        size: pixels a side after resizing.
        target: attribute that is the label.
        bias: attribute that is the group.
        limit: at most this many images of each part, the first ones.

    Raises:
        InputError: a missing file, an unknown attribute, a value out of range (with its line), an image without a partition.
    """
    folder = folder_of(path, "img_align_celeba")
    images = folder / "img_align_celeba"
    images = images / "img_align_celeba" if (images / "img_align_celeba").is_dir() else images
    file, names, table = _attributes(folder)
    for attribute in (target, bias):
        if attribute not in names:
            raise InputError(f"{file}: no attribute {attribute!r}; it has {', '.join(names)}")
    of = {cells[0]: cells[1] for _, cells in _lines(folder, "list_eval_partition")[1] if len(cells) == 2}
    rows: list[Row] = []
    taken = dict.fromkeys(PARTS, 0)
    for line, cells in table:
        if len(cells) != len(names) + 1:
            raise InputError(f"{file}:{line}: {len(cells) - 1} values for {len(names)} attributes")
        values = dict(zip(names, cells[1:], strict=True))
        for attribute in (target, bias):
            if values[attribute] not in ("1", "-1", "0"):
                raise InputError(f"{file}:{line}: {attribute} is {values[attribute]!r}; it is 1 or -1")
        if of.get(cells[0]) not in ("0", "1", "2"):
            raise InputError(f"{file}:{line}: {cells[0]} has no partition 0, 1 or 2 in list_eval_partition")
        part = PARTS[int(of[cells[0]])]
        taken[part] += 1
        if limit is None or taken[part] <= limit:
            label, group = (name if values[name] == "1" else f"not {name}" for name in (target, bias))
            rows.append(Row(part, images / cells[0], label, group, f"{file}:{line}"))
    return assemble(f"{folder.name} {target} by {bias}", rows, size=size, group=bias)


def _attributes(folder: Path) -> tuple[Path, list[str], list[tuple[int, list[str]]]]:
    """The file, its attribute names, and its rows: line number, then image and values. The .txt form has a count above the names."""
    file, lines = _lines(folder, "list_attr_celeba")
    head = 1 if file.suffix == ".txt" else 0
    if len(lines) <= head + 1:
        raise InputError(f"{file} has no rows")
    names = lines[head][1]
    return file, names if file.suffix == ".txt" else names[1:], lines[head + 1 :]


def _lines(folder: Path, name: str) -> tuple[Path, list[tuple[int, list[str]]]]:
    """The lines of a list, .txt or .csv, with their numbers."""
    for suffix, separator in ((".txt", None), (".csv", ",")):
        file = folder / f"{name}{suffix}"
        if file.is_file():
            lines = enumerate(read_text(file, "list").splitlines(), 1)
            return file, [(number, [cell.strip() for cell in line.split(separator)]) for number, line in lines if line.strip()]
    raise InputError(f"{folder}: no {name}.txt or {name}.csv in it")
