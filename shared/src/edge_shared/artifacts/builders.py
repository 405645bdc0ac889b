"""Architectures by name and arguments, for modules whose code cannot be written down as a graph."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from edge_shared.errors import InputError, require

LARGEST = 32768  # of any whole number among the arguments
_TORCHVISION = frozenset(
    {"num_classes", "width_mult", "dropout", "image_size", "stochastic_depth_prob", "attention_dropout", "init_weights"}
)
_TIMM = frozenset(
    {
        "num_classes",
        "in_chans",
        "img_size",
        "patch_size",
        "embed_dim",
        "depth",
        "num_heads",
        "mlp_ratio",
        "drop_rate",
        "drop_path_rate",
        "global_pool",
    }
)
_registered: dict[str, Callable[..., nn.Module]] = {}


def register_builder(name: str, build: Callable[..., nn.Module]) -> None:
    """Let recipes name an architecture of your own: ``{"library": NAME, "arguments": {...}}``.

    The function must take plain values only and do nothing but make the module. Register it when your package is imported.

    Args:
        name: such as ``edge_ids.graphids``.
        build: makes the module of keyword arguments.
    """
    _registered[name] = build


def build(builder: Any) -> nn.Module:
    """Make the module that a recipe's builder entry names.

    Args:
        builder: ``{"library": "torchvision"|"timm", "name": ..., "arguments": {...}}`` or a registered library without name.

    Raises:
        InputError: an unknown library, name or argument; weights are never fetched.
    """
    if not isinstance(builder, dict) or not isinstance(arguments := builder.get("arguments", {}), dict):
        raise InputError("a builder is an object with library, name and arguments")
    library, name = builder.get("library"), builder.get("name")
    _plain(arguments, 0)
    if library == "torchvision":
        require("torchvision", "edge-shared[torch]")
        from torchvision import models

        if not isinstance(name, str) or name not in models.list_models(models):
            raise InputError(f"torchvision has no classifier named {name!r}")
        _only(arguments, _TORCHVISION, f"torchvision {name}")
        return _call(lambda: models.get_model(name, weights=None, **_without_defaults(name, arguments)), f"torchvision {name}")
    if library == "timm":
        require("timm", "edge-shared[torch]")
        import timm

        if not isinstance(name, str) or name not in timm.list_models():
            raise InputError(f"timm has no model named {name!r}")
        _only(arguments, _TIMM, f"timm {name}")
        return _call(lambda: timm.create_model(name, pretrained=False, **arguments), f"timm {name}")
    if library in _registered:
        function = _registered[library]
        _only(arguments, frozenset(inspect.signature(function).parameters), library)
        return _call(lambda: function(**arguments), library)
    known = ", ".join(["torchvision", "timm", *sorted(_registered)])
    raise InputError(f"a recipe names the library {library!r}; known: {known} (a package's own are known once it is imported)")


def _without_defaults(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    # GoogLeNet and Inception warn unless init_weights is given; the weights are replaced anyway.
    return {"init_weights": False, **arguments} if name in ("googlenet", "inception_v3") else arguments


def _call(make: Callable[[], nn.Module], what: str) -> nn.Module:
    try:
        return make()
    except (TypeError, ValueError, RuntimeError, AssertionError, KeyError, IndexError, ZeroDivisionError) as error:
        raise InputError(f"the recipe's arguments do not make a {what}: {' '.join(str(error).split())[:160]}") from error


def _only(arguments: dict[str, Any], allowed: frozenset[str], what: str) -> None:
    if unknown := sorted(set(arguments) - allowed):
        raise InputError(f"a recipe gives {what} the argument {unknown[0]!r}; allowed: {', '.join(sorted(allowed))}")


def _plain(value: Any, depth: int) -> None:
    if depth > 8:
        raise InputError("a builder's arguments are nested too deeply")
    if isinstance(value, dict):
        for key, item in value.items():
            _plain(key, depth + 1)
            _plain(item, depth + 1)
    elif isinstance(value, list):
        if len(value) > 4096:
            raise InputError("a builder's argument has more than 4096 entries")
        for item in value:
            _plain(item, depth + 1)
    elif isinstance(value, int) and abs(value) > LARGEST:
        raise InputError(f"a builder's argument is {value}; the largest allowed is {LARGEST}")
    elif value is not None and not isinstance(value, bool | int | float | str):
        raise InputError(f"a builder's argument is a {type(value).__name__}; allowed are numbers, strings, lists and objects")
