"""Write a deployed model as a folder of C99: kernel, tables, header with provenance, example, Makefile, CMakeLists.

The kernels (`c/tinyeeg_float.c`, `c/tinyeeg_q15.c`) are ordinary source files; only numbers and sizes are generated.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from edge_shared.errors import InputError
from edge_shared.files import write_text

from tinyeeg.codegen.fixed import DB_PER_LOG2, FILTER_BITS, FixedModel
from tinyeeg.deployed import Deployed, Linear, Mlp, Trees

NUMBERS = ("float", "q15")
_COPIED = ("example.c", "firmware.c", "startup.c", "cortex_m4.ld", "Makefile", "CMakeLists.txt")
_SMOOTH = {"none": 0, "boxcar": 1, "exponential": 2}


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Attributes:
        folder: where.
        files: names.
        number: ``float`` or ``q15``.
    """

    folder: Path
    files: tuple[str, ...]
    number: str


def export_c99(deployed: Deployed, folder: str | Path, number: str = "float") -> Exported:
    """Write the whole chain, raw samples to class, as C99.

    Args:
        deployed: the model.
        folder: written to; files of an earlier export are replaced.
        number: ``float`` (samples in microvolts) or ``q15`` (samples in converter steps, integers throughout).

    Raises:
        InputError: for an unknown number format or a folder that cannot be written.
    """
    if number not in NUMBERS:
        raise InputError(f"--fixed-point {number}: not known; choose from {', '.join(NUMBERS)}")
    folder = Path(folder)
    sources = files("tinyeeg.codegen") / "c"
    texts = {name: (sources / name).read_text(encoding="utf-8") for name in _COPIED}
    texts["tinyeeg.c"] = (sources / f"tinyeeg_{number}.c").read_text(encoding="utf-8")
    texts["tinyeeg.h"] = header(deployed, number)
    texts["tinyeeg_tables.h"] = _fixed_tables(deployed) if number == "q15" else _float_tables(deployed)
    for name, text in texts.items():
        write_text(folder / name, text)
    return Exported(folder, tuple(sorted(texts)), number)


