"""What the models of the study see: single frames as nine numbers, blocks of IDs as bits, windows of frames."""

from __future__ import annotations

import itertools

import numpy as np

from edge_ids.can.frames import Array, Frames


def frame_features(frames: Frames, dlc: bool = False) -> Array:
    """float32 (N, 9 or 10): ID, then (with `dlc`) the length, then the first eight bytes; unscaled, as in the paper's code."""
    columns = [frames.id[:, None].astype(np.float32)]
    if dlc:
        columns.append(frames.length[:, None].astype(np.float32))
    return np.concatenate([*columns, frames.data[:, :8].astype(np.float32)], axis=1)


def id_bits(frames: Frames) -> Array:
    """uint8 (N, 29): the ID as 29 bits, highest first; an 11-bit ID fills the last eleven columns."""
    return ((frames.id[:, None] >> np.arange(28, -1, -1, dtype=np.uint32)) & 1).astype(np.uint8)


def block_starts(frames: Frames, size: int) -> Array:
    """First rows of the blocks of `size` consecutive frames that do not overlap and do not span two captures."""
    edges = np.r_[0, np.flatnonzero(np.diff(frames.capture) != 0) + 1, len(frames)]
    starts = [np.arange(a, b - size + 1, size) for a, b in itertools.pairwise(edges)]
    return np.concatenate(starts).astype(np.int64) if starts else np.zeros(0, np.int64)


def id_windows(frames: Frames, size: int = 29) -> tuple[Array, Array, Array]:
    """Blocks of IDs for the DCNN (Song et al. 2020).

    Returns:
        uint8 (W, 1, size, 29); label of the block, the first attack class in it or 0; first row of the block.
    """
    starts = block_starts(frames, size)
    rows = starts[:, None] + np.arange(size)
    return id_bits(frames)[rows][:, None], _block_label(frames.label[rows]), starts


def frame_windows(frames: Frames, size: int = 32) -> tuple[Array, Array, Array]:
    """Windows for the attention model: float32 (W, size, 38): 29 ID bits, eight bytes / 255, log10 of the time step in us / 6."""
    starts = block_starts(frames, size)
    rows = starts[:, None] + np.arange(size)
    step = np.diff(frames.time_us, prepend=frames.time_us[:1])
    time = np.log10(np.clip(step, 1, 1_000_000)).astype(np.float32)[:, None] / 6
    table = np.concatenate([id_bits(frames).astype(np.float32), frames.data[:, :8].astype(np.float32) / 255, time], axis=1)
    return table[rows], _block_label(frames.label[rows]), starts


def _block_label(label_WL: Array) -> Array:
    attack = label_WL > 0
    first = attack.argmax(axis=1)
    return np.where(attack.any(axis=1), label_WL[np.arange(len(label_WL)), first], 0).astype(np.int64)
