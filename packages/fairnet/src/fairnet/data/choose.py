"""Which data a command works on: a published layout, a table of one's own, or an image set with a planted shortcut."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from edge_shared.errors import InputError

from fairnet.data.parts import BiasedSet

PLANTS = {
    "colour": ("biased", "biased_images"),
    "two-colours": ("two_colours", "two_colour_images"),
    "spuco": ("spuco", "spuco_images"),
    "corruption": ("corrupted", "corrupted_images"),
}
"""Generators: module and function."""

LAYOUTS = {
    "csv": ("table", "read_image_table"),
    "waterbirds": ("waterbirds", "read_waterbirds"),
    "celeba": ("celeba", "read_celeba"),
    "bar": ("bar", "read_bar"),
    "bffhq": ("bffhq", "read_bffhq"),
    "imagenet9": ("imagenet9", "read_imagenet9"),
}
"""Readers: module and function; all take (path, size=...)."""


def load(
    data: str,
    *,
    layout: str | None = None,
    plant: str = "colour",
    rho: float = 0.97,
    images: int = 6000,
    balanced: int = 1000,
    size: int | None = None,
    seed: int = 0,
) -> BiasedSet:
    """Data by name or path.

    Args:
        data: a CSV or a folder in a published layout, or an image set (name or path) to plant a shortcut in.
        layout: how `data` is laid out; a file that ends in .csv is a table without being told.
        plant: which shortcut is planted, unless there is a layout.
        rho: share of training images that follow the planted shortcut.
        images, balanced: sizes of the training and the balanced part of a planted set.
        size: pixels a side; the set's own, 64 for a layout.
        seed: of a planted set.

    Raises:
        InputError: an unknown layout or plant, or what the reader or generator says.
    """
    if layout is None and Path(data).suffix == ".csv":
        layout = "csv"
    if layout is not None:
        return _find(LAYOUTS, layout, "layout")(data, size=size or 64)
    return _find(PLANTS, plant, "plant")(
        data, rho=rho, train=images, val=min(max(images // 6, 1), 1000), balanced=balanced, seed=seed, size=size
    )


def _find(table: dict[str, tuple[str, str]], name: str, option: str) -> Callable[..., BiasedSet]:
    if name not in table:
        raise InputError(f"--{option} {name!r} is unknown; use {', '.join(table)}")
    module, function = table[name]
    found: Callable[..., BiasedSet] = getattr(import_module(f"fairnet.data.{module}"), function)
    return found
