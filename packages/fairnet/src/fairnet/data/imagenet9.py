"""9-Class ImageNet (ReBias 2020): dog, cat, frog, turtle, bird, monkey, fish, crab, insect, each of several ImageNet classes.

What misleads a network there (texture, background) is not labelled: groups are unknown.
"""

from __future__ import annotations

from pathlib import Path

from edge_shared.data.sources import SUFFIXES
from edge_shared.errors import InputError

from fairnet.data.parts import BiasedSet
from fairnet.data.rows import UNKNOWN, Row, assemble, folder_of

CLASSES = ("dog", "cat", "frog", "turtle", "bird", "monkey", "fish", "crab", "insect")
SYNSETS = {
    "dog": "n02085620 n02099601 n02106550 n02106662 n02110958",
    "cat": "n02123045 n02123159 n02123394 n02123597 n02124075",
    "frog": "n01641577 n01644373 n01644900",
    "turtle": "n01664065 n01665541 n01667114 n01667778 n01669191",
    "bird": "n01819313 n01820546 n01833805 n01843383 n01847000",
    "monkey": "n02486410 n02487347 n02488291 n02488702 n02492035",
    "fish": "n02607072 n02640242 n02641379 n02643566 n02655020",
    "crab": "n01978287 n01978455 n01980166 n01981276",
    "insect": "n02174001 n02177972 n02190166 n02206856 n02219486",
}
"""WordNet numbers of the ImageNet folders that make up each class (42 of the 1000)."""


def read_imagenet9(path: str | Path, *, size: int = 64) -> BiasedSet:
    """Read the set: ``train/FOLDER/*`` and ``val/FOLDER/*``, where a folder is an ImageNet class (n02123045) or one of the nine names.

    ImageNet's val is the test part, because its own test part has no labels; a tenth of train becomes val. Folders of other ImageNet
    classes are passed over, so that the whole of ImageNet can be given.

    Args:
        path: folder with train and val.
        size: pixels a side after resizing.

    Raises:
        InputError: a missing folder, or none that belongs to a class.
    """
    folder = folder_of(path, "train", "val")
    of = {synset: name for name, synsets in SYNSETS.items() for synset in synsets.split()} | {name: name for name in CLASSES}
    rows = []
    for part, place in (("train", "train"), ("test", "val")):
        for inner in sorted(p for p in (folder / place).iterdir() if p.name in of):
            files = sorted(p for p in inner.rglob("*") if p.suffix.lower() in SUFFIXES)
            rows += [Row(part, file, of[inner.name], UNKNOWN, str(file)) for file in files]
    if not rows:
        raise InputError(f"{folder}: no folder of train or val is called like n02123045 or cat; classes: {', '.join(CLASSES)}")
    return assemble(
        folder.name, rows, size=size, cut_val=True, classes=[name for name in CLASSES if any(row.label == name for row in rows)]
    )
