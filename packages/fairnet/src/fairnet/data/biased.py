"""Biased-MNIST (ReBias): the background's colour goes with the class in a share rho of the images. From any image set.

Counts are exact, not drawn: of the n images of a class the first floor(n rho), in a random order, get the class's colour; the rest
is cut into equal chunks for the other colours, in random order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fairnet.data.parts import Attribute, BiasedSet, Part, statistics
from fairnet.data.planting import assign_groups, grey, pool, strokes

COLOURS = np.array(
    [(255, 0, 0), (0, 255, 0), (0, 0, 255), (225, 225, 0), (225, 0, 225), (0, 255, 255), (255, 128, 0), (255, 0, 128), (128, 0, 255), (128, 128, 128)],
    dtype=np.uint8,
)  # fmt: skip
NAMES = ("red", "green", "blue", "yellow", "magenta", "cyan", "orange", "pink", "violet", "grey")


def colour(x_NHW: NDArray[np.uint8], groups_N: NDArray[np.int64]) -> NDArray[np.uint8]:
    """White strokes on the group's colour: (N, H, W) to (N, H, W, 3)."""
    return np.where(strokes(x_NHW)[..., None], np.uint8(255), COLOURS[groups_N][:, None, None, :])


def biased_images(
    source: str, *, rho: float = 0.97, train: int = 6000, val: int = 1000, balanced: int = 1000, seed: int = 0, size: int | None = None
) -> BiasedSet:
    """Biased-MNIST from an image set: train and val at `rho`, a small balanced part and the test part without a shortcut.

    Args:
        source: an image set of ten classes at most, by name or path (digits, mnist, fashion-mnist, an npz, ...).
        rho: share of images whose colour goes with the class.
        train, val, balanced: images of each part, all from the source's train part; where it is too small, at most 70, 10 and 20 % of it.
        seed: of the choice of images and colours.
        size: pixels a side; the source's own if omitted.
    """
    random = np.random.default_rng(seed)
    found = pool(source, train=train, val=val, balanced=balanced, size=size, random=random, most=len(COLOURS))
    classes = len(found.classes)

    def part(name: str, share: float) -> Part:
        x, y = found.parts[name]
        groups = assign_groups(y, classes, share, random)
        return Part(colour(grey(x), groups), y, groups)

    biased = part("train", rho)
    mean, std = statistics(biased.x)
    return BiasedSet(
        name=f"biased-{found.name} rho {rho:g}",
        classes=found.classes,
        groups=NAMES[:classes],
        train=biased,
        val=part("val", rho),
        balanced=part("balanced", 1 / classes),
        test=part("test", 1 / classes),
        synthetic=True,
        mean=mean,
        std=std,
        attributes=(Attribute("colour", NAMES[:classes], np.arange(classes), np.arange(classes)),),
    )
