"""SpuCo-style: classes are pairs of the source's classes, and a patch of the background carries the class's colour.

After SpuCoMNIST: five classes of two digits each, colours equally spaced in hue, and a difficulty that says how much of the background
is coloured. The test part goes round the colours class by class, so that its cells differ by one image at most.
"""

from __future__ import annotations

import colorsys
from typing import Literal

import numpy as np
from edge_shared.errors import InputError
from numpy.typing import NDArray

from fairnet.data.parts import Attribute, BiasedSet, Part, statistics
from fairnet.data.planting import assign_groups, grey, pool, strokes

Patch = Literal["large", "medium", "small"]
PATCHES: dict[str, float] = {"large": 1.0, "medium": 1 / 7, "small": 1 / 14}
"""Side of the coloured corner as a share of the image's: all of it, 4 of 28 pixels, 2 of 28."""


def spuco_images(
    source: str,
    *,
    rho: float = 0.95,
    train: int = 6000,
    val: int = 1000,
    balanced: int = 1000,
    seed: int = 0,
    size: int | None = None,
    patch: Patch = "large",
    label_noise: float = 0.0,
) -> BiasedSet:
    """Train and val with the shortcut, a balanced part and the test part without.

    Args:
        source: an image set with an even number of classes, 2 to 20, by name or path.
        rho: share of images whose colour goes with the class.
        train, val, balanced: images of each part; where the source is too small, at most 70, 10 and 20 % of it.
        seed: of the choice of images and colours.
        size: pixels a side; the source's own if omitted.
        patch: how much of the background is coloured: ``large`` all, ``medium`` and ``small`` a corner.
        label_noise: share of the training labels that are replaced by another class.

    Raises:
        InputError: an odd number of classes, an unknown patch, a share outside [0, 1].
    """
    if patch not in PATCHES:
        raise InputError(f"patch is {patch!r}; use {', '.join(PATCHES)}")
    if not 0 <= label_noise <= 1:
        raise InputError(f"label_noise is {label_noise}; it lies between 0 and 1")
    random = np.random.default_rng(seed)
    found = pool(source, train=train, val=val, balanced=balanced, size=size, random=random, most=20)
    if len(found.classes) % 2 or len(found.classes) < 4:
        raise InputError(f"{source} has {len(found.classes)} classes; pairs need an even number, four or more")
    classes = len(found.classes) // 2
    hues = (np.array([colorsys.hsv_to_rgb(index / classes, 1, 1) for index in range(classes)]) * 255).round().astype(np.uint8)

    def part(name: str, share: float | None) -> Part:
        x, y = found.parts[name]
        y = y // 2
        groups = _round(y, classes) if share is None else assign_groups(y, classes, share, random)
        return Part(paint(grey(x), hues[groups], PATCHES[patch]), y, groups)

    biased = part("train", rho)
    if label_noise:
        wrong = random.permutation(len(biased))[: int(len(biased) * label_noise)]
        noisy = biased.y.copy()
        noisy[wrong] = (noisy[wrong] + random.integers(1, classes, len(wrong))) % classes
        biased = Part(biased.x, noisy, biased.b)
    mean, std = statistics(biased.x)
    names = tuple(f"hue {round(360 * index / classes)}" for index in range(classes))
    return BiasedSet(
        name=f"spuco-{found.name} rho {rho:g}",
        classes=tuple(f"{found.classes[2 * c]} or {found.classes[2 * c + 1]}" for c in range(classes)),
        groups=names,
        train=biased,
        val=part("val", rho),
        balanced=part("balanced", None),
        test=part("test", None),
        synthetic=True,
        mean=mean,
        std=std,
        attributes=(Attribute("colour", names, np.arange(classes), np.arange(classes)),),
    )


def paint(x_NHW: NDArray[np.uint8], colours_N3: NDArray[np.uint8], side: float) -> NDArray[np.uint8]:
    """White strokes on black, and the colour on what is background in the top left corner of `side` times the image's side."""
    height, width = x_NHW.shape[1:]
    corner = np.zeros((height, width), dtype=bool)
    corner[: max(round(height * side), 1), : max(round(width * side), 1)] = True
    background = np.where(corner[None, :, :, None], colours_N3[:, None, None, :], np.uint8(0))
    return np.where(strokes(x_NHW)[..., None], np.uint8(255), background)


def _round(y_N: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Colours in turn within each class."""
    groups = np.empty_like(y_N)
    for label in range(classes):
        rows = np.flatnonzero(y_N == label)
        groups[rows] = np.arange(len(rows)) % classes
    return groups
