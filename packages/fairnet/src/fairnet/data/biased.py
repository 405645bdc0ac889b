"""Biased-MNIST (ReBias): the background's colour goes with the class in a share rho of the images. From any grey image set.

Counts are exact, not drawn: of the n images of a class the first floor(n rho), in a random order, get the class's colour; the rest
is cut into equal chunks for the other colours, in random order.
"""

from __future__ import annotations

import numpy as np
from edge_shared.data.vision import load_images
from edge_shared.errors import InputError
from numpy.typing import NDArray

from fairnet.data.parts import BiasedSet, Part, statistics

COLOURS = np.array(
    [(255, 0, 0), (0, 255, 0), (0, 0, 255), (225, 225, 0), (225, 0, 225), (0, 255, 255), (255, 128, 0), (255, 0, 128), (128, 0, 255), (128, 128, 128)],
    dtype=np.uint8,
)  # fmt: skip
NAMES = ("red", "green", "blue", "yellow", "magenta", "cyan", "orange", "pink", "violet", "grey")


def assign_groups(y_N: NDArray[np.int64], classes: int, rho: float, random: np.random.Generator) -> NDArray[np.int64]:
    """A bias group for each sample: group = label for exactly floor(n rho) samples of each class.

    rho = 1 / classes makes label and group independent.

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


def colour(x_NHW: NDArray[np.uint8], groups_N: NDArray[np.int64], threshold: int = 1) -> NDArray[np.uint8]:
    """White strokes (pixels of at least `threshold`) on the group's colour: (N, H, W) to (N, H, W, 3)."""
    stroke = (x_NHW >= threshold)[..., None]
    return np.where(stroke, np.uint8(255), COLOURS[groups_N][:, None, None, :])


def biased_images(
    source: str, *, rho: float = 0.97, train: int = 6000, val: int = 1000, balanced: int = 1000, seed: int = 0, size: int | None = None
) -> BiasedSet:
    """Biased-MNIST from an image set: train and val at `rho`, a small balanced part and the test part without a shortcut.

    Args:
        source: an image set of ten classes at most, by name or path (digits, mnist, fashion-mnist, an npz, ...).
        rho: share of images whose colour goes with the class.
        train, val, balanced: images of each part, all from the source's train part; fewer where it is smaller (then 70, 10 and 20 %).
        seed: of the choice of images and colours.
        size: pixels a side; the source's own if omitted.
    """
    images = load_images(source, size=size)
    classes = len(images.classes)
    if classes > len(COLOURS):
        raise InputError(f"{source} has {classes} classes; the generator has {len(COLOURS)} colours")
    random = np.random.default_rng(seed)
    pool_x = np.concatenate([images.train_x, images.val_x])
    pool_y = np.concatenate([images.train_y, images.val_y])
    wanted = train + val + balanced
    if len(pool_y) < wanted:
        train, val, balanced = (int(len(pool_y) * share) for share in (0.7, 0.1, 0.2))
    order = random.permutation(len(pool_y))
    threshold = 1 if images.train_x.shape[1] >= 20 else 96  # small images are smooth: a stroke is what is bright

    def part(x: NDArray[np.uint8], y: NDArray[np.int64], share: float) -> Part:
        groups = assign_groups(y, classes, share, random)
        grey = x.mean(-1).astype(np.uint8) if x.shape[-1] > 1 else x[..., 0]
        return Part(colour(grey, groups, threshold), y, groups)

    cuts = np.cumsum([train, val, balanced])
    first, second, third = order[: cuts[0]], order[cuts[0] : cuts[1]], order[cuts[1] : cuts[2]]
    biased = part(pool_x[first], pool_y[first], rho)
    mean, std = statistics(biased.x)
    return BiasedSet(
        name=f"biased-{images.name} rho {rho:g}",
        classes=images.classes,
        groups=NAMES[:classes],
        train=biased,
        val=part(pool_x[second], pool_y[second], rho),
        balanced=part(pool_x[third], pool_y[third], 1 / classes),
        test=part(images.test_x, images.test_y, 1 / classes),
        synthetic=True,
        mean=mean,
        std=std,
    )
