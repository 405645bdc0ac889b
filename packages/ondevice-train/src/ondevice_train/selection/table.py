"""The methods by name."""

from __future__ import annotations

from importlib import import_module

from edge_shared.errors import InputError

from ondevice_train.selection.selector import Selector

_CLASSES = {
    "sparse-update": "sparse_update:SparseUpdate",
    "trady": "trady:TraDy",
    "medyate": "medyate:MeDyate",
    "full-random": "full_random:FullRandom",
    "det-rgn": "det_rgn:DetRGN",
    "velocity": "velocity:Velocity",
    "neq": "neq:NEq",
    "scotti": "scotti:SCoTTi",
    "last-k": "last_k:LastK",
    "bias-only": "bias_only:BiasOnly",
    "head-only": "bias_only:BiasOnly",
}
NAMES = tuple(_CLASSES)


def selector_class(name: str) -> type[Selector]:
    """The class of a method.

    Raises:
        InputError: for an unknown name.
    """
    if name not in _CLASSES:
        raise InputError(f"unknown selection method {name!r}; known: {', '.join(NAMES)}")
    module, attribute = _CLASSES[name].split(":")
    return getattr(import_module(f"ondevice_train.selection.{module}"), attribute)
