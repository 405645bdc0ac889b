"""Corrupted-CIFAR-style (LfF 2020): each class has a corruption of its own in a share rho of its images. From any image set.

The ten corruptions are those of LfF's first set: snow, frost, fog, brightness, contrast, spatter, elastic, JPEG, pixelate, saturate.
They are written anew after their description by Hendrycks and Dietterich (2019): frost and fog are drawn, not photographed, and the
strengths are scaled to the image's side, so that results are comparable among themselves and not with the published files.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from edge_shared.errors import InputError
from numpy.typing import NDArray

from fairnet.data.parts import Attribute, BiasedSet, Part, statistics
from fairnet.data.planting import assign_groups, pool

Image = NDArray[np.float64]
"""(H, W, 3) in [0, 1]."""


def corrupted_images(
    source: str,
    *,
    rho: float = 0.95,
    train: int = 6000,
    val: int = 1000,
    balanced: int = 1000,
    seed: int = 0,
    size: int | None = None,
    severity: int = 4,
) -> BiasedSet:
    """Train and val where the corruption goes with the class, a balanced part and the test part where it does not.

    Args:
        source: an image set of ten classes at most, by name or path (cifar10, an npz, ...); grey images get three equal channels.
        rho: share of images whose corruption is that of the class.
        train, val, balanced: images of each part; where the source is too small, at most 70, 10 and 20 % of it.
        seed: of the choice of images and corruptions.
        size: pixels a side; the source's own if omitted.
        severity: 1 to 5.

    Raises:
        InputError: too many classes, a severity out of range.
    """
    if severity not in range(1, 6):
        raise InputError(f"severity is {severity}; it is 1 to 5")
    random = np.random.default_rng(seed)
    found = pool(source, train=train, val=val, balanced=balanced, size=size, random=random, most=len(CORRUPTIONS))
    classes, names = len(found.classes), tuple(CORRUPTIONS)[: len(found.classes)]

    def part(name: str, share: float) -> Part:
        x, y = found.parts[name]
        groups = assign_groups(y, classes, share, random)
        colour = np.repeat(x, 3, -1) if x.shape[-1] == 1 else x
        return Part(np.stack([corrupt(image, names[g], severity, random) for image, g in zip(colour, groups, strict=True)]), y, groups)

    biased = part("train", rho)
    mean, std = statistics(biased.x)
    return BiasedSet(
        name=f"corrupted-{found.name} rho {rho:g}",
        classes=found.classes,
        groups=names,
        train=biased,
        val=part("val", rho),
        balanced=part("balanced", 1 / classes),
        test=part("test", 1 / classes),
        synthetic=True,
        mean=mean,
        std=std,
        attributes=(Attribute("corruption", names, np.arange(classes), np.arange(classes)),),
    )


def corrupt(image_HWC: NDArray[np.uint8], name: str, severity: int, random: np.random.Generator) -> NDArray[np.uint8]:
    """One image with a corruption of `CORRUPTIONS` at severity 1 to 5; uint8 in and out."""
    changed = CORRUPTIONS[name](image_HWC / 255, severity / 5, random)
    return (changed.clip(0, 1) * 255).round().astype(np.uint8)


def _snow(x: Image, strength: float, random: np.random.Generator) -> Image:
    from scipy.ndimage import uniform_filter1d

    flakes = (random.random(x.shape[:2]) < 0.05 + 0.15 * strength).astype(float)
    streaks = uniform_filter1d(flakes, max(x.shape[0] // 8, 2), axis=0)
    pale = x + 0.3 * strength * (x.mean(-1, keepdims=True) * 0.5 + 0.5 - x)
    return pale + 1.5 * streaks[..., None]


def _frost(x: Image, strength: float, random: np.random.Generator) -> Image:
    ice = np.abs(_plasma(x.shape[:2], random) - 0.5) < 0.06 + 0.1 * strength  # veins along a level line
    return (1 - 0.4 * strength) * x + np.where(ice[..., None], [0.45, 0.5, 0.55], 0.05)


def _fog(x: Image, strength: float, random: np.random.Generator) -> Image:
    haze = 1.5 * strength * _plasma(x.shape[:2], random)[..., None]
    top = x.max()
    return (x + haze) * top / (top + haze.max() + 1e-9)


def _brightness(x: Image, strength: float, random: np.random.Generator) -> Image:
    return x + 0.1 + 0.4 * strength


def _contrast(x: Image, strength: float, random: np.random.Generator) -> Image:
    middle = x.mean((0, 1), keepdims=True)
    return (x - middle) * (0.5 - 0.4 * strength) + middle


def _spatter(x: Image, strength: float, random: np.random.Generator) -> Image:
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(random.normal(size=x.shape[:2]), x.shape[0] / 28)
    drops = noise > np.quantile(noise, 1 - 0.1 - 0.15 * strength)
    return np.where(drops[..., None], np.array([0.35, 0.25, 0.12]), x)


def _elastic(x: Image, strength: float, random: np.random.Generator) -> Image:
    from scipy.ndimage import gaussian_filter, map_coordinates

    side = x.shape[0]
    shifts = []
    for _ in range(2):
        field = gaussian_filter(random.normal(size=x.shape[:2]), side / 10)
        shifts.append(field / (np.abs(field).max() + 1e-9) * side * 0.15 * strength)
    rows, columns = np.mgrid[: x.shape[0], : x.shape[1]]
    where = [rows + shifts[0], columns + shifts[1]]
    return np.stack([map_coordinates(x[..., c], where, order=1, mode="reflect") for c in range(3)], -1)


def _jpeg(x: Image, strength: float, random: np.random.Generator) -> Image:
    from PIL import Image as Pictures

    file = io.BytesIO()
    Pictures.fromarray((x * 255).round().astype(np.uint8)).save(file, "JPEG", quality=round(30 - 25 * strength))
    return np.asarray(Pictures.open(file), dtype=np.float64) / 255


def _pixelate(x: Image, strength: float, random: np.random.Generator) -> Image:
    from PIL import Image as Pictures

    small = max(round(x.shape[0] * (0.75 - 0.45 * strength)), 2)
    picture = Pictures.fromarray((x * 255).round().astype(np.uint8)).resize((small, small), Pictures.Resampling.BOX)
    return np.asarray(picture.resize(x.shape[1::-1], Pictures.Resampling.NEAREST), dtype=np.float64) / 255


def _saturate(x: Image, strength: float, random: np.random.Generator) -> Image:
    grey = x.mean(-1, keepdims=True)
    return grey + (x - grey) * (2 + 6 * strength) + 0.1 * strength


def _plasma(shape: tuple[int, int], random: np.random.Generator) -> Image:
    """Noise with a 1/f spectrum, in [0, 1]: (H, W)."""
    spectrum = np.fft.fft2(random.normal(size=shape))
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(shape[0]), np.fft.fftfreq(shape[1]), indexing="ij"))
    frequency[0, 0] = 1
    cloud = np.fft.ifft2(spectrum / frequency**1.5).real
    return (cloud - cloud.min()) / (np.ptp(cloud) + 1e-9)


CORRUPTIONS: dict[str, Callable[[Image, float, np.random.Generator], Image]] = {
    "snow": _snow,
    "frost": _frost,
    "fog": _fog,
    "brightness": _brightness,
    "contrast": _contrast,
    "spatter": _spatter,
    "elastic": _elastic,
    "jpeg": _jpeg,
    "pixelate": _pixelate,
    "saturate": _saturate,
}
