"""A model in a folder: ``model.safetensors`` + ``recipe.json``, and ``model.onnx`` that was held against it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edge_shared.artifacts.evaluation import on_cpu_in_eval, one_output
from edge_shared.artifacts.onnx import export_onnx
from edge_shared.artifacts.recipe import from_recipe, to_recipe
from edge_shared.errors import CheckFailed, InputError
from edge_shared.files import plain, read_json, write_bytes, write_json

WEIGHTS, RECIPE, ONNX = "model.safetensors", "recipe.json", "model.onnx"


@dataclass(frozen=True)
class Artifact:
    """What a model folder holds.

    Attributes:
        model: the module, in evaluation mode.
        classes: names of the outputs.
        normalisation: ``{"mean": [...], "std": [...]}`` of the inputs, or what the saver put there.
        input_shape: of one input, batch first, as it was saved.
    """

    model: nn.Module
    classes: tuple[str, ...]
    normalisation: dict[str, Any]
    input_shape: tuple[int, ...]


def save_model(
    folder: str | Path,
    model: nn.Module,
    example: torch.Tensor,
    *,
    classes: Sequence[str] = (),
    normalisation: dict[str, Any] | None = None,
    onnx: bool = True,
    builder: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Save `model` so that `load_model` rebuilds it; what was saved is loaded again and must give the same bits.

    Args:
        folder: made if absent.
        model: any module that torch.fx can trace, or any at all with a `builder`.
        example: an input, batch first.
        classes: names of the outputs.
        normalisation: how inputs are prepared, such as mean and std.
        onnx: also write and verify ``model.onnx``.
        builder: see `to_recipe`.

    Returns:
        ``files`` (names), ``bytes`` of the weights, ``sha256`` of the weights, ``onnx_max_abs_error`` (None without ONNX).

    Raises:
        InputError: if the model cannot be written down, or the folder not be written.
        CheckFailed: if the model that was saved gives other outputs.
    """
    import safetensors.torch

    folder = Path(folder)
    recipe = to_recipe(model, builder)
    state = model.state_dict()
    weights = {name: state[name].detach().cpu().contiguous().clone() for name in recipe["tensors"]}
    content = safetensors.torch.save(weights)
    digest = hashlib.sha256(content).hexdigest()
    recipe |= {
        "sha256": digest,
        "classes": list(classes),
        "normalisation": plain(normalisation or {}),
        "input_shape": [1, *example.shape[1:]],
    }
    _same_outputs(model, from_recipe(recipe, weights), example)
    write_bytes(folder / WEIGHTS, content)
    write_json(folder / RECIPE, recipe)
    error = export_onnx(model, example, folder / ONNX) if onnx else None
    files = [WEIGHTS, RECIPE, *([ONNX] if onnx else [])]
    return {"files": files, "bytes": len(content), "sha256": digest, "onnx_max_abs_error": error}


def load_model(folder: str | Path) -> nn.Module:
    """Rebuild the model of a folder that `save_model` wrote, in evaluation mode; see `load_artifact`."""
    return load_artifact(folder).model


def load_artifact(folder: str | Path) -> Artifact:
    """Rebuild the model of a folder, with its classes and normalisation.

    Raises:
        InputError: no such folder, weights that were truncated or altered, a recipe that names anything unknown.
    """
    folder = Path(folder)
    if not (folder / RECIPE).is_file():
        raise InputError(f"{folder} is no model folder (it has no {RECIPE})")
    recipe = read_json(folder / RECIPE, "recipe")
    try:
        content = (folder / WEIGHTS).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read weights {folder / WEIGHTS}: {error.strerror or error}") from error
    if not isinstance(recipe, dict) or hashlib.sha256(content).hexdigest() != recipe.get("sha256"):
        raise InputError(f"{folder / WEIGHTS} is not the file that {RECIPE} belongs to (its SHA-256 differs); copy both again")
    weights = _parse(content, folder / WEIGHTS)
    try:
        model = from_recipe(recipe, weights)
        classes = tuple(str(name) for name in recipe["classes"])
        shape = tuple(int(side) for side in recipe["input_shape"])
        return Artifact(model, classes, dict(recipe["normalisation"]), shape)
    except InputError as error:
        raise InputError(f"{folder / RECIPE}: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{folder / RECIPE}: the recipe is broken ({type(error).__name__} {error})") from error


def load_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """Read a state dict: safetensors, or a torch file opened with ``weights_only`` (no code runs).

    A dict under ``state_dict`` or ``model`` is unwrapped, and the prefix ``module.`` of data-parallel training removed.

    Raises:
        InputError: no such file, or nothing but tensors would be right.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            return _parse(path.read_bytes(), path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"cannot read weights {path}: {error.strerror or error}") from error
    except InputError:
        raise
    except Exception as error:  # torch.load raises many kinds on broken files, and pages of advice on pickled models
        raise InputError(
            f"{path} is no file of weights: tensors alone are read, as torch.save(model.state_dict(), FILE) writes them"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not state or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise InputError(f"{path} holds no state dict (names with tensors)")
    return {str(name).removeprefix("module."): tensor for name, tensor in state.items()}


def _parse(content: bytes, path: Path) -> dict[str, torch.Tensor]:
    import safetensors
    import safetensors.torch

    try:
        return safetensors.torch.load(content)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise InputError(f"{path} is no safetensors file: {' '.join(str(error).split())[:160]}") from error


def _same_outputs(model: nn.Module, rebuilt: nn.Module, example: torch.Tensor) -> None:
    with on_cpu_in_eval(model):
        expected = one_output(model, example.detach().cpu())
        got = one_output(rebuilt, example.detach().cpu())
    if not torch.isfinite(expected).all():
        raise InputError(f"the {type(model).__name__} gives values that are not finite; it is not worth saving")
    if not torch.equal(expected, got):
        error = float((expected - got).abs().max()) if expected.shape == got.shape else float("nan")
        raise CheckFailed(f"the saved {type(model).__name__} gives other outputs than the model itself (difference {error:.3g})")
