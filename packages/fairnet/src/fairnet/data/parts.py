"""The form that all data take here: images, labels and bias groups in four parts."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from edge_shared.errors import InputError
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
class Attribute:
    """One thing that may go with the label, such as a colour or a place.

    Attributes:
        name: what it is.
        values: names of what it can be.
        of_group: its value in each bias group (G,).
        of_class: the value that goes with each class (C,).
    """

    name: str
    values: tuple[str, ...]
    of_group: NDArray[np.int64]
    of_class: NDArray[np.int64]


@dataclass(frozen=True)
class BiasedSet:
    """Data with a shortcut.

    Attributes:
        name: how it was made.
        classes, groups: names of labels and of bias groups; one group only means that groups are unknown.
        train, val: biased alike.
        balanced: a small set in which label and group are independent; for methods that need one, never trained on otherwise.
        test: label and group independent, untouched.
        synthetic: whether the shortcut was planted by a generator.
        mean, std: per channel of train, in [0, 1].
        files: of the training images, where they come from files.
        attributes: what the groups are made of; several where several shortcuts lie on one set, none where groups are unknown.
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
    attributes: tuple[Attribute, ...] = ()
    files: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("train", "val", "balanced", "test"):
            part: Part = getattr(self, name)
            if not len(part):
                raise InputError(f"{self.name}: the {name} part has no images")
            for what, numbers, names in (("labels", part.y, self.classes), ("groups", part.b, self.groups)):
                if numbers.min() < 0 or numbers.max() >= len(names):
                    raise InputError(
                        f"{self.name}: {what} of {name} run from {numbers.min()} to {numbers.max()}; there are {len(names)} (0 to {len(names) - 1})"
                    )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of an image."""
        height, width, channels = self.train.x.shape[1:]
        return channels, height, width

    def alignment(self, part: Part) -> NDArray[np.bool_] | None:
        """Which rows go with their label, per attribute (A, N); None where groups are unknown."""
        if not self.attributes:
            return None
        return np.stack([attribute.of_group[part.b] == attribute.of_class[part.y] for attribute in self.attributes])

    def need_groups(self, method: str) -> None:
        """Raises InputError if the groups are unknown, which `method` cannot do without."""
        if not self.attributes:
            raise InputError(f"{method} needs bias groups and {self.name} has none; use voronoi, voronoi-ffw, jtt or lff")

    def need_balance(self, method: str) -> None:
        """Raises InputError if a class or a bias value has no image in the balanced part, which `method` learns on."""
        self.need_groups(method)
        for what, numbers, names in (
            ("class", self.balanced.y, self.classes),
            *((a.name, a.of_group[self.balanced.b], a.values) for a in self.attributes),
        ):
            if missing := set(range(len(names))) - set(numbers.tolist()):
                raise InputError(f"{method} learns on the balanced part of {self.name}, where {what} {names[min(missing)]!r} has no image")

    @property
    def aligned_pairs(self) -> dict[str, tuple[str, ...]]:
        """For each class the groups in which every attribute goes with it; empty where groups are unknown."""
        if not self.attributes:
            return {}
        goes = np.all([a.of_group[None, :] == a.of_class[:, None] for a in self.attributes], axis=0)
        return {name: tuple(self.groups[g] for g in np.flatnonzero(goes[c])) for c, name in enumerate(self.classes)}

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


def usual_groups(part: Part, classes: int, groups: int) -> NDArray[np.int64]:
    """The group that goes with each class (C,): the one that is most over-represented in it, P(group | class) / P(group)."""
    joint = np.zeros((classes, groups))
    np.add.at(joint, (part.y, part.b), 1)
    share = joint / np.maximum(joint.sum(1, keepdims=True), 1)
    overall = joint.sum(0) / max(joint.sum(), 1)
    return np.argmax(np.divide(share, overall, out=np.zeros_like(share), where=overall > 0), axis=1)


def own_groups(train: Part, classes: int, groups: tuple[str, ...], name: str = "group") -> tuple[Attribute, ...]:
    """The attribute of groups that came with the data: each class goes with its usual group. None for a single group."""
    if len(groups) < 2:
        return ()
    return (Attribute(name, groups, np.arange(len(groups)), usual_groups(train, classes, len(groups))),)
