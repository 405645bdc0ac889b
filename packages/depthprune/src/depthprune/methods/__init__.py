"""The methods, one file each; `make` finds them by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edge_shared.errors import InputError

from depthprune.methods.affine import Affine
from depthprune.methods.easier import Easier
from depthprune.methods.egp import Egp
from depthprune.methods.layer_folding import LayerFolding
from depthprune.methods.nepenthe import Nepenthe
from depthprune.methods.protocol import DepthMethod, Method, State
from depthprune.methods.tlc import Tlc

METHODS: dict[str, Callable[..., DepthMethod]] = {
    "affine": Affine,
    "easier": Easier,
    "egp": Egp,
    "layer-folding": LayerFolding,
    "nepenthe": Nepenthe,
    "tlc": Tlc,
}


def make(name: str, **options: Any) -> DepthMethod:
    """A method by its name, with its options.

    Raises:
        InputError: for an unknown name or option.
    """
    if name not in METHODS:
        raise InputError(f"unknown method {name!r}; choose one of {', '.join(METHODS)}")
    try:
        return METHODS[name](**options)
    except TypeError as error:
        raise InputError(f"method {name}: {error}") from error


__all__ = ["METHODS", "Affine", "DepthMethod", "Easier", "Egp", "LayerFolding", "Method", "Nepenthe", "State", "Tlc", "make"]
