"""What every stage works on: images in parts, the light of each, the new domain, and one normalisation for all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from edge_shared.data.vision import ImageSet
from edge_shared.files import atomic_path, read_json, write_json
from numpy.typing import NDArray

if TYPE_CHECKING:
    from fairnet.data import BiasedSet

FILE = "images.npz"


@dataclass(frozen=True)
class FixedSet(ImageSet):
    """An image set under the statistics that the network was trained with, whatever its own are."""

    statistics: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())

    @property
    def mean(self) -> tuple[float, ...]:  # type: ignore[override]
        """Mean of each channel, in [0, 1], as the network takes it."""
        return self.statistics[0]

    @property
    def std(self) -> tuple[float, ...]:  # type: ignore[override]
        """Standard deviation of each channel, in [0, 1], as the network takes it."""
        return self.statistics[1]


@dataclass(frozen=True)
class Material:
    """Images of a run.

    Attributes:
        images: train and val as they came (the planted light included), test without a shortcut.
        personal: the new domain; its training part is what the device sees.
        balanced_x, balanced_y: a small part in which light and class are independent; only masks are learned on it.
        lights: group of each image of train, val, balanced and test; all 0 where nothing is planted.
        planted: whether lights were planted.
        path: the .npz file; its train, val and test parts load as a data set by path.
    """

    images: FixedSet
    personal: FixedSet
    balanced_x: NDArray[np.uint8]
    balanced_y: NDArray[np.int64]
    lights: dict[str, NDArray[np.int64]]
    planted: bool
    path: Path

    def biased(self) -> BiasedSet:
        """The form that fairnet takes; the surgery may learn from every labelled image but val and test."""
        from fairnet.data.parts import Attribute, BiasedSet, Part

        images, count = self.images, len(self.images.classes)
        values = tuple(f"light {number}" for number in range(count)) if self.planted else ("all",)
        one = np.arange(count)
        return BiasedSet(
            name=images.name,
            classes=images.classes,
            groups=values,
            train=Part(images.train_x, images.train_y, self.lights["train"]),
            val=Part(images.val_x, images.val_y, self.lights["val"]),
            balanced=Part(self.balanced_x, self.balanced_y, self.lights["balanced"]),
            test=Part(images.test_x, images.test_y, self.lights["test"]),
            synthetic=images.synthetic,
            mean=images.mean,
            std=images.std,
            attributes=(Attribute("light", values, one, one),) if self.planted else (),
        )


def save(folder: Path, material: Material) -> None:
    """Write the arrays and what belongs to them."""
    images, personal = material.images, material.personal
    arrays = {f"{kind}_{part}": getattr(images, f"{part}_{kind}") for part in ("train", "val", "test") for kind in "xy"}
    arrays |= {f"personal_{kind}_{part}": getattr(personal, f"{part}_{kind}") for part in ("train", "val", "test") for kind in "xy"}
    arrays |= {f"lights_{part}": groups for part, groups in material.lights.items()}
    arrays |= {"x_balanced": material.balanced_x, "y_balanced": material.balanced_y, "classes": np.array(images.classes)}
    with atomic_path(folder / FILE) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)
    about = {
        name: {"name": one.name, "fingerprint": one.fingerprint, "synthetic": one.synthetic, "statistics": one.statistics}
        for name, one in (("images", images), ("personal", personal))
    }
    write_json(folder / "images.json", about | {"planted": material.planted, "classes": images.classes})


def load(folder: Path) -> Material:
    """Read what `save` wrote."""
    about = read_json(folder / "images.json")
    with np.load(folder / FILE, allow_pickle=False) as arrays:

        def a_set(name: str, prefix: str) -> FixedSet:
            mean, std = (tuple(values) for values in about[name]["statistics"])
            parts = {f"{part}_{kind}": arrays[f"{prefix}{kind}_{part}"] for part in ("train", "val", "test") for kind in "xy"}
            return FixedSet(
                name=about[name]["name"], classes=tuple(about["classes"]), fingerprint=about[name]["fingerprint"],
                synthetic=about[name]["synthetic"], statistics=(mean, std), **parts,
            )  # fmt: skip

        return Material(
            a_set("images", ""),
            a_set("personal", "personal_"),
            arrays["x_balanced"],
            arrays["y_balanced"],
            {part: arrays[f"lights_{part}"] for part in ("train", "val", "balanced", "test")},
            about["planted"],
            folder / FILE,
        )