def header(deployed: Deployed, number: str) -> str:
    """The text of ``tinyeeg.h``: sizes, the state structure, the functions, where the numbers come from."""
    from importlib.metadata import version

    chain, fixed = deployed.chain, number == "q15"
    person, sections = deployed.person, len(chain.sections)
    sample = "int16_t" if fixed else "float"
    real = "int32_t" if fixed else "float"
    unit = f"converter steps of {chain.lsb_uv:.9g} uV" if fixed else "microvolts"
    small = fixed or chain.quantise
    members = [
        f"    {'int32_t' if small else 'float'} offset[TINYEEG_CHANNELS];",
        *([f"    {real} section[TINYEEG_CHANNELS][TINYEEG_SECTIONS][2];"] if sections else []),
        f"    {real} work[TINYEEG_FFT];",
        *(
            [f"    {'uint32_t' if fixed else 'float'} recent[TINYEEG_FRAMES][TINYEEG_FEATURES];"]
            if chain.smoothing.kind == "boxcar"
            else []
        ),
        *([f"    {'uint64_t' if fixed else 'float'} mean[TINYEEG_FEATURES];"] if chain.smoothing.kind == "exponential" else []),
        f"    {real} features[TINYEEG_FEATURES]; /* {'decibels in Q8' if fixed else 'decibels'}, of the last decision */",
        *([f"    {real} center[TINYEEG_FEATURES];", f"    {real} sum[TINYEEG_FEATURES];"] if person else []),
        "    tinyeeg_stored_t ring[TINYEEG_CHANNELS][TINYEEG_SEGMENT];",
        "    uint32_t head, due, frames, filled;",
        *(["    uint32_t calibrating, calibrated;"] if person else []),
    ]
    from tinyeeg.cost import ram_bytes

    provenance = ", ".join(f"{key} {value}" for key, value in deployed.provenance.items() if key != "synthetic")
    synthetic = " * TRAINED ON SYNTHETIC SIGNALS: an example, not a detector of anything.\n" if deployed.provenance.get("synthetic") else ""
    calibrate = """
/* Calibration without labels: begin, go on pushing samples while the person does all kinds of things, end. Then the mean
 * feature vector of that time is the baseline. Returns the number of decisions that it was taken from. */
void tinyeeg_calibrate_begin(tinyeeg_t *state);
uint32_t tinyeeg_calibrate_end(tinyeeg_t *state);
"""
    names = ", ".join(f"{index} {name}" for index, name in enumerate(deployed.classes))
    model_defines = {
        Linear: ["TINYEEG_LINEAR 1"],
        Mlp: ["TINYEEG_MLP 1", f"TINYEEG_HIDDEN {len(getattr(deployed.model, 'b1', ()))}u"],
        Trees: [f"TINYEEG_TREES {len(getattr(deployed.model, 'root', ()))}u"],
    }[type(deployed.model)]
    defines = [
        f"TINYEEG_FIXED {int(fixed)}",
        f"TINYEEG_CHANNELS {len(chain.channels)}u",
        f"TINYEEG_SEGMENT {chain.segment}u",
        f"TINYEEG_HOP {chain.hop}u",
        f"TINYEEG_FFT {chain.n_fft}u",
        f"TINYEEG_GROUPS {len(chain.groups)}u",
        f"TINYEEG_FEATURES {chain.n_features}u",
        f"TINYEEG_SECTIONS {sections}",
        f"TINYEEG_SMOOTH {_SMOOTH[chain.smoothing.kind]} /* 0 none, 1 boxcar, 2 exponential */",
        f"TINYEEG_FRAMES {chain.smoothing.frames}u",
        f"TINYEEG_QUANTISE {int(chain.quantise and not fixed)}",
        f"TINYEEG_PERSON {int(person)}",
        f"TINYEEG_CLASSES {len(deployed.classes)}u /* {names} */",
        *model_defines,
        f"TINYEEG_RAM {ram_bytes(deployed, number)}u /* bytes of tinyeeg_t on a 32-bit target */",
    ]
    lines = "\n".join(f"#define {define}" for define in defines)
    return f"""/* {chain.name} chain with a {deployed.kind} classifier, {"integers" if fixed else "single precision"}.
 *
 * Generated by tinyeeg {version("tinyeeg")}; not a medical device.
{synthetic} * Channels, in this order: {", ".join(chain.channels)}; {chain.sfreq:g} samples per second, in {unit}.
 * One decision every {chain.hop / chain.sfreq:g} s; settled after {chain.look_back / chain.sfreq:g} s.
 * Provenance: {provenance}.
 */
#ifndef TINYEEG_H
#define TINYEEG_H

#include <stdint.h>

{lines}

typedef {sample} tinyeeg_sample_t;
typedef {"int16_t" if small else "float"} tinyeeg_stored_t;

/* All memory that the chain needs; make one static object of it. */
typedef struct {{
{chr(10).join(members)}
}} tinyeeg_t;

#define TINYEEG_CENTER(state, i) {"((state)->center[i])" if person else "(te_center[i])"}

/* Call once. */
void tinyeeg_init(tinyeeg_t *state);
/* Call after dropped samples: forgets the signal{", keeps the calibration" if person else ""}. */
void tinyeeg_reset(tinyeeg_t *state);
/* Take one sample of each channel; returns the class when a decision is due, else -1. */
int tinyeeg_push(tinyeeg_t *state, const tinyeeg_sample_t sample[TINYEEG_CHANNELS]);
{calibrate if person else ""}
#endif
"""


