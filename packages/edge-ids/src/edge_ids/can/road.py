"""ROAD (Verma et al., PLOS ONE 2024): labels from capture_metadata.json, by capture name and per nibble.

A frame is an attack iff ``t0 <= t - t_first <= t1`` (both ends included), its ID is the injected one (``XXX``: any), and
every nibble of the payload mask that is not X equals the payload's. Captures without interval (ambient, accelerator)
have no attack frame.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from edge_shared.errors import InputError
from edge_shared.files import read_json

from edge_ids.can.frames import Array, Frames

if TYPE_CHECKING:
    import polars


@dataclass(frozen=True)
class Rule:
    """How the attack frames of one capture are recognised.

    Attributes:
        kind: class name.
        id: injected ID, None for any.
        mask: payload nibbles, X for any; empty matches all.
        interval: first and last second after the first frame; None if no frame is injected.
        labelled: False if no frame carries a trace of the attack (suspension): only the interval is known.
    """

    kind: str
    id: int | None
    mask: str
    interval: tuple[float, float] | None
    labelled: bool = True


def attack_class(name: str) -> str:
    """Class of a ROAD capture by its name: the number is dropped, ``_masquerade`` kept; ambient captures are benign."""
    if name.startswith("ambient"):
        return "benign"
    name = name.replace("_attack", "")
    return re.sub(r"_\d+(?=_|$)", "", name) or "attack"


def read_metadata(path: str | Path) -> dict[str, Rule]:
    """Read capture_metadata.json (or what `edge-ids can generate` writes): rules by capture name.

    Raises:
        InputError: naming the capture and the field that is wrong.
    """
    raw = read_json(path, "capture metadata")
    if not isinstance(raw, dict):
        raise InputError(f"{path} must be a JSON object of captures by name")
    return {name: _rule(entry, name, f"{path}: capture {name!r}") for name, entry in raw.items()}


def _rule(entry: Any, name: str, where: str) -> Rule:
    if not isinstance(entry, dict):
        raise InputError(f"{where} must be an object")
    kind = str(entry.get("kind") or attack_class(name))
    interval = entry.get("injection_interval")
    if interval is None:
        return Rule(kind, None, "", None)
    if (
        not isinstance(interval, list)
        or len(interval) != 2
        or not all(isinstance(t, int | float) and not isinstance(t, bool) and np.isfinite(t) for t in interval)
        or interval[0] > interval[1]
    ):
        raise InputError(f"{where}: injection_interval must be two ascending numbers of seconds, got {interval!r}")
    ident: int | None = None
    text = str(entry.get("injection_id", "XXX")).strip()
    if "XXX" not in text.upper():
        try:
            ident = int(text, 16)
        except ValueError:
            raise InputError(f"{where}: injection_id {text!r} is no hexadecimal ID and not XXX") from None
    mask = str(entry.get("injection_data_str") or "").strip()
    if len(mask) > 128 or re.fullmatch(r"[0-9A-Fa-fXx]*", mask) is None:
        raise InputError(f"{where}: injection_data_str {mask!r} must be hexadecimal nibbles or X")
    labelled = entry.get("kind") != "suspension"
    return Rule(kind, ident, mask, (float(interval[0]), float(interval[1])), labelled)


def matches(data: Array, length: Array, mask: str) -> Array:
    """bool (N): every nibble of `mask` that is not X equals the payload's; a shorter payload does not match."""
    found = np.ones(len(data), np.bool_)
    for index, digit in enumerate(mask):
        if digit.upper() == "X":
            continue
        byte, low = divmod(index, 2)
        if byte >= data.shape[1]:
            return np.zeros(len(data), np.bool_)
        nibble = data[:, byte] & 0x0F if low else data[:, byte] >> 4
        found &= (nibble == int(digit, 16)) & (length > byte)
    return found


class Labeller:
    """Label the chunks of one capture in order.

    Args:
        rule: of the capture; None labels everything benign.
    """

    def __init__(self, rule: Rule | None):
        self.rule = rule
        self._origin: int | None = None

    def __call__(self, frames: Frames) -> Frames:
        """The same frames with labels 0 and 1; class 1 is the rule's kind."""
        if self._origin is None and len(frames):
            self._origin = int(frames.time_us[0])
        kind = self.rule.kind if self.rule is not None and self.rule.kind != "benign" else "attack"
        label = np.zeros(len(frames), np.int16)
        rule = self.rule
        if rule is not None and rule.interval is not None and rule.labelled:
            relative = frames.time_us - (self._origin or 0)
            first, last = (round(t * 1e6) for t in rule.interval)
            hit = (relative >= first) & (relative <= last) & matches(frames.data, frames.length, rule.mask)
            if rule.id is not None:
                hit &= frames.id == rule.id
            label[hit] = 1
        return replace(frames, label=label, classes=("benign", kind))

    def planned(self, origin_us: int) -> list[tuple[str, int, int]]:
        """Attacks without labelled frames, as `Evaluation` takes them."""
        rule = self.rule
        if rule is None or rule.interval is None or rule.labelled:
            return []
        return [(rule.kind, origin_us + round(rule.interval[0] * 1e6), origin_us + round(rule.interval[1] * 1e6))]


def read_signals(path: str | Path) -> polars.DataFrame:
    """The numbers of a ROAD signal extraction (``signal_extractions/attacks/NAME.csv``), as they are.

    Returns:
        Columns ``time`` (s), ``id`` (decimal in the file), ``label``, and ``signal_1`` ... as float64, null where an ID has
        fewer. Column order in the file does not matter.

    Raises:
        InputError: no such file, no such columns, or a value that is no number, with what Polars says.
    """
    import polars as pl

    try:
        table = pl.read_csv(path, infer_schema_length=None)
        names = {name: name.strip().lower() for name in table.columns}
        table = table.rename(names)
        signals = [name for name in table.columns if re.fullmatch(r"signal_\d+_of_id", name)]
        if not signals or not {"label", "time", "id"} <= set(table.columns):
            raise InputError(f"{path}:1 is no header of ROAD signals (Label, Time, ID, Signal_1_of_ID, ...)")
        signals.sort(key=lambda name: int(name.split("_")[1]))
        return table.select(
            pl.col("time").cast(pl.Float64),
            pl.col("id").cast(pl.Float64).cast(pl.Int64),
            pl.col("label").cast(pl.Float64).cast(pl.Int64),
            *[pl.col(name).cast(pl.Float64).alias(f"signal_{name.split('_')[1]}") for name in signals],
        )
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except pl.exceptions.PolarsError as error:
        raise InputError(f"cannot read {path} as ROAD signals: {str(error).splitlines()[0][:120]}") from error


def rule_for(rules: dict[str, Rule], path: Path, where: str | Path) -> Rule:
    """The rule of a file, by its name without suffixes.

    Raises:
        InputError: if the metadata has no such capture.
    """
    stem = path.name.split(".")[0]
    if stem not in rules:
        known = ", ".join(sorted(rules)[:3])
        raise InputError(f"{where} has no capture named {stem!r} (it has {len(rules)}, such as {known})")
    return rules[stem]
