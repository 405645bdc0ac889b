"""Image sets as plain uint8 arrays, split so that no image lies on two sides."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from edge_shared.data.sources import NAMES, ArraySource, Source, at_path, named
from edge_shared.data.splits import by_content, subset
from edge_shared.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch.utils.data import DataLoader

Part = Literal["train", "val", "test"]
PARTS: tuple[Part, ...] = ("train", "val", "test")
_Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]
FRACTIONS = (0.65, 0.15, 0.2)  # train, val, test of a set that its publisher did not split
VAL_FRACTION = 0.1  # of train, where only test is given


@dataclass(frozen=True)
class ImageSet:
    """Images of one size in three parts.

    Attributes:
        name: as it was asked for.
        train_x, val_x, test_x: uint8 (n, h, w, c), c is 1 or 3.
        train_y, val_y, test_y: int64 (n,), numbers of `classes`.
        classes: names.
        fingerprint: SHA-256 over all pixels, labels and parts.
        synthetic: whether the images were made up.
        duplicates_dropped: images taken out of train (or val) because an equal one is in a later part.
    """

    name: str
    train_x: NDArray[np.uint8]
    train_y: NDArray[np.int64]
    val_x: NDArray[np.uint8]
    val_y: NDArray[np.int64]
    test_x: NDArray[np.uint8]
    test_y: NDArray[np.int64]
    classes: tuple[str, ...]
    fingerprint: str
    synthetic: bool = False
    duplicates_dropped: int = 0

    @property
    def channels(self) -> int:
        """1 or 3."""
        return self.train_x.shape[3]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width), what a model sees."""
        return self.train_x.shape[3], self.train_x.shape[1], self.train_x.shape[2]

    def arrays(self, split: Part) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """The images and labels of a part.

        Raises:
            InputError: if there is no such part.
        """
        if split not in PARTS:
            raise InputError(f"no part {split!r}; the parts are train, val, test")
        return getattr(self, f"{split}_x"), getattr(self, f"{split}_y")

    @cached_property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel of train, in [0, 1]."""
        return tuple((self._sums[0] / 255).tolist())

    @cached_property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel of train, in [0, 1]; 1 for a channel that never changes."""
        std = self._sums[1] / 255
        return tuple(np.where(std > 1e-6, std, 1.0).tolist())

    @cached_property
    def _sums(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        # From counts of the 256 values, exact and without a float copy of the images.
        counts = np.stack([np.bincount(self.train_x[..., channel].reshape(-1), minlength=256) for channel in range(self.channels)])
        values, total = np.arange(256.0), counts.sum(1)
        mean = counts @ values / total
        return mean, np.sqrt(np.maximum(counts @ values**2 / total - mean**2, 0))

    def loader(
        self, split: Part, batch_size: int = 128, shuffle: bool = False, seed: int = 0
    ) -> DataLoader[tuple[torch.Tensor, torch.Tensor]]:
        """Batches of a part: float32 (b, c, h, w) normalised by mean and std of train, and int64 (b,).

        Args:
            split: train, val or test.
            batch_size: images per batch.
            shuffle: a new order each epoch, fixed by `seed`.
            seed: of the order.
        """
        from edge_shared.data.loader import image_loader

        images, labels = self.arrays(split)
        return image_loader(images, labels, self.mean, self.std, batch_size=batch_size, shuffle=shuffle, seed=seed)


def names() -> list[str]:
    """The data sets known by name."""
    return list(NAMES)


def load_images(name_or_path: str | Path, *, size: int | None = None, limit: int | None = None, seed: int = 0) -> ImageSet:
    """Load an image set by name or path, in three parts without a leak.

    A publisher's test part stays the test part; without a validation part a tenth of train becomes it, without any
    parts all is split 65/15/20. Cuts are stratified and follow content, so equal images never lie on two sides; where the
    publisher put them there, they are dropped from the earlier part.

    Args:
        name_or_path: a name (`names()`), an .npz (``x_train, y_train, x_test, y_test``, or ``jpeg, offsets, labels`` with
            ``*_train.npz`` beside ``*_test.npz``), a folder of IDX files, or a folder with one subfolder per class, itself or
            in ``train``, ``val``, ``test``.
        size: side of the square images in pixels; the data's own by default, 128 where files differ in size.
        limit: at most this many images of each part, stratified.
        seed: of the split and the limit.

    Raises:
        InputError: unknown name, no such path, broken files, a download that fails.
    """
    text = str(name_or_path)
    if size is not None and not 1 <= size <= 4096:
        raise InputError(f"image size is {size}; it is 1 to 4096 pixels")
    if limit is not None and limit < 1:
        raise InputError(f"limit is {limit}; it is at least 1 image of each part")
    if text in NAMES:
        sources = named(text)
    else:
        path = Path(text).expanduser()
        if not text or not path.exists():
            raise InputError(f"no data set named {text!r} and no such path; names: {', '.join(NAMES)}")
        sources = at_path(path)
    parts, dropped = _parts(sources.train, sources.val, sources.test, seed)
    arrays: list[_Arrays] = []
    for part, (source, rows) in zip(PARTS, parts, strict=True):
        if not len(rows):
            raise InputError(f"{text}: the {part} part has no images; there are too few to split without a leak")
        if limit is not None:
            rows = rows[subset(source.labels[rows], limit, seed)]
        arrays.append((source.read(rows, size), source.labels[rows]))
        if arrays[-1][0].shape[1:] != arrays[0][0].shape[1:]:
            raise InputError(f"{text}: {part} images are {arrays[-1][0].shape[1:]}, train images {arrays[0][0].shape[1:]}; give a size")
    return _image_set(text, arrays, sources.classes, dropped)


def from_arrays(
    name: str, x: NDArray[np.uint8], y: NDArray[np.int64], classes: Sequence[str], *, seed: int = 0, synthetic: bool = False
) -> ImageSet:
    """Make an image set of arrays of your own: split 65/15/20, stratified, equal images together.

    Args:
        name: what reports call it.
        x: images, uint8 (n, h, w) or (n, h, w, c).
        y: labels (n,).
        classes: names of the labels.
        seed: of the split.
        synthetic: whether the images are made up; reports say so.
    """
    source = ArraySource(np.asarray(x), np.asarray(y, dtype=np.int64))
    parts, dropped = _parts(source, None, None, seed)
    return _image_set(name, [(one.read(rows, None), one.labels[rows]) for one, rows in parts], tuple(classes), dropped, synthetic)


def _image_set(name: str, parts: list[_Arrays], classes: tuple[str, ...], dropped: int, synthetic: bool = False) -> ImageSet:
    digest = hashlib.sha256()
    for part, (images, labels) in zip(PARTS, parts, strict=True):
        digest.update(f"{part} {images.shape} ".encode() + images.tobytes() + labels.tobytes())
    (train_x, train_y), (val_x, val_y), (test_x, test_y) = parts
    return ImageSet(name, train_x, train_y, val_x, val_y, test_x, test_y, classes, digest.hexdigest(), synthetic, dropped)


def _parts(train: Source, val: Source | None, test: Source | None, seed: int) -> tuple[list[tuple[Source, NDArray[np.int64]]], int]:
    """The rows of train, val and test, and how many duplicates were dropped."""
    keys = train.keys()
    if test is None and val is None:
        split = by_content(keys, train.labels, FRACTIONS, seed)
        return [(train, rows) for rows in split.parts], 0
    if test is None:  # the only part held out by its publisher is for the final figure; choices are made on a part of train
        val, test = None, val
    assert test is not None
    held = set(test.keys())
    total, val_rows = len(keys), np.arange(0)
    if val is not None:
        val_keys = val.keys()
        val_rows = _without(val_keys, held)
        held.update(val_keys)
        total += len(val_keys)
    rows = _without(keys, held)
    dropped = total - len(rows) - len(val_rows)
    test_part = (test, np.arange(len(test.labels)))
    if val is not None:
        return [(train, rows), (val, val_rows), test_part], dropped
    split = by_content([keys[row] for row in rows], train.labels[rows], (1 - VAL_FRACTION, VAL_FRACTION, 0.0), seed)
    return [(train, rows[split.train]), (train, rows[split.val]), test_part], dropped


def _without(keys: list[bytes], held: set[bytes]) -> NDArray[np.int64]:
    return np.flatnonzero([key not in held for key in keys])