def _float_tables(deployed: Deployed) -> str:
    chain = deployed.chain
    scale = chain.scale * (chain.lsb_uv**2 if chain.quantise else 1.0)
    quarter = np.sin(2 * np.pi * np.arange(chain.n_fft // 4 + 1) / chain.n_fft)
    lines = [
        _array("float", "te_sine", quarter),
        _array("float", "te_taper", chain.window[: chain.segment // 2 + 1]),
        *_groups(deployed),
        f"static const float te_scale = {_f(scale)};",
        f"static const float te_clip = {_f(deployed.clip)};",
        _array("float", "te_center", deployed.center),
        _array("float", "te_inverse", 1 / deployed.scale),
    ]
    if chain.quantise:
        lines.append(f"static const float te_inverse_lsb = {_f(1 / chain.lsb_uv)};")
    if chain.sections:
        lines.append(_array("float", "te_section", [[s.a1, s.a2, s.a3, s.m0, s.m1, s.m2] for s in chain.sections]))
    if chain.smoothing.kind == "exponential":
        lines.append(f"static const float te_alpha = {_f(1 / chain.smoothing.frames)};")
    model = deployed.model
    if isinstance(model, Linear):
        lines += [_array("float", "te_weights", model.weights), _array("float", "te_bias", model.bias)]
    elif isinstance(model, Mlp):
        lines += [_array("float", f"te_{name}", getattr(model, name)) for name in ("w1", "b1", "w2", "b2")]
    else:
        lines += [
            *_nodes(model),
            _array("float", "te_threshold", model.threshold),
            _array("float", "te_values", model.values),
            _array("float", "te_bias", model.bias),
        ]
    return _tables(lines)


def _fixed_tables(deployed: Deployed) -> str:
    fixed = FixedModel(deployed)
    chain, tables = fixed.chain, fixed.tables
    lines = [
        f"#define TINYEEG_WORK_SHIFT {chain.work_shift}u",
        f"#define TINYEEG_POWER_SHIFT {chain.power_shift}u",
        f"#define TINYEEG_FILTER_BITS {FILTER_BITS}u",
        f"#define TINYEEG_RING_BITS {chain.ring_bits}u",
        _array("int32_t", "te_sine", chain.sine),
        _array("int16_t", "te_taper", chain.taper),
        *_groups(deployed),
        _array("uint32_t", "te_log2", chain.log2_table),
        f"static const int32_t te_db_per_log2 = {DB_PER_LOG2};",
        f"static const int32_t te_offset = {chain.offset};",
        f"static const int32_t te_clip = {fixed.clip};",
        _array("int32_t", "te_center", fixed.center),
        _array("int32_t", "te_inverse", fixed.inverse),
    ]
    if deployed.chain.sections:
        lines.append(_array("int32_t", "te_section", chain.sections))
    if deployed.chain.smoothing.kind == "boxcar":
        lines.append(_array("int16_t", "te_count_db", chain.count_db))
    if deployed.chain.smoothing.kind == "exponential":
        lines.append(f"static const uint32_t te_alpha = {chain.alpha}u;")
    model = deployed.model
    if isinstance(model, Linear):
        lines += [_array("int16_t", "te_weights", tables["weights"]), _array("int64_t", "te_bias", tables["bias"])]
    elif isinstance(model, Mlp):
        lines += [f"#define TINYEEG_W1_BITS {tables['w1_bits']}u"]
        lines += [_array("int16_t" if name[0] == "w" else "int64_t", f"te_{name}", tables[name]) for name in ("w1", "b1", "w2", "b2")]
    else:
        lines += [
            *_nodes(model),
            _array("int16_t", "te_threshold", tables["threshold"]),
            _array("int16_t", "te_values", tables["values"]),
            _array("int64_t", "te_bias", tables["bias"]),
        ]
    return _tables(lines)


def _groups(deployed: Deployed) -> list[str]:
    groups = deployed.chain.groups
    return [_array("uint16_t", f"te_{end}", [getattr(group, end) for group in groups]) for end in ("first", "last")]


def _nodes(model: Trees) -> list[str]:
    if max(len(model.feature), len(model.values)) > 65535:
        raise InputError(f"the trees have {len(model.feature)} nodes; the C format holds 65535: use fewer or shallower trees")
    return [
        _array("uint16_t", "te_root", model.root),
        _array("int16_t", "te_feature", model.feature),
        _array("uint16_t", "te_left", model.left),
        _array("uint16_t", "te_right", model.right),
    ]


def _tables(lines: Iterable[str]) -> str:
    return "/* Numbers of the chain and its classifier; see tinyeeg.h for their origin. */\n" + "\n".join(lines) + "\n"


def _array(ctype: str, name: str, values: Any) -> str:
    values = np.asarray(values)
    size = "".join(f"[{count}]" for count in values.shape)
    text = {"float": _f, "int64_t": lambda value: f"INT64_C({int(value)})", "uint32_t": lambda value: f"{int(value)}u"}.get(
        ctype, lambda value: str(int(value))
    )

    def row(items: Any) -> str:
        return "{" + ", ".join(row(item) if np.ndim(item) else text(item) for item in items) + "}"

    body = row(values)
    wrapped, line = [], ""
    for word in body.split(" "):
        if len(line) + len(word) > 118:
            wrapped.append(line)
            line = ""
        line += (" " if line else "") + word
    return f"static const {ctype} {name}{size} = " + "\n    ".join([*wrapped, line]) + ";"


def _f(value: Any) -> str:
    text = f"{float(np.float32(value)):.9g}"
    return (text if any(mark in text for mark in ".en") else text + ".0") + "f"
