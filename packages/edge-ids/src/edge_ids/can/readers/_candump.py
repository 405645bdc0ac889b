"""candump -L lines, parsed in one compiled pass.

``(1398128223.803317) can0 166#D0320009`` classic, ``#R4`` remote, ``##1...`` CAN FD, 8 digits with bit 29 an error
frame. Trailing columns of 0 and 1 or False and True (as CrySyS's tools append them) are labels, attack if any is set; a trailing R or T is the direction and ignored.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edge_ids.can._jit import compiled

# Kinds of bad lines; index 0 is a good line.
KINDS = (
    "", "time", "channel", "no_separator", "id", "odd_hex", "not_hex", "too_long", "fd_length", "extra_columns", "truncated",
)  # fmt: skip
_TIME, _CHANNEL, _SEPARATOR, _ID, _ODD, _HEX, _LONG, _FD, _EXTRA, _TRUNCATED = range(1, 11)
MAX_CHANNELS = 64

_HEX_VALUE = np.full(256, 255, np.uint8)
for _digit, _value in zip(b"0123456789abcdef", range(16), strict=True):
    _HEX_VALUE[_digit] = _value
for _digit, _value in zip(b"ABCDEF", range(10, 16), strict=True):
    _HEX_VALUE[_digit] = _value


@compiled
def parse(
    buffer: Any,
    hex_value: Any,
    channels: Any,
    n_channels: int,
    time_us: Any,
    ids: Any,
    flags: Any,
    length: Any,
    data: Any,
    channel: Any,
    label: Any,
    bad: Any,
) -> tuple[int, int]:
    """Parse whole lines of `buffer` into the column arrays.

    Args:
        buffer: uint8, ends with a newline.
        hex_value: uint8 (256), 255 for no digit.
        channels: int64 (MAX_CHANNELS, 17): length and up to 16 bytes of each known channel name; new ones are added.
        n_channels: how many are known.
        time_us ... label: output columns, long enough for all lines.
        bad: int64 counts by index of `KINDS`.

    Returns:
        Frames written, channels now known.
    """
    n = 0
    size = len(buffer)
    i = 0
    last_channel = 0
    while i < size:
        start = i
        end = i
        while buffer[end] != 10:
            end += 1
        i = end + 1
        if end > start and buffer[end - 1] == 13:
            end -= 1
        p = start
        while p < end and (buffer[p] == 32 or buffer[p] == 9):
            p += 1
        if p == end:
            continue  # a blank line is no error
        # --- time
        if buffer[p] != 40:
            bad[_TIME] += 1
            continue
        p += 1
        whole = np.int64(0)
        digits = 0
        while p < end and 48 <= buffer[p] <= 57 and digits < 12:
            whole = whole * 10 + (np.int64(buffer[p]) - 48)
            digits += 1
            p += 1
        micros = np.int64(0)
        if digits > 0 and p < end and buffer[p] == 46:
            p += 1
            scale = 100000
            while p < end and 48 <= buffer[p] <= 57:
                micros += (np.int64(buffer[p]) - 48) * scale
                scale //= 10
                p += 1
        if digits == 0 or p >= end or buffer[p] != 41:
            bad[_TRUNCATED if p >= end else _TIME] += 1
            continue
        p += 1
        while p < end and (buffer[p] == 32 or buffer[p] == 9):
            p += 1
        # --- channel
        c0 = p
        while p < end and buffer[p] != 32 and buffer[p] != 9:
            p += 1
        width = p - c0
        if p >= end:
            bad[_TRUNCATED] += 1
            continue
        if width == 0 or width > 16:
            bad[_CHANNEL] += 1
            continue
        found = -1
        for offset in range(n_channels):
            c = (last_channel + offset) % n_channels
            if channels[c, 0] == width:
                same = True
                for j in range(width):
                    if channels[c, 1 + j] != buffer[c0 + j]:
                        same = False
                        break
                if same:
                    found = c
                    break
        while p < end and (buffer[p] == 32 or buffer[p] == 9):
            p += 1
        # --- ID
        ident = np.int64(0)
        digits = 0
        while p < end and hex_value[buffer[p]] != 255 and digits < 9:
            ident = ident * 16 + np.int64(hex_value[buffer[p]])
            digits += 1
            p += 1
        if p >= end:
            bad[_TRUNCATED] += 1
            continue
        if buffer[p] != 35:
            bad[_SEPARATOR if digits > 0 and (buffer[p] == 32 or buffer[p] == 9) else _ID] += 1
            continue
        p += 1
        flag = 0
        if digits == 0 or digits > 8:
            bad[_ID] += 1
            continue
        if digits > 4:
            flag = 1
            if ident > 0x3FFFFFFF:
                bad[_ID] += 1
                continue
            if ident & 0x20000000:
                flag = 5
                ident &= 0x1FFFFFFF
        elif ident > 0x7FF:
            bad[_ID] += 1
            continue
        # --- payload
        count = np.int64(0)
        kind = 0
        if p < end and (buffer[p] == 82 or buffer[p] == 114):  # R: remote
            p += 1
            flag |= 2
            if p < end and 48 <= buffer[p] <= 56:
                count = np.int64(buffer[p]) - 48
                p += 1
            for j in range(8):
                data[n, j] = 0
        else:
            limit = 8
            if p < end and buffer[p] == 35:  # second #: CAN FD, then one digit of flags
                p += 1
                flag |= 8
                limit = 64
                if p >= end or hex_value[buffer[p]] == 255:
                    bad[_TRUNCATED if p >= end else _HEX] += 1
                    continue
                p += 1
            while p < end and hex_value[buffer[p]] != 255:
                high = hex_value[buffer[p]]
                p += 1
                if p >= end or hex_value[buffer[p]] == 255:
                    kind = _ODD
                    break
                if count >= limit:
                    kind = _LONG
                    break
                data[n, count] = high * 16 + hex_value[buffer[p]]
                count += 1
                p += 1
            if kind == 0 and limit == 64 and count > 8:
                good = False
                for valid in (12, 16, 20, 24, 32, 48, 64):
                    if count == valid:
                        good = True
                if not good:
                    kind = _FD
            if kind == 0 and p < end and buffer[p] == 95 and count == 8 and limit == 8:  # _9 to _F: raw DLC above 8
                p += 1
                if p < end and hex_value[buffer[p]] >= 9 and hex_value[buffer[p]] != 255:
                    p += 1
                else:
                    kind = _HEX
        if kind == 0 and p < end and buffer[p] != 32 and buffer[p] != 9:
            kind = _HEX
        # --- trailing columns
        mark: Any = -1
        while kind == 0 and p < end:
            while p < end and (buffer[p] == 32 or buffer[p] == 9):
                p += 1
            if p >= end:
                break
            w0 = p
            while p < end and buffer[p] != 32 and buffer[p] != 9:
                p += 1
            first = buffer[w0] | 32
            if p - w0 == 1 and (first == 48 or first == 49):  # 0 1 ('0' | 32 is '0')
                mark = max(mark, np.int64(first) - 48)
            elif p - w0 == 5 and first == 102 and (buffer[p - 1] | 32) == 101:  # False
                mark = max(mark, 0)
            elif p - w0 == 4 and first == 116 and (buffer[p - 1] | 32) == 101:  # True
                mark = 1
            elif not (p - w0 == 1 and (first == 114 or first == 116)):  # R T
                kind = _EXTRA
        if kind == 0 and found < 0:
            if n_channels == len(channels):
                kind = _CHANNEL
            else:
                found = n_channels
                n_channels += 1
                channels[found, 0] = width
                for j in range(width):
                    channels[found, 1 + j] = buffer[c0 + j]
        if kind != 0:
            bad[kind] += 1
            for j in range(data.shape[1]):
                data[n, j] = 0
            continue
        for j in range(count if flag & 2 == 0 else 0, data.shape[1]):
            data[n, j] = 0
        last_channel = found
        time_us[n] = whole * 1000000 + micros
        ids[n] = ident
        flags[n] = flag
        length[n] = count
        channel[n] = found
        label[n] = mark
        n += 1
    return n, n_channels


@compiled
def keep_monotone(time_us: Any, channel: Any, state: Any, keep: Any) -> int:
    """Mark frames whose time does not run backwards on their channel; returns how many are dropped.

    A clock that was really set back (16 frames in a row, in order among themselves, all before the last accepted one)
    is followed from then on: otherwise one corrupt time stamp in the future would swallow the rest of a log.

    Args:
        time_us, channel: columns (N).
        state: int64 (256, 3): last accepted time, time of the last dropped frame, length of the dropped run; start with
            ``[-1, 0, 0]``; carried between chunks.
        keep: bool (N), output.
    """
    dropped = 0
    for i in range(len(time_us)):
        c = channel[i]
        t = time_us[i]
        if t >= state[c, 0]:
            state[c, 0] = t
            state[c, 2] = 0
            keep[i] = True
            continue
        state[c, 2] = state[c, 2] + 1 if state[c, 2] > 0 and t >= state[c, 1] else 1
        state[c, 1] = t
        if state[c, 2] >= 16:
            state[c, 0] = t
            state[c, 2] = 0
            keep[i] = True
        else:
            keep[i] = False
            dropped += 1
    return dropped


def hex_table() -> Any:
    """uint8 (256): value of each hexadecimal digit, 255 for other bytes."""
    return _HEX_VALUE
