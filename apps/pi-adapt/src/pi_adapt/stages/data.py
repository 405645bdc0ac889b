"""Stage 1: the images. Loads them, plants the light, sets aside what later stages need, and makes the new domain."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from edge_shared.data.splits import stratified
from edge_shared.data.vision import ImageSet, load_images
from edge_shared.errors import InputError
from fairnet.data.biased import assign_groups
from fairnet.data.parts import statistics
from numpy.typing import NDArray

from pi_adapt import material
from pi_adapt.config import AdaptConfig
from pi_adapt.light import under_light
from pi_adapt.material import FixedSet, Material

Images = NDArray[np.uint8]


def run(config: AdaptConfig, folders: dict[str, Path], say: Callable[[str], None]) -> dict[str, Any]:
    """Write `images.npz`.

    Raises:
        InputError: data that cannot be loaded, or that the given model cannot take.
    """
    channels, size, own = _model_takes(config)
    raw = load_images(config.data, size=size, limit=config.limit, seed=config.seed)
    if channels is None:
        channels = 3 if config.planted or raw.channels == 3 or config.model is not None else 1
    classes = len(raw.classes)
    if classes < 2:
        raise InputError(f"--data {config.data} has one class only; a classifier needs two or more")
    random = np.random.default_rng(config.seed)
    split = stratified(raw.train_y, (0.8, 0.2, 0.0), config.seed)
    lights: dict[str, NDArray[np.int64]] = {}

    def lit(name: str, x: Images, y: NDArray[np.int64], rho: float) -> Images:
        x = with_channels(x, channels)
        if not config.planted:
            lights[name] = np.zeros(len(y), dtype=np.int64)
            return x
        lights[name] = assign_groups(y, classes, rho, random)
        return under_light(x, lights[name], classes)

    train_y, balanced_y = raw.train_y[split.train], raw.train_y[split.val]
    train_x = lit("train", raw.train_x[split.train], train_y, config.rho)
    val_x = lit("val", raw.val_x, raw.val_y, config.rho)
    balanced_x = lit("balanced", raw.train_x[split.val], balanced_y, 1 / classes)
    test_x = lit("test", raw.test_x, raw.test_y, 1 / classes)
    fixed = own or statistics(train_x)
    parts: dict[str, Any] = {
        "train_x": train_x,
        "train_y": train_y,
        "val_x": val_x,
        "val_y": raw.val_y,
        "test_x": test_x,
        "test_y": raw.test_y,
    }
    images = FixedSet(
        name=raw.name,
        classes=raw.classes,
        fingerprint=raw.fingerprint,
        synthetic=raw.synthetic or config.planted,
        statistics=fixed,
        **parts,
    )
    made = Material(
        images, _domain(config, images, raw, balanced_x, balanced_y, fixed), balanced_x, balanced_y, lights, config.planted, Path()
    )
    material.save(folders["data"], made)
    counts = {"train": len(train_y), "val": len(raw.val_y), "balanced": len(balanced_y), "test": len(raw.test_y)}
    say(
        f"{raw.name}: {counts['train']} training images {images.shape}, {classes} classes" + (", a light planted" if config.planted else "")
    )
    return {
        "shape": images.shape,
        "classes": raw.classes,
        "counts": counts,
        "fingerprint": raw.fingerprint,
        "synthetic": images.synthetic,
        "planted": config.planted,
        "personal_counts": {part: len(made.personal.arrays(part)[1]) for part in ("train", "val", "test")},  # type: ignore[arg-type]
    }


def with_channels(x_NHWC: Images, channels: int) -> Images:
    """Grey images in three equal channels, or the mean of three as one."""
    if x_NHWC.shape[-1] == channels:
        return x_NHWC
    if channels == 3:
        return x_NHWC.repeat(3, axis=3)
    return np.rint(x_NHWC.mean(-1, keepdims=True)).astype(np.uint8)


def shifted(kind: str, x_NHWC: Images) -> Images:
    """Images of the new domain: turned by a quarter, or as a negative."""
    return np.ascontiguousarray(np.rot90(x_NHWC, axes=(1, 2))) if kind == "rotated" else 255 - x_NHWC


def _domain(
    config: AdaptConfig, images: FixedSet, raw: ImageSet, balanced_x: Images, balanced_y: NDArray[np.int64], fixed: Any
) -> FixedSet:
    """The new domain. Made from images that no network was trained on; the test part stays the test part."""
    if Path(config.shift).exists():
        own = load_images(config.shift, size=images.shape[1], limit=config.limit, seed=config.seed)
        if own.classes != raw.classes:
            raise InputError(
                f"--shift {config.shift} has the classes {', '.join(own.classes)[:80]}; the data has {', '.join(raw.classes)[:80]}"
            )
        parts: dict[str, Any] = {
            f"{part}_x": with_channels(getattr(own, f"{part}_x"), images.channels) for part in ("train", "val", "test")
        }
        parts |= {f"{part}_y": getattr(own, f"{part}_y") for part in ("train", "val", "test")}
        return FixedSet(name=own.name, classes=raw.classes, fingerprint=own.fingerprint, synthetic=own.synthetic, statistics=fixed, **parts)
    return FixedSet(
        name=f"{raw.name}, {config.shift}", classes=raw.classes, fingerprint=raw.fingerprint, synthetic=True, statistics=fixed,
        train_x=shifted(config.shift, images.val_x), train_y=images.val_y, val_x=shifted(config.shift, balanced_x), val_y=balanced_y,
        test_x=shifted(config.shift, images.test_x), test_y=images.test_y,
    )  # fmt: skip


def _model_takes(config: AdaptConfig) -> tuple[int | None, int | None, tuple[tuple[float, ...], tuple[float, ...]] | None]:
    """Channels, size and statistics that a model folder was saved with; None where it is up to the data."""
    if config.model is None or not Path(config.model).is_dir():
        return None, config.image_size, None
    from edge_shared.artifacts import load_artifact

    artifact = load_artifact(config.model)
    if len(artifact.input_shape) != 4 or artifact.input_shape[2] != artifact.input_shape[3]:
        raise InputError(f"--model {config.model} takes inputs of shape {artifact.input_shape}; pi-adapt needs square images")
    channels = artifact.input_shape[1]
    mean, std = (tuple(artifact.normalisation.get(name, ())) for name in ("mean", "std"))
    statistics_ = (mean, std) if len(mean) == len(std) == channels else None
    return channels, config.image_size or artifact.input_shape[2], statistics_
