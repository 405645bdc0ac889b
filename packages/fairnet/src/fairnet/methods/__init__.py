"""One file per method; each has ``run(data, settings, folder) -> Outcome``. `METHODS` is their table of contents."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from edge_shared.errors import InputError

if TYPE_CHECKING:
    from fairnet.data.parts import BiasedSet
    from fairnet.methods._train import Outcome, Settings

METHODS = {
    "vanilla": "nothing is known, nothing is done",
    "voronoi": "finds the shortcut itself; trains a new network",
    "ffw": "knows the groups of a small balanced set; cuts the biased network, no weight changes",
    "voronoi-ffw": "finds the shortcut itself; cuts the biased network, no weight changes",
    "jtt": "no labels; trains twice",
    "lff": "no labels; trains two networks",
    "dfr": "knows a small balanced set; refits the last layer",
    "reweight": "knows the group of every training image",
    "groupdro": "knows the group of every training image",
}
_FILES = {"voronoi-ffw": "voronoi_ffw", "groupdro": "group_dro"}


def method(name: str) -> Callable[[BiasedSet, Settings, Path | None], Outcome]:
    """The `run` of a method by name.

    Raises:
        InputError: for an unknown name.
    """
    if name not in METHODS:
        raise InputError(f"unknown method {name!r}; known: {', '.join(METHODS)}")
    run: Callable[[BiasedSet, Settings, Path | None], Outcome] = import_module(f"fairnet.methods.{_FILES.get(name, name)}").run
    return run
