"""A table of flows as plain arrays: who talked to whom, and 41 numbers about it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from edge_shared.errors import InputError
from numpy.typing import NDArray

from edge_ids.flow.schema import Schema

Array = NDArray[Any]


@dataclass(frozen=True)
class FlowTable:
    """E flows between hosts; a flow is a directed edge, an address is a node (parallel edges are kept).

    Attributes:
        schema: names of the F features.
        extractor: program that measured the features, such as ``"nprobe"``.
        hosts: addresses, (V,) str.
        src: row of `hosts` of the client, (E,) int32.
        dst: row of `hosts` of the server, (E,) int32.
        features: (E, F) float64 as read, may hold inf and NaN.
        label: 1 attack, 0 benign, (E,) int8; None where the source has no labels.
        attack: class names, (E,) str; None likewise.
        start: seconds since the epoch, (E,) float64; None if unknown (NF-v2).
        end: likewise.
    """

    schema: Schema
    extractor: str
    hosts: Array
    src: Array
    dst: Array
    features: Array
    label: Array | None = None
    attack: Array | None = None
    start: Array | None = None
    end: Array | None = None

    def __len__(self) -> int:
        return len(self.src)

    @property
    def duration(self) -> float | None:
        """Seconds from the first start to the last end, or None."""
        if self.start is None or self.end is None or not len(self):
            return None
        return float(self.end.max() - self.start.min())

    def rows(self, rows: Array | slice) -> FlowTable:
        """The flows `rows`, over the same hosts."""

        def pick(values: Array | None) -> Array | None:
            return None if values is None else values[rows]

        return replace(
            self, src=self.src[rows], dst=self.dst[rows], features=self.features[rows],
            label=pick(self.label), attack=pick(self.attack), start=pick(self.start), end=pick(self.end),
        )  # fmt: skip

    def select(self, schema: Schema) -> FlowTable:
        """The columns of `schema`, a part of this table's own."""
        if schema.features == self.schema.features:
            return self
        columns = [self.schema.features.index(name) for name in schema.features]
        return replace(self, schema=schema, features=np.ascontiguousarray(self.features[:, columns]))


def concatenate(tables: list[FlowTable]) -> FlowTable:
    """Put tables of one schema and extractor one after another, over the union of their hosts.

    Raises:
        InputError: for tables of different kinds, or none.
    """
    if not tables:
        raise InputError("no flows to put together; give a file with at least one flow")
    if len(tables) == 1:
        return tables[0]
    first = tables[0]
    for table in tables[1:]:
        if (table.schema, table.extractor) != (first.schema, first.extractor):
            raise InputError(f"flows of {first.schema.name}/{first.extractor} and {table.schema.name}/{table.extractor} do not mix")
    hosts, codes = np.unique(np.concatenate([table.hosts for table in tables]), return_inverse=True)
    codes = codes.astype(np.int32)
    starts = np.cumsum([0, *(len(table.hosts) for table in tables)])

    def join(name: str) -> Array | None:
        values = [getattr(table, name) for table in tables]
        return None if any(value is None for value in values) else np.concatenate(values)

    def codes_of(name: str) -> Array:
        parts = [codes[start : start + len(t.hosts)][getattr(t, name)] for start, t in zip(starts, tables, strict=False)]
        return np.concatenate(parts)

    return FlowTable(
        first.schema, first.extractor, hosts, codes_of("src"), codes_of("dst"), np.concatenate([t.features for t in tables]),
        join("label"), join("attack"), join("start"), join("end"),
    )  # fmt: skip
