"""The form that all data take here: images, labels and bias groups in four parts."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Part:
    """Images (N, H, W, 3) uint8, labels (N,) and bias groups (N,) int64."""

    x: NDArray[np.uint8]
    y: NDArray[np.int64]
    b: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.y)

    def take(self, index: NDArray[np.int64]) -> Part:
        """The rows of `index`."""
        return Part(self.x[index], self.y[index], self.b[index])


@dataclass(frozen=True)
class BiasedSet:
    """Data with a shortcut.

    Attributes:
        name: how it was made.
        classes, groups: names of labels and of bias groups.
        train, val: biased alike.
        balanced: a small set in which label and group are independent; for methods that need one, never trained on otherwise.
        test: label and group independent, untouched.
        synthetic: whether the shortcut was planted by a generator.
        mean, std: per channel of train, in [0, 1].
    """

    name: str
    classes: tuple[str, ...]
    groups: tuple[str, ...]
    train: Part
    val: Part
    balanced: Part
    test: Part
    synthetic: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all pixels, labels and groups."""
        digest = hashlib.sha256()
        for part in (self.train, self.val, self.balanced, self.test):
            for array in (part.x, part.y, part.b):
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def statistics(x_NHWC: NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation per channel, in [0, 1]; a constant channel gets deviation 1."""
    pixels = x_NHWC.reshape(-1, x_NHWC.shape[-1]).astype(np.float32) / 255
    std = pixels.std(0)
    return tuple(map(float, pixels.mean(0))), tuple(float(value) if value > 1e-6 else 1.0 for value in std)
