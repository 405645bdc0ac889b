"""The frame table: one typed column per property of a CAN frame, whatever file or bus it came from.

Shape suffixes: ``_N`` frames, ``_NW`` frames times payload width (8 bytes for classic CAN, 64 with CAN FD).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from edge_shared.errors import InputError
from numpy.typing import NDArray

if TYPE_CHECKING:
    import polars

EXTENDED, REMOTE, ERROR, FD = 1, 2, 4, 8  # bits of `Frames.flags`
UNLABELLED = -1
FD_LENGTHS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 20, 24, 32, 48, 64)
Array = NDArray[Any]


@dataclass(frozen=True)
class Frames:
    """CAN frames as columns of equal length.

    Attributes:
        time_us: int64 (N), microseconds (since the epoch, or since the start of a log without date).
        id: uint32 (N), 11 or 29 bits.
        flags: uint8 (N), sum of `EXTENDED`, `REMOTE`, `ERROR`, `FD`.
        length: uint8 (N), payload bytes (a remote frame: the length asked for).
        data: uint8 (N, W), payload, zero beyond `length`; W is 8 or 64.
        channel: uint8 (N), index into `channels`.
        label: int16 (N), index into `classes`, 0 benign, `UNLABELLED` (-1) unknown.
        capture: int32 (N), index into `captures`: the recording that a frame belongs to.
        channels, classes, captures: names.
        synthetic: made or changed by a generator; said in every file and report.
    """

    time_us: Array
    id: Array
    flags: Array
    length: Array
    data: Array
    channel: Array
    label: Array
    capture: Array
    channels: tuple[str, ...] = ("can0",)
    classes: tuple[str, ...] = ("benign", "attack")
    captures: tuple[str, ...] = ("",)
    synthetic: bool = field(default=False)

    def __len__(self) -> int:
        return len(self.time_us)

    @property
    def labelled(self) -> bool:
        """True if there are frames and each has a label."""
        return len(self) > 0 and bool((self.label >= 0).all())

    @property
    def attack(self) -> Array:
        """bool (N): labelled as any attack."""
        return self.label > 0

    @property
    def key(self) -> Array:
        """int64 (N): the ID, told apart by format: bit 29 is set for extended frames."""
        return self.id.astype(np.int64) | ((self.flags.astype(np.int64) & EXTENDED) << 29)

    @property
    def seconds(self) -> float:
        """Time covered: the sum over captures of last minus first frame."""
        if not len(self):
            return 0.0
        starts = np.flatnonzero(np.r_[True, np.diff(self.capture) != 0])
        ends = np.r_[starts[1:], len(self)] - 1
        return float(np.maximum(self.time_us[ends] - self.time_us[starts], 0).sum() / 1e6)

    def take(self, index: Any) -> Frames:
        """The frames of a slice, boolean mask or index array, in that order."""
        return replace(self, **{name: getattr(self, name)[index] for name in COLUMNS})

    def sorted(self) -> Frames:
        """The same frames by capture and time; equal times keep their order."""
        return self.take(np.lexsort((self.time_us, self.capture)))

    def to_polars(self) -> polars.DataFrame:
        """A Polars frame (Arrow memory): times, IDs, flags as booleans, payload as a fixed-size array of bytes."""
        import polars as pl

        return pl.DataFrame(
            {
                "time_us": self.time_us,
                "channel": pl.Series(np.array(self.channels, dtype=object)[self.channel], dtype=pl.String),
                "id": self.id,
                "extended": (self.flags & EXTENDED) > 0,
                "remote": (self.flags & REMOTE) > 0,
                "error": (self.flags & ERROR) > 0,
                "fd": (self.flags & FD) > 0,
                "length": self.length,
                "data": pl.Series(self.data, dtype=pl.Array(pl.UInt8, self.data.shape[1])),
                "label": pl.Series([None if i < 0 else self.classes[i] for i in self.label.tolist()], dtype=pl.String),
                "capture": pl.Series(np.array(self.captures, dtype=object)[self.capture], dtype=pl.String),
                "synthetic": pl.repeat(self.synthetic, len(self), eager=True),
            }
        )


COLUMNS = ("time_us", "id", "flags", "length", "data", "channel", "label", "capture")
_TYPES = {
    "time_us": np.int64,
    "id": np.uint32,
    "flags": np.uint8,
    "length": np.uint8,
    "data": np.uint8,
    "channel": np.uint8,
    "label": np.int16,
    "capture": np.int32,
}
assert tuple(f.name for f in fields(Frames))[: len(COLUMNS)] == COLUMNS


def make_frames(
    time_us: Any,
    id: Any,
    data: Any,
    length: Any = None,
    *,
    flags: Any = 0,
    channel: Any = 0,
    label: Any = UNLABELLED,
    capture: Any = 0,
    **names: Any,
) -> Frames:
    """Build a table from arrays, broadcasting scalars and setting the types.

    Args:
        time_us: microseconds (N).
        id: IDs (N).
        data: bytes (N, up to 64), or a sequence of `bytes` objects.
        length: payload bytes (N); by default the widths of `data`.
        flags, channel, label, capture: arrays (N) or scalars.
        names: `channels`, `classes`, `captures`, `synthetic`.
    """
    n = len(time_us)
    if not isinstance(data, np.ndarray):
        length = [len(item) for item in data] if length is None else length
        width = 8 if not n or max(map(len, data)) <= 8 else 64
        data = np.frombuffer(b"".join(bytes(item).ljust(width, b"\0") for item in data), dtype=np.uint8).reshape(n, width)
    elif data.shape[1] not in (8, 64):
        length = data.shape[1] if length is None else length
        data = np.pad(data, ((0, 0), (0, (8 if data.shape[1] < 8 else 64) - data.shape[1])))
    values = {"time_us": time_us, "id": id, "flags": flags, "length": data.shape[1] if length is None else length, "data": data}
    values |= {"channel": channel, "label": label, "capture": capture}
    typed = {
        name: np.ascontiguousarray(value if name == "data" else np.broadcast_to(value, n), dtype=_TYPES[name])
        for name, value in values.items()
    }
    return Frames(**typed, **names)  # type: ignore[arg-type]


def empty_frames() -> Frames:
    """A table without frames."""
    return make_frames([], [], np.zeros((0, 8), np.uint8))


def from_polars(table: polars.DataFrame, where: str = "table") -> Frames:
    """The inverse of `Frames.to_polars`.

    Raises:
        InputError: if a column is absent or of a wrong type.
    """
    import polars as pl

    try:
        channels = tuple(table["channel"].unique(maintain_order=True).to_list()) or ("can0",)
        captures = tuple(table["capture"].unique(maintain_order=True).to_list()) or ("",)
        found = [name for name in table["label"].unique(maintain_order=True).to_list() if name not in (None, "benign")]
        classes = ("benign", *found) if found else ("benign", "attack")
        flags = sum(table[name].cast(pl.UInt8).to_numpy() * bit for name, bit in _FLAG_COLUMNS.items())
        frames = make_frames(
            table["time_us"].cast(pl.Int64).to_numpy(writable=True),  # one type of array, whatever the source: the engine is compiled once
            table["id"].cast(pl.UInt32).to_numpy(),
            table["data"].to_numpy() if len(table) else np.zeros((0, 8), np.uint8),
            table["length"].to_numpy(),
            flags=flags,
            channel=_codes(table["channel"], channels),
            label=_codes(table["label"], classes),
            capture=_codes(table["capture"], captures),
            channels=channels,
            classes=classes,
            captures=captures,
            synthetic=bool(table["synthetic"].any()),
        )
    except (pl.exceptions.PolarsError, TypeError, ValueError, IndexError) as error:
        reason = str(error).splitlines()[0][:120]
        raise InputError(f"{where} is no frame table of edge-ids ({reason})") from error
    if (frames.length > frames.data.shape[1]).any() or frames.data.shape[1] not in (8, 64):
        raise InputError(f"{where}: a frame is longer than its payload column")
    return frames


_FLAG_COLUMNS = {"extended": EXTENDED, "remote": REMOTE, "error": ERROR, "fd": FD}


def _codes(column: polars.Series, names: Sequence[str]) -> Array:
    code = {name: index for index, name in enumerate(names)}
    return np.array([UNLABELLED if name is None else code[name] for name in column.to_list()], dtype=np.int16)


def concat(tables: Iterable[Frames]) -> Frames:
    """Join tables; names of channels, classes and captures are merged, payload widths are made equal."""
    tables = list(tables)
    if not tables:
        return empty_frames()
    if len(tables) == 1:
        return tables[0]
    names: dict[str, tuple[str, ...]] = {}
    columns: dict[str, list[Array]] = {name: [getattr(table, name) for table in tables] for name in COLUMNS}
    for column, attribute in (("channel", "channels"), ("label", "classes"), ("capture", "captures")):
        lists = [getattr(table, attribute) for table in tables]
        merged = tuple(dict.fromkeys(name for names_ in lists for name in names_))
        names[attribute] = merged
        if all(names_ == merged[: len(names_)] for names_ in lists):
            continue
        for index, names_ in enumerate(lists):
            lookup = np.array([merged.index(name) for name in names_] + [UNLABELLED])
            columns[column][index] = lookup[columns[column][index]]  # -1 (unlabelled) picks the last entry, -1
    width = max(table.data.shape[1] for table in tables)
    columns["data"] = [np.pad(data, ((0, 0), (0, width - data.shape[1]))) for data in columns["data"]]
    joined = {name: np.concatenate(parts).astype(_TYPES[name], copy=False) for name, parts in columns.items()}
    return Frames(**joined, **names, synthetic=any(table.synthetic for table in tables))  # type: ignore[arg-type]
