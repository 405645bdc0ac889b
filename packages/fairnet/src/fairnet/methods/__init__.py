"""One file per method; each has ``run(data, settings, folder) -> Outcome``, masks also a config. `METHODS` is their table of contents."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from edge_shared.errors import InputError

if TYPE_CHECKING:
    from fairnet.data.parts import BiasedSet
    from fairnet.gates import Granularity
    from fairnet.methods._train import Outcome, Settings

METHODS = {
    "vanilla": "nothing is known, nothing is done",
    "voronoi": "finds the shortcut itself; trains a new network",
    "ffw": "knows the groups of a small balanced set; cuts the biased network, no weight changes",
    "voronoi-ffw": "finds the shortcut itself; cuts the biased network, no weight changes",
    "bise": "knows the group of every training image; cuts the biased network, no weight changes",
    "jtt": "no labels; trains twice",
    "lff": "no labels; trains two networks",
    "dfr": "knows a small balanced set; refits the last layer",
    "reweight": "knows the group of every training image",
    "groupdro": "knows the group of every training image",
    "random-mask": "control of ffw: the best of 20 random masks of its sparsity",
    "magnitude-mask": "control of ffw: cuts the smallest weights, as many",
}
_FILES = {"groupdro": "group_dro"}


MASKS = ("ffw", "voronoi-ffw", "bise", "random-mask", "magnitude-mask")
"""Methods that cut the biased network."""
SEARCHES = ("voronoi", "voronoi-ffw")
"""Methods that look for the shortcut themselves, and do nothing where they find none."""


def apply(
    name: str,
    data: BiasedSet,
    settings: Settings,
    folder: Path | None = None,
    *,
    granularity: Granularity | None = None,
    gamma: float = 1.0,
    min_depth: float | None = None,
) -> Outcome:
    """Run a method.

    Args:
        name: one of `METHODS`.
        data: what it learns on.
        settings: network, recipe and seed.
        folder: where trainings are kept, to go on with and to share between methods that start from the same network.
        granularity: of masks: ``channels`` for the networks small and mlp, ``weights`` for others, unless told.
        gamma: of masks, weight of the mutual information.
        min_depth: of the search for a shortcut without labels, see `VoronoiConfig`.

    Raises:
        InputError: for an unknown name, or groups that the method needs and the data lack.
    """
    run = method(name)
    if name not in MASKS and name != "voronoi":
        return run(data, settings, folder)
    from fairnet.methods.voronoi import VoronoiConfig

    search = VoronoiConfig(min_depth=min_depth)
    if name == "voronoi":
        return run(data, settings, folder, search)
    granularity = granularity or ("channels" if settings.model in ("small", "mlp") else "weights")
    from fairnet.methods.bise import BiseConfig
    from fairnet.methods.ffw import FfwConfig

    kind = BiseConfig if name == "bise" else FfwConfig
    masks = kind(granularity=granularity, gamma=gamma)
    return run(data, settings, folder, masks, search) if name == "voronoi-ffw" else run(data, settings, folder, masks)


def method(name: str) -> Callable[..., Outcome]:
    """The `run` of a method by name.

    Raises:
        InputError: for an unknown name.
    """
    if name not in METHODS:
        raise InputError(f"unknown method {name!r}; known: {', '.join(METHODS)}")
    run: Callable[..., Outcome] = import_module(f"fairnet.methods.{_FILES.get(name, name.replace('-', '_'))}").run
    return run
