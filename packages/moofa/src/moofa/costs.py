"""Costs of many networks of a space at once: gathers from tables that the shared core's arithmetic filled.

Every cost of a network in these spaces is a sum or a maximum over its blocks, and a block's share depends only on its place,
the resolution, its kernel and its expansion. So one network per (resolution, kernel, expansion) fills the tables, and the
costs of a hundred thousand networks are twenty gathers. Equal to `edge_shared` network by network; tested.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from edge_shared import flops
from edge_shared.architectures import mobile
from edge_shared.errors import InputError
from edge_shared.memory import peak, sram
from edge_shared.network import Network, deployed

from moofa.budget import Target
from moofa.flatness import block_of
from moofa.space import Choice, Genes, Space

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moofa.latency import LatencyTable

SUMS = ("macs", "params", "norms", "weights", "channels")
MAXIMA = ("peak", "column_buffer", "kernel_buffer")
_Share = tuple[int | None, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Costs:
    """Costs of n networks, arrays of shape (n,).

    Attributes:
        macs: multiply-accumulates.
        params, params_with_bn: parameters without and with batch norms.
        peak_items, peak_bytes: peak memory under the target's model.
        ram: bytes of RAM needed on the target: what a memory budget limits.
        flash: bytes of weights, biases and scales.
        flatness: see `moofa.flatness`.
        latency_ms: estimated milliseconds (`moofa.latency`); NaN without a latency table.
    """

    macs: np.ndarray
    params: np.ndarray
    params_with_bn: np.ndarray
    peak_items: np.ndarray
    peak_bytes: np.ndarray
    ram: np.ndarray
    flash: np.ndarray
    flatness: np.ndarray
    latency_ms: np.ndarray

    def __len__(self) -> int:
        return len(self.macs)

    def take(self, index: Any) -> Costs:
        """The networks at `index` (an index array or a mask)."""
        return Costs(**{name: getattr(self, name)[index] for name in self.__dataclass_fields__})

    def row(self, index: int) -> dict[str, float]:
        """The costs of one network as plain numbers; without the latency where that is not known."""
        values = {name: getattr(self, name)[index].item() for name in self.__dataclass_fields__}
        return {name: value for name, value in values.items() if value == value}


class CostTable:
    """Costs of the networks of one space on one target.

    Building it profiles a few dozen networks (below a second); `costs` then takes microseconds per network.

    Args:
        space: the space.
        target: memory model, bits and device.
        latency: milliseconds of the space's blocks, if they are to be counted.
    """

    def __init__(self, space: Space, target: Target, latency: LatencyTable | None = None):
        self.space = space
        self.target = target
        self.genes = Genes(space)
        self.patch_blocks = _patch_blocks(space) if target.memory_model == "E" else None
        """Model E: blocks that run in patches, the stem being the first: 5, or as many as every network of the space has."""
        self._patched_blocks = (self.patch_blocks or 1) - 1
        self._chains: dict[int, np.ndarray] = {}
        self._fill()
        self.has_latency = latency is not None
        self._latency: tuple[np.ndarray, np.ndarray] | None = None
        if latency is not None:
            blocks = latency.monotone.reshape(len(latency.blocks), -1)
            # As in the other tables: one more option, which takes no time.
            self._latency = latency.monotone_fixed, np.hstack([blocks, np.zeros((len(blocks), 1))])

    def _fill(self) -> None:
        space = self.space
        shape = (
            len(space.resolutions),
            max(len(stage.kernels) for stage in space.stages),
            max(len(stage.expands) for stage in space.stages),
        )
        self._shape = shape
        places = sum(stage.depths[-1] for stage in space.stages)
        options = int(np.prod(shape))
        # One more row than options, all zero: a block that does not exist.
        self._tables = [np.zeros((places, options + 1, len(names)), dtype=np.int64) for names in (SUMS, MAXIMA)]
        self._fixed = [np.zeros((shape[0], len(names)), dtype=np.int64) for names in (SUMS, MAXIMA)]
        self._fixed_need = np.zeros(shape[0], dtype=np.int64)  # what the fixed first block needs
        first = 1 if space.first else 0
        for option in range(options):
            r, k, e = (int(index) for index in np.unravel_index(option, shape))
            blocks = tuple(
                ((stage.kernels[min(k, len(stage.kernels) - 1)], stage.expands[min(e, len(stage.expands) - 1)]),) * stage.depths[-1]
                for stage in space.stages
            )
            network = mobile.network(space.config(Choice(space.resolutions[r], blocks)))
            for table in (*self._fixed, self._fixed_need):
                table[r] = 0
            for block, sums, maxima in self._shares(network):
                if block is None or block < first:
                    place = [table[r] for table in self._fixed]
                    if block is not None:
                        self._fixed_need[r] = max(self._fixed_need[r], maxima[0])
                else:
                    place = [table[block - first, option] for table in self._tables]
                place[0] += sums
                np.maximum(place[1], maxima, out=place[1])

    def _shares(self, network: Network) -> Iterator[_Share]:
        """Each layer's block (None outside of blocks), what it adds to the sums and how it enters the maxima."""
        model = self.target.memory_model
        sums, maxima = ({layer.name: np.zeros(len(names), dtype=np.int64) for layer in network.layers} for names in (SUMS, MAXIMA))
        for layer in network.layers:
            is_norm = layer.kind == "norm"
            sums[layer.name][:3] = (flops.forward(layer), 0 if is_norm else layer.params, layer.params if is_norm else 0)
        board = deployed(network)
        for layer in board.weighted():
            sums[layer.name][3:] = (layer.weights, layer.out_channels)
        # Model E: one patch a side and the stem alone in patches, so that every other layer shows what it needs outside of patches.
        found = peak(network, "E", patches=1, patch_blocks=1) if model == "E" else peak(network, model)
        for need in found.per_layer:
            fixed_in_patches = need.layer.startswith("blocks.0.") and self.space.first is not None and self._patched_blocks > 0
            if model == "E" and (need.layer.startswith("stem.") or fixed_in_patches):
                continue
            maxima[need.layer][0] = need.items
        if self.target.has_scratch:
            for layer in board.convs():
                alone = sram(Network(layer.name, layer.inputs, (layer.output,), (layer,), board.tensors))
                maxima[layer.name][1:] = (alone.column_buffer, alone.kernel_buffer)
        for name in sums:
            yield block_of(name), sums[name], maxima[name]

    def costs(self, rows: np.ndarray) -> Costs:
        """Costs of networks given as gene rows (n, columns), see `moofa.space.Genes`."""
        rows = np.asarray(rows, dtype=np.int64)
        _, kernels, expands = self._shape
        sums, maxima = (table[rows[:, 0]] for table in self._fixed)
        needs = self._fixed_need[rows[:, 0]]
        latency = self._latency[0][rows[:, 0]] if self._latency is not None else np.full(len(rows), np.nan)
        blocks = np.full(len(rows), 1 if self.space.first else 0)
        absent = self._tables[0].shape[1] - 1
        patched = self._patched(rows) if self.patch_blocks is not None else None
        rank = np.full(len(rows), 1 if self.space.first else 0)
        place = 0
        for stage, depth_column, columns in zip(self.space.stages, self.genes.depth_columns, self.genes.block_columns, strict=True):
            depths = np.array(stage.depths)[rows[:, depth_column]]
            for index, (kernel, expand) in enumerate(columns):
                option = (rows[:, 0] * kernels + rows[:, kernel]) * expands + rows[:, expand]
                if index >= stage.depths[0]:
                    option = np.where(depths > index, option, absent)
                    blocks += depths > index
                else:
                    blocks += 1
                sums += self._tables[0][place].take(option, axis=0)
                if self._latency is not None:
                    latency += self._latency[1][place].take(option)
                if patched is not None:
                    in_patches = rank < self._patched_blocks
                    rank += option != absent
                    option = np.where(in_patches, absent, option)
                block_maxima = self._tables[1][place].take(option, axis=0)
                needs += block_maxima[:, 0]
                np.maximum(maxima, block_maxima, out=maxima)
                place += 1
        if patched is not None:
            needs += patched[:, 1]
            np.maximum(maxima[:, 0], patched[:, 0], out=maxima[:, 0])
        macs, params, norms, weights, channels = sums.T
        peak_items, column_buffer, kernel_buffer = maxima.T
        bits = self.target.bits
        peak_bytes = -(-peak_items * bits // 8)
        flash = -(-weights * bits // 8) + (4 if bits >= 32 else 8) * channels
        ram = self.target.ram(peak_bytes, flash, column_buffer + kernel_buffer)
        return Costs(macs, params, params + norms, peak_items, peak_bytes, ram, flash, needs / blocks / peak_items, latency)

    def _patched(self, rows: np.ndarray) -> np.ndarray:
        """Model E's first part: (n, 2) largest need, and sum over its blocks of their largest need.

        A patched block needs what its own expansion and the size of its patch ask for, and that size depends on the kernels of
        the patched blocks behind it alone. So the shared arithmetic is asked once per different sequence of places and
        kernels, with one expansion for all blocks at a time, and every network is put together from the answers.
        """
        count = self._patched_blocks - (1 if self.space.first else 0)
        _, kernels, expands = self._shape
        places = len(self._tables[0])
        chain = rows[:, 0].copy()  # a number for resolution, places and kernels
        chosen = np.zeros((len(rows), max(count, 0)), dtype=np.int64)  # expansion of each patched block
        rank = np.zeros(len(rows), dtype=np.int64)
        place = 0
        for stage, depth_column, columns in zip(self.space.stages, self.genes.depth_columns, self.genes.block_columns, strict=True):
            depths = np.array(stage.depths)[rows[:, depth_column]]
            for index, (kernel, expand) in enumerate(columns):
                inside = np.flatnonzero((depths > index) & (rank < count))
                chain[inside] = (chain[inside] * places + place) * kernels + rows[inside, kernel]
                chosen[inside, rank[inside]] = rows[inside, expand]
                rank += depths > index
                place += 1
        unique, first, inverse = np.unique(chain, return_index=True, return_inverse=True)
        needs = np.stack([self._chain(int(key), rows[row], expands) for key, row in zip(unique, first, strict=True)])
        # Per network and patched block the need at the block's own expansion; the stem's and the first block's beside them.
        blocks = needs[inverse[:, None], np.arange(chosen.shape[1]) + needs.shape[1] - chosen.shape[1], chosen]
        fixed = needs[inverse, : needs.shape[1] - chosen.shape[1], 0]
        every = np.hstack([fixed, blocks])
        return np.column_stack([every.max(1), every[:, 1:].sum(1)])  # the first is the stem, which is no block

    def _chain(self, key: int, row: np.ndarray, expands: int) -> np.ndarray:
        """Needs of the patched part, (stem and blocks, expands), for the places and kernels that `row` begins with."""
        if key not in self._chains:
            starts = ("stem.", *(f"blocks.{index}." for index in range(self._patched_blocks)))
            found = np.zeros((len(starts), expands), dtype=np.int64)
            for expand in range(expands):
                same = row.copy()
                for stage, columns in zip(self.space.stages, self.genes.block_columns, strict=True):
                    same[[column for _, column in columns]] = min(expand, len(stage.expands) - 1)
                config = self.space.config(self.genes.decode(same))
                # What comes after the patches plays no part, but that there is something.
                network = mobile.network(config.model_copy(update={"blocks": config.blocks[: self._patched_blocks + 2]}))
                for need in peak(network, "E", patch_blocks=self.patch_blocks).per_layer:
                    for number, start in enumerate(starts):
                        if need.layer.startswith(start):
                            found[number, expand] = max(found[number, expand], need.items)
            self._chains[key] = found
        return self._chains[key]


def _patch_blocks(space: Space) -> int:
    networks = [mobile.network(space.config(space.smallest(resolution))) for resolution in space.resolutions]
    for blocks in range(5, 1, -1):
        try:
            for network in networks:
                peak(network, "E", patch_blocks=blocks)
        except InputError:
            continue
        return blocks
    return 1
