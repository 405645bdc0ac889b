"""Export a trained profile as C99: constant tables and the detector, no heap, no floating point, alerts equal to Python's."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from edge_shared.errors import InputError
from edge_shared.files import open_run, plain, write_json, write_text

from edge_ids.can import engine
from edge_ids.can.frames import Array
from edge_ids.can.profile import Profile

SOURCES = ("edge_ids.h", "edge_ids.c", "main.c")
_NAMES = {  # table in C: field of `engine.Model`
    "hash_key": "hash_key_H", "hash_slot": "hash_slot_H", "lengths": "lengths_K", "length_evidence": "length_evidence_K",
    "timing_evidence": "timing_evidence_KB", "median": "median_K", "pace": "pace_K", "lossy": "lossy_K", "backlog": "backlog_K", "grid": "grid_K", "grid_evidence": "grid_evidence_K",
    "silence": "silence_K", "ones": "ones_K", "zeros": "zeros_K",
    "byte_evidence": "byte_evidence_K", "jump_evidence": "jump_evidence_KJ", "step": "step_KB", "counter": "counter_KC3",
    "counter_evidence": "counter_evidence_KC", "frozen": "frozen_K", "stuck": "stuck_KB", "checksum": "checksum_K4",
    "checksum_evidence": "checksum_evidence_K", "cross": "cross_KCX", "cross_evidence": "cross_evidence_KC", "repeat": "repeat_K", "signal_mask": "signal_mask_K",
    "repeat_evidence": "repeat_evidence_K", "tiny": "tiny_MF", "tiny_bias": "tiny_bias_M", "tiny_out": "tiny_out_M",
    "tiny_meta": "tiny_meta", "threshold": "threshold_KD", "limits": "limits",
}  # fmt: skip
assert sorted(_NAMES.values()) == sorted(engine.Model._fields)
_WIDE = {
    "lengths": np.int64,
    "ones": np.uint64,
    "zeros": np.uint64,
    "signal_mask": np.uint64,
    "cross": np.int64,
    "hash_key": np.int64,
    "keys": np.int64,
}


def export_c99(profile: Profile, out: Path) -> dict[str, Any]:
    """Write the detector with this profile's tables as C99 sources.

    Args:
        profile: trained; of a single bus.
        out: folder to write: ``edge_ids.h``, ``edge_ids.c``, ``edge_ids_model.h``, ``main.c`` (frames from stdin), ``result.json``.

    Returns:
        What result.json holds: ``cost`` with ``table_bytes`` (flash) and ``state_bytes`` (RAM), ``artifacts``.

    Raises:
        InputError: if the profile tells several buses apart; export one per bus.
    """
    if len(profile.channels) > 1:
        raise InputError(
            f"the model tells {len(profile.channels)} buses apart ({', '.join(profile.channels)}); train and export one per bus"
        )
    K, R = len(profile.keys_K), max(profile.memories, 1)
    tables: dict[str, Array] = {"keys": profile.keys_K} | {name: getattr(profile.model, field) for name, field in _NAMES.items()}
    sizes = {"K": K, "H": len(profile.model.hash_key_H), "R": R, "M": len(profile.model.tiny_bias_M)}
    lines = [
        "/* Tables of a trained profile, written by `edge-ids can export`. */",
        f"/* profile {profile.version}, {profile.info.get('frames')} frames, synthetic: {str(profile.info.get('synthetic')).lower()} */",
        "#ifndef EDGE_IDS_MODEL_INCLUDED", "#define EDGE_IDS_MODEL_INCLUDED", "", "#include <stdint.h>", "",
        *[f"#define EDGE_IDS_{name} {value}" for name, value in sizes.items()], "",
        "#ifdef EDGE_IDS_TABLES",
    ]  # fmt: skip
    used = 0
    for name, values in tables.items():
        typed = _narrow(values, _WIDE.get(name))
        used += typed.nbytes
        shape = "".join(f"[{n}]" for n in typed.shape)
        lines.append(f"static const {typed.dtype.name}_t model_{name}{shape} = {_literal(typed)};")
    lines += ["#endif", "#endif", ""]
    run = open_run(out, None, {"profile": profile.version, "target": "c99"})
    write_text(run.path / "edge_ids_model.h", "\n".join(lines))
    for name in SOURCES:
        text = (files("edge_ids.can") / "c99" / name).read_text()
        if name == "edge_ids.c":
            text = text.replace('#include "edge_ids.h"', '#define EDGE_IDS_TABLES\n#include "edge_ids.h"', 1)
        write_text(run.path / name, text)
    state = sum(array.nbytes for array in engine.new_state(K, profile.memories)) - 8 * engine.FEATURES
    result = plain(
        {
            "command": "edge-ids can export",
            "target": "c99",
            "profile": profile.info | {"version": profile.version},
            "cost": {"table_bytes": used, "state_bytes": state, "tiny_network_weights": int(profile.model.tiny_MF.size + sizes["M"])},
            "artifacts": [*SOURCES, "edge_ids_model.h"],
            "compile": "cc -std=c99 -O2 -Wall -Wextra -Werror edge_ids.c main.c -o edge_ids",
        }
    )
    write_json(run.path / "result.json", result)
    run.commit()
    return result


def _narrow(values: Array, wanted: Any) -> Array:
    """The same numbers in the smallest integer type that holds them."""
    values = np.asarray(values, np.int64)
    if wanted is not None:
        return values.astype(wanted)
    low, high = int(values.min()), int(values.max())
    for kind in (np.int8, np.int16, np.int32):
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return values.astype(kind)
    return values


def _literal(values: Array) -> str:
    if values.ndim > 1:
        return "{" + ",\n".join(_literal(row) for row in values) + "}"
    return "{" + ", ".join(_number(int(value), values.dtype == np.uint64) for value in values) + "}"


def _number(value: int, unsigned: bool) -> str:
    if unsigned:
        return f"UINT64_C({value})"
    if value == -(1 << 63):
        return "INT64_MIN"
    return f"INT64_C({value})" if abs(value) > 0x7FFFFFFF else str(value)
