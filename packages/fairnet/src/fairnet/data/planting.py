"""What all generators share: images of a source cut into parts, and bias groups with exact counts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from edge_shared.data.vision import ImageSet, load_images
from edge_shared.errors import InputError
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Pool:
    """Images of a source, cut into the parts that a shortcut is planted in: arrays (n, h, w, c) and labels by part."""

    name: str
    classes: tuple[str, ...]
    parts: dict[str, tuple[NDArray[np.uint8], Ints]]


def assign_groups(y_N: Ints, classes: int, rho: float, random: np.random.Generator) -> Ints:
    """A bias group for each sample: group = label for exactly floor(n rho) samples of each class.

    The rest of a class is cut into equal chunks for the other groups, in random order. rho = 1 / classes makes label and group
    independent.

    Raises:
        InputError: if rho is not in [0, 1] or there is one class only.
    """
    if not 0 <= rho <= 1:
        raise InputError(f"rho is {rho}; the share of aligned samples lies between 0 and 1")
    if classes < 2:
        raise InputError("a shortcut needs two classes or more")
    groups = np.empty(len(y_N), dtype=np.int64)
    for label in range(classes):
        rows = random.permutation(np.flatnonzero(y_N == label))
        aligned = int(np.floor(len(rows) * rho + 1e-9))
        groups[rows[:aligned]] = label
        rest = rows[aligned:]
        chunk = -(-len(rest) // (classes - 1)) or 1
        for position, other in enumerate(random.permutation([c for c in range(classes) if c != label])):
            groups[rest[position * chunk : (position + 1) * chunk]] = other
    return groups


def pool(source: str, *, train: int, val: int, balanced: int, size: int | None, random: np.random.Generator, most: int) -> Pool:
    """Cut a source: train, val and balanced from its train part, test from its test part.

    Args:
        source: an image set by name or path.
        train, val, balanced: images of each part; where there are too few for all three, at most 70, 10 and 20 % of what there is.
        size: pixels a side; the source's own if omitted.
        random: chooses the images.
        most: classes that the generator can serve.

    Raises:
        InputError: too many classes.
    """
    images = _images(source, size)
    if len(images.classes) > most:
        raise InputError(f"{source} has {len(images.classes)} classes; this shortcut is made for at most {most}")
    x, y = np.concatenate([images.train_x, images.val_x]), np.concatenate([images.train_y, images.val_y])
    if len(y) < train + val + balanced:
        train, val, balanced = (min(asked, int(len(y) * share)) for asked, share in ((train, 0.7), (val, 0.1), (balanced, 0.2)))
    rows = random.permutation(len(y))
    parts, start = {}, 0
    for name, count in (("train", train), ("val", val), ("balanced", balanced)):
        chosen = rows[start : start + count]
        parts[name], start = (x[chosen], y[chosen]), start + count
    parts["test"] = (images.test_x, images.test_y)
    return Pool(images.name, images.classes, parts)


def grey(x_NHWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """One channel: (N, H, W)."""
    return x_NHWC.mean(-1).astype(np.uint8) if x_NHWC.shape[-1] > 1 else x_NHWC[..., 0]


def strokes(x_NHW: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which pixels are drawn: all that are not black, as published, from 20 pixels a side on; in smaller images, which are smooth,
    what is bright."""
    return x_NHW >= (1 if x_NHW.shape[1] >= 20 else 96)


@lru_cache(maxsize=1)
def _images(source: str, size: int | None) -> ImageSet:
    """Kept, because a comparison draws many sets from the same images."""
    return load_images(source, size=size)
