"""Two shortcuts on one image, after Multi-Color MNIST (DebiAN 2022): the left and the right half of the background carry colours of
their own, which go with the class in a share rho_left and rho_right of the images, independently of each other.

Each of the ten right colours is the complement of a left one. Every image's colours are shifted a little (0.005 of the range, the
published severity 4). The palette is our own.
"""

from __future__ import annotations

import colorsys

import numpy as np
from edge_shared.errors import InputError
from numpy.typing import NDArray

from fairnet.data.parts import Attribute, BiasedSet, Part, statistics
from fairnet.data.planting import grey, pool, strokes

LEFT = np.array([colorsys.hsv_to_rgb(index / 10, 0.9, 0.8) for index in range(10)])
RIGHT = 1 - LEFT
JITTER = 0.005


def two_colour_images(
    source: str,
    *,
    rho: float = 0.99,
    rho_right: float = 0.95,
    train: int = 6000,
    val: int = 1000,
    balanced: int = 1000,
    seed: int = 0,
    size: int | None = None,
) -> BiasedSet:
    """Train and val with both shortcuts, a balanced part and the test part with neither.

    The bias group is the pair (left colour, right colour); the attributes ``left`` and ``right`` take it apart.

    Args:
        source: an image set of ten classes at most, by name or path.
        rho: share of images whose left colour goes with the class.
        rho_right: likewise for the right colour.
        train, val, balanced: images of each part; where the source is too small, at most 70, 10 and 20 % of it.
        seed: of the choice of images and colours.
        size: pixels a side; the source's own if omitted.
    """
    random = np.random.default_rng(seed)
    for option, share in (("rho", rho), ("rho_right", rho_right)):
        if not 0 <= share <= 1:
            raise InputError(f"{option} is {share}; the share of aligned samples lies between 0 and 1")
    found = pool(source, train=train, val=val, balanced=balanced, size=size, random=random, most=len(LEFT))
    classes = len(found.classes)

    def part(name: str, left_share: float, right_share: float) -> Part:
        x, y = found.parts[name]
        pairs = assign_pairs(y, classes, left_share, right_share, random)
        left, right = pairs // classes, pairs % classes
        return Part(paint(grey(x), left, right, random), y, pairs)

    biased = part("train", rho, rho_right)
    mean, std = statistics(biased.x)
    groups = tuple(f"left {a}, right {b}" for a in range(classes) for b in range(classes))
    values, pair = tuple(map(str, range(classes))), np.arange(classes**2)
    return BiasedSet(
        name=f"two-colour {found.name} rho {rho:g} and {rho_right:g}",
        classes=found.classes,
        groups=groups,
        train=biased,
        val=part("val", rho, rho_right),
        balanced=part("balanced", 1 / classes, 1 / classes),
        test=part("test", 1 / classes, 1 / classes),
        synthetic=True,
        mean=mean,
        std=std,
        attributes=(
            Attribute("left", values, pair // classes, np.arange(classes)),
            Attribute("right", values, pair % classes, np.arange(classes)),
        ),
    )


def assign_pairs(
    y_N: NDArray[np.int64], classes: int, left_share: float, right_share: float, random: np.random.Generator
) -> NDArray[np.int64]:
    """A pair left * classes + right for each sample: within a class every pair as often as the product of both shares says, rounded up or
    down so that the sums hold."""

    def shares(share: float, label: int) -> NDArray[np.float64]:
        found = np.full(classes, (1 - share) / (classes - 1))
        found[label] = share
        return found

    pairs = np.empty(len(y_N), dtype=np.int64)
    for label in range(classes):
        rows = random.permutation(np.flatnonzero(y_N == label))
        order = random.permutation(classes**2)
        table = np.outer(shares(left_share, label), shares(right_share, label)).ravel()[order]
        edges = np.round(np.cumsum(table) * len(rows)).astype(int)
        edges[-1] = len(rows)
        pairs[rows] = np.repeat(order, np.diff(edges, prepend=0))
    return pairs


def paint(
    x_NHW: NDArray[np.uint8], left_N: NDArray[np.int64], right_N: NDArray[np.int64], random: np.random.Generator
) -> NDArray[np.uint8]:
    """White strokes; the background's left half in the left colour, its right half in the right one: (N, H, W, 3)."""
    width = x_NHW.shape[2]
    colours = np.stack([LEFT[left_N], RIGHT[right_N]], 1) + random.normal(0, JITTER, (len(left_N), 2, 3))
    side = (np.arange(width) >= width // 2).astype(int)
    background = (colours.clip(0, 1) * 255).round().astype(np.uint8)[:, side][:, None]  # (N, 1, W, 3)
    return np.where(strokes(x_NHW)[..., None], np.uint8(255), background)
