"""Checkpoints: one file of safetensors whose header carries the rest as JSON. No pickle, so loading runs nothing.

A checkpoint is written whole or not at all, the one before it is kept beside it, and a SHA-256 over everything tells a
damaged one.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edge_shared.errors import InputError
from edge_shared.files import write_bytes

FORMAT = "edgewise-checkpoint-1"


def previous(path: str | Path) -> Path:
    """Where the checkpoint before this one is kept."""
    path = Path(path)
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def save_checkpoint(path: str | Path, state: dict[Any, Any]) -> None:
    """Write `state` atomically; an earlier checkpoint becomes ``NAME.previous.SUFFIX``.

    Args:
        path: the file, such as ``checkpoint.safetensors``.
        state: nested dicts, lists and tuples of tensors, numpy arrays, numbers, strings, bytes and None.

    Raises:
        InputError: if the folder cannot be written or the disk is full (the earlier checkpoint is kept).
        TypeError: if the state holds anything else.
    """
    import safetensors.torch

    path = Path(path)
    tensors: dict[str, torch.Tensor] = {}
    text = json.dumps(_encode(state, tensors), allow_nan=False, separators=(",", ":"))
    data = safetensors.torch.save(tensors, {"format": FORMAT, "state": text, "sha256": _digest(text, tensors)})
    if path.is_file():
        _keep(path)
    write_bytes(path, data)


def load_checkpoint(path: str | Path) -> dict[Any, Any]:
    """Read a checkpoint; tensors come back on the CPU.

    Raises:
        InputError: if it is absent, no checkpoint, truncated or altered; the message names the previous one if there is one.
    """
    import safetensors
    import safetensors.torch

    path = Path(path)
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}")
    before = previous(path)
    advice = f"the one before it is {before}" if before.is_file() else "begin the run anew"
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            head = file.metadata() or {}
        if head.get("format") != FORMAT:
            raise InputError(f"{path} is no checkpoint of this program (format {head.get('format')!r}, expected {FORMAT!r})")
        tensors = safetensors.torch.load(path.read_bytes())
        if _digest(head["state"], tensors) != head["sha256"]:
            raise InputError(f"checkpoint {path} was altered (its SHA-256 differs); {advice}")
        state = _decode(json.loads(head["state"]), tensors)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"cannot read checkpoint {path}: {error.strerror or error}") from error
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"checkpoint {path} is damaged ({' '.join(str(error).split())[:120]}); {advice}") from error
    if not isinstance(state, dict):
        raise InputError(f"checkpoint {path} is damaged (no state in it); {advice}")
    return state


def _keep(path: Path) -> None:
    """Give the file a second name without a moment in which it has none."""
    before = previous(path)
    link = before.with_name(f".{before.name}.{os.getpid()}.tmp")
    try:
        link.unlink(missing_ok=True)
        try:
            os.link(path, link)
        except OSError:  # a file system without hard links
            shutil.copyfile(path, link)
        link.replace(before)
    except OSError as error:
        link.unlink(missing_ok=True)
        raise InputError(f"cannot write {before}: {error.strerror or error}") from error


def _digest(text: str, tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()


def _encode(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        name = f"t{len(tensors)}"
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, np.ndarray):
        return {"array": _encode(torch.from_numpy(np.ascontiguousarray(value)), tensors)["tensor"]}
    if isinstance(value, np.generic):
        return _encode(value.item(), tensors)
    if isinstance(value, dict):
        return {"dict": [[_encode(key, tensors), _encode(item, tensors)] for key, item in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [_encode(item, tensors) for item in value]}
    if isinstance(value, list):
        return [_encode(item, tensors) for item in value]
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a checkpoint cannot hold a {type(value).__name__}")


def _decode(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "array":
        return tensors[content].numpy()
    if kind == "dict":
        return {_decode(key, tensors): _decode(item, tensors) for key, item in content}
    if kind == "tuple":
        return tuple(_decode(item, tensors) for item in content)
    if kind == "bytes":
        return bytes.fromhex(content)
    if kind == "float":
        return float(content)
    raise ValueError(f"unknown entry {kind!r}")
