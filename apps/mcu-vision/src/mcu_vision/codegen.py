"""Write an `IntegerNet` as C99: constants, a static arena with every tensor at its planned address, the calls in order."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
from edge_shared.files import write_text
from edge_shared.memory import Arena, arena
from numpy.typing import NDArray

from mcu_vision.board import Board
from mcu_vision.integer import IntegerNet, Op

ALIGNMENT = 8
"""The arena's size is rounded up to it, so that the linked size does not depend on what lies beside it."""
_FIXED = ("mv_kernels.h", "mv_kernels.c", "startup.c", "firmware.c", "emulated.c", "host.c")


def plan(net: IntegerNet) -> Arena:
    """Addresses of all tensors, one byte per element."""
    return arena(net.network())


def arena_bytes(found: Arena) -> int:
    """Bytes of the static array: the plan's top, rounded up to `ALIGNMENT`."""
    return -(-found.bytes // ALIGNMENT) * ALIGNMENT


def write_sources(folder: Path, net: IntegerNet, board: Board, stack: int) -> list[str]:
    """Write the sources, linker script and Makefile; returns their names.

    Args:
        folder: where to; made if absent.
        net: the network.
        board: memory sizes and compiler options.
        stack: bytes of RAM kept for the stack.
    """
    found = plan(net)
    for name in _FIXED:
        write_text(folder / name, _resource(name))
    write_text(folder / "mv_net.h", _header(net, found))
    write_text(folder / "mv_net.c", _source(net, found))
    # Without a fixed limit the emulated board's 4 MiB are.
    script = _resource("memory.ld").replace("@DEVICE@", board.name).replace("@STACK@", str(stack))
    write_text(folder / "memory.ld", script.replace("@FLASH@", str(board.flash)).replace("@RAM@", str(board.ram)))
    makefile = _resource("Makefile").replace("@CPU@", board.cpu).replace("@EMULATED_CPU@", board.emulated_cpu)
    write_text(folder / "Makefile", makefile.replace("@MACHINE@", board.machine))
    return [*_FIXED, "mv_net.h", "mv_net.c", "memory.ld", "Makefile"]


def _resource(name: str) -> str:
    return files("mcu_vision").joinpath("c", name).read_text(encoding="utf-8")


def _header(net: IntegerNet, found: Arena) -> str:
    height, width, channels = net.input_shape
    return f"""/* {net.name}: {height} x {width} x {channels} pixels to {len(net.classes)} classes; {net.macs:,} multiply-accumulates. Generated. */
#ifndef MV_NET_H
#define MV_NET_H

#include <stdint.h>

#define MV_PIXELS {height * width * channels}u
#define MV_CLASSES {len(net.classes)}u
#define MV_ARENA {arena_bytes(found)}u /* planned {found.bytes}, no plan can need less than {found.lower_bound} */

uint8_t *mv_pixels(void);       /* write the image here: rows, columns, channels; each run overwrites it */
int32_t mv_run(void);           /* classify it; the index of the largest output */
const int8_t *mv_output(void);  /* MV_CLASSES values; {net.output_scale:.9g} * (value - ({net.output_zero})) each */

#endif
"""


def _source(net: IntegerNet, found: Arena) -> str:
    storage = {name: _owner(net, name) for name in (net.input, *(op.output for op in net.ops))}
    address = {name: f"arena + {found.offsets[owner]}" for name, owner in storage.items()}
    parts = ['/* Generated: constants, arena, calls. */\n#include "mv_net.h"\n\n#include "mv_kernels.h"\n']
    parts.append("static int8_t arena[MV_ARENA] __attribute__((aligned(8)));\n")
    parts.append(
        f"static const int8_t pixel_table[{net.input_shape[2]}][256] = {{\n" + ",\n".join(_braces(row) for row in net.table) + "};\n"
    )
    parts += [_constants(index, op) for index, op in enumerate(net.ops)]
    calls = "\n".join(_call(index, op, address) for index, op in enumerate(net.ops))
    parts.append(f"""uint8_t *mv_pixels(void) {{ return (uint8_t *)({address[net.input]}); }}

const int8_t *mv_output(void) {{ return {address[net.output]}; }}

int32_t mv_run(void) {{
    int8_t *const input = {address[net.input]};
    for (uint32_t n = 0; n < MV_PIXELS; n++) {{
        input[n] = pixel_table[n % {net.input_shape[2]}u][(uint8_t)input[n]];
    }}
{calls}
    const int8_t *const output = mv_output();
    int32_t best = 0;
    for (int32_t n = 1; n < (int32_t)MV_CLASSES; n++) {{
        best = output[n] > output[best] ? n : best;
    }}
    return best;
}}
""")
    return "\n".join(parts)


def _owner(net: IntegerNet, name: str) -> str:
    while name in net.aliases:
        name = net.aliases[name]
    return name


def _constants(index: int, op: Op) -> str:
    if op.kind == "add":
        assert op.multiplier is not None
        assert op.shift is not None
        count = op.out_shape[0] * op.out_shape[1] * op.out_shape[2]
        numbers = [count, *op.in_zeros, op.out_zero, op.low, op.high, *op.multiplier.tolist(), *op.shift.tolist()]
        return f"/* {op.name} */\nstatic const mv_add_t add_{index} = {{{', '.join(map(str, numbers))}}};\n"
    arrays, names = [], []
    for kind, array, ctype in (
        ("w", op.weight, "int8_t"),
        ("b", op.bias, "int32_t"),
        ("m", op.multiplier, "int32_t"),
        ("s", op.shift, "int8_t"),
    ):
        names.append("0" if array is None else f"{kind}_{index}")
        if array is not None:
            arrays.append(f"static const {ctype} {kind}_{index}[{array.size}] = {_braces(array)};")
    numbers = [*op.in_shape, *op.out_shape, *op.kernel, *op.stride, *op.padding, op.in_zeros[0], op.out_zero, op.low, op.high]
    layer = f"static const mv_layer_t layer_{index} = {{{', '.join(map(str, numbers))}, {', '.join(names)}}};"
    return "\n".join([f"/* {op.name} */", *arrays, layer, ""])


def _call(index: int, op: Op, address: dict[str, str]) -> str:
    inputs, output = [address[name] for name in op.inputs], address[op.output]
    if op.kind == "add":
        return f"    mv_add_s8(&add_{index}, {inputs[0]}, {inputs[1]}, {output});"
    kernel = "pointwise" if op.kind == "conv" and op.kernel == (1, 1) and op.stride == (1, 1) and op.padding == (0, 0) else op.kind
    return f"    mv_{kernel}_s8(&layer_{index}, {inputs[0]}, {output});"


def _braces(array: NDArray[np.generic]) -> str:
    # INT32_MIN has no literal; multipliers and biases never reach it.
    numbers = [str(value) for value in array.reshape(-1).tolist()]
    lines = [", ".join(numbers[start : start + 24]) for start in range(0, len(numbers), 24)]
    return "{" + ",\n    ".join(lines) + "}"
