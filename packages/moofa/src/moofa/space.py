"""A search space: stages of inverted residual blocks whose depth, kernels, expansion and input resolution are elastic.

A space is plain data (JSON); a choice is one network of it. `Genes` turns choices into rows of small integers and back,
which is what the vectorised costing, the predictor and the searches work on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from edge_shared.architectures.mobile import MobileConfig, make_divisible
from edge_shared.errors import InputError
from edge_shared.files import read_json
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Activation = Literal["relu", "relu6", "hardswish"]


def middle(width: int, expand: float) -> int:
    """Channels between expansion and projection; an expansion of 1 has no expansion convolution and keeps `width`."""
    return width if expand == 1 else make_divisible(round(width * expand))


class _Plain(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Stem(_Plain):
    """The first convolution: `out` channels, then batch norm and activation."""

    out: int = Field(gt=0, le=4096)
    kernel: int = Field(default=3, gt=0, le=15)
    stride: int = Field(default=2, ge=1, le=4)


class FixedBlock(_Plain):
    """An inverted residual block that is the same in every network of the space."""

    out: int = Field(gt=0, le=8192)
    kernel: int = Field(default=3, gt=0, le=15)
    expand: float = Field(default=1, ge=1, le=16)
    stride: int = Field(default=1, ge=1, le=2)
    se: bool = False
    activation: Activation = "relu6"


class Stage(_Plain):
    """Elastic blocks of one output `width`; the first of them has the `stride`, the others 1."""

    width: int = Field(gt=0, le=8192)
    stride: int = Field(default=2, ge=1, le=2)
    depths: tuple[int, ...] = (1, 2)
    kernels: tuple[int, ...] = (3, 5)
    expands: tuple[float, ...] = (2, 3, 4)
    se: bool = False
    activation: Activation = "relu6"

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("depths", "kernels", "expands"):
            values = getattr(self, name)
            if not values or list(values) != sorted(set(values)) or values[0] < 1:
                raise ValueError(f"{name} must be distinct, ascending and at least 1, got {list(values)}")
        if any(kernel % 2 == 0 or kernel > 15 for kernel in self.kernels):
            raise ValueError(f"kernels must be odd and at most 15, got {list(self.kernels)}")
        if self.depths[-1] > 16 or self.expands[-1] > 16:
            raise ValueError("at most 16 blocks per stage and an expansion of at most 16")
        return self


@dataclass(frozen=True, order=True)
class Choice:
    """One network of a space: the input resolution in pixels and, per stage, (kernel, expand) of each block that exists.

    Blocks beyond a stage's depth do not appear, so that equal networks are equal choices.
    """

    resolution: int
    stages: tuple[tuple[tuple[int, float], ...], ...]

    @property
    def depths(self) -> tuple[int, ...]:
        """Blocks per stage."""
        return tuple(len(stage) for stage in self.stages)

    def to_json(self) -> dict[str, Any]:
        """Plain data: ``{"resolution": 8, "stages": [[[3, 2], [5, 4]], ...]}``."""
        return {"resolution": self.resolution, "stages": [[[k, e] for k, e in stage] for stage in self.stages]}

    @staticmethod
    def from_json(data: Any) -> Choice:
        """Rebuild a choice from `to_json`'s data.

        Raises:
            InputError: if it is no choice.
        """
        try:
            return Choice(int(data["resolution"]), tuple(tuple((int(k), float(e)) for k, e in stage) for stage in data["stages"]))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError('a choice is {"resolution": R, "stages": [[[kernel, expand], ...], ...]}, got ' + repr(data)[:80]) from error


class Space(_Plain):
    """A space of networks that share their weights.

    Attributes:
        name: what the space is called in reports.
        in_channels: channels of the input image.
        classes: outputs of the classifier.
        resolutions: input sizes in pixels.
        stem: the first convolution.
        activation: that of the stem and the head.
        first: a fixed block after the stem, or None.
        stages: the elastic stages.
        final_expand: channels of a 1x1 convolution (with norm) before pooling, or None.
        feature_mix: features of a 1x1 layer after pooling (before it, with norm, if `feature_mix_bn`), or None.
        dropout: rate before the classifier, while training.
    """

    name: str = "space"
    in_channels: int = Field(default=3, gt=0, le=64)
    classes: int = Field(default=10, gt=1, le=100_000)
    resolutions: tuple[int, ...] = (224,)
    stem: Stem
    activation: Activation = "relu6"
    first: FixedBlock | None = None
    stages: tuple[Stage, ...] = Field(min_length=1, max_length=12)
    final_expand: int | None = Field(default=None, gt=0, le=16384)
    feature_mix: int | None = Field(default=None, gt=0, le=16384)
    feature_mix_bn: bool = False
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        values = self.resolutions
        if not values or list(values) != sorted(set(values)) or values[0] < 4 or values[-1] > 4096:
            raise ValueError(f"resolutions must be distinct, ascending, from 4 to 4096 pixels, got {list(values)}")
        return self

    @property
    def has_se(self) -> bool:
        """Whether any block may squeeze and excite."""
        return any(stage.se for stage in self.stages) or (self.first is not None and self.first.se)

    def in_width(self, stage: int, block: int) -> int:
        """Input channels of block `block` of stage `stage`."""
        if block > 0:
            return self.stages[stage].width
        if stage > 0:
            return self.stages[stage - 1].width
        return self.first.out if self.first else self.stem.out

    @cached_property
    def size(self) -> int:
        """Number of different networks, all resolutions together."""
        total = len(self.resolutions)
        for stage in self.stages:
            options = len(stage.kernels) * len(stage.expands)
            total *= sum(options**depth for depth in stage.depths)
        return total

    def fingerprint(self) -> str:
        """Hash of the space's content; a checkpoint of another space is refused by it."""
        text = json.dumps(self.model_dump(mode="json", exclude={"name"}), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def largest(self, resolution: int | None = None) -> Choice:
        """The network with the largest value of every option (at `resolution` pixels if given)."""
        return Choice(
            resolution or self.resolutions[-1],
            tuple(((stage.kernels[-1], stage.expands[-1]),) * stage.depths[-1] for stage in self.stages),
        )

    def smallest(self, resolution: int | None = None) -> Choice:
        """The network with the smallest value of every option (at `resolution` pixels if given)."""
        return Choice(
            resolution or self.resolutions[0],
            tuple(((stage.kernels[0], stage.expands[0]),) * stage.depths[0] for stage in self.stages),
        )

    def check(self, choice: Choice) -> None:
        """Raise InputError unless `choice` is a network of this space."""
        if choice.resolution not in self.resolutions:
            raise InputError(f"resolution {choice.resolution} is not in the space, which has {list(self.resolutions)}")
        if len(choice.stages) != len(self.stages):
            raise InputError(f"the choice has {len(choice.stages)} stages, the space {len(self.stages)}")
        for index, (blocks, stage) in enumerate(zip(choice.stages, self.stages, strict=True)):
            if len(blocks) not in stage.depths:
                raise InputError(f"stage {index}: depth {len(blocks)} is not in the space, which has {list(stage.depths)}")
            for kernel, expand in blocks:
                if kernel not in stage.kernels or expand not in stage.expands:
                    raise InputError(
                        f"stage {index}: kernel {kernel}, expand {expand:g} is not in the space, "
                        f"which has kernels {list(stage.kernels)} and expands {list(stage.expands)}"
                    )

    def config(self, choice: Choice) -> MobileConfig:
        """The network as the shared core's description, which is also what `moofa profile` reads."""
        self.check(choice)
        blocks: list[dict[str, Any]] = []
        if self.first:
            fixed = self.first.model_dump(exclude={"activation"})
            blocks.append({**fixed, "act": self.first.activation})
        for stage, chosen in zip(self.stages, choice.stages, strict=True):
            for index, (kernel, expand) in enumerate(chosen):
                stride = stage.stride if index == 0 else 1
                blocks.append(
                    {"kernel": kernel, "expand": expand, "out": stage.width, "stride": stride, "se": stage.se, "act": stage.activation}
                )
        return MobileConfig.model_validate(
            {
                "name": self.name,
                "resolution": choice.resolution,
                "in_channels": self.in_channels,
                "stem": self.stem.model_dump(),
                "blocks": blocks,
                "final_expand": self.final_expand,
                "feature_mix": self.feature_mix,
                "feature_mix_bn": self.feature_mix_bn,
                "classes": self.classes,
                "act": self.activation,
            }
        )

    @staticmethod
    def from_json(data: Any, where: str = "space") -> Space:
        """Validate plain data as a space.

        Raises:
            InputError: naming the field that is wrong.
        """
        try:
            return Space.model_validate(data)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(str(part) for part in first["loc"]) or "the object"
            raise InputError(f"{where}: {field}: {first['msg'].removeprefix('Value error, ')}") from error


def load_space(name_or_path: str, **changes: Any) -> Space:
    """A preset by name (`moofa.presets.names()`) or a space from a JSON file.

    Args:
        name_or_path: such as ``digits8``, ``moofa-v3`` or ``my_space.json``.
        changes: fields to replace, such as ``classes=5``; None leaves a field as it is.

    Raises:
        InputError: if there is neither a preset nor a file of that name, or the file is no space.
    """
    from moofa.presets import PRESETS

    changes = {key: value for key, value in changes.items() if value is not None}
    if name_or_path in PRESETS:
        data = PRESETS[name_or_path]().model_dump(mode="json")
    elif Path(name_or_path).suffix == ".json" or Path(name_or_path).exists():
        data = read_json(name_or_path, "space")
        if isinstance(data, dict) and "space" in data:
            data = data["space"]
        if not isinstance(data, dict):
            raise InputError(f"{name_or_path}: a space is a JSON object")
    else:
        raise InputError(f"unknown space {name_or_path!r}; presets are {', '.join(PRESETS)}, or give a JSON file")
    return Space.from_json({**data, **changes}, name_or_path)


class Genes:
    """Choices as integer rows: ``[resolution, then per stage: depth, (kernel, expand) per possible block]``, all indices.

    Entries of blocks that do not exist are 0, so that equal networks are equal rows.
    """

    def __init__(self, space: Space):
        self.space = space
        sizes = [len(space.resolutions)]
        self.depth_columns: list[int] = []
        self.block_columns: list[list[tuple[int, int]]] = []
        for stage in space.stages:
            self.depth_columns.append(len(sizes))
            sizes.append(len(stage.depths))
            columns = []
            for _ in range(stage.depths[-1]):
                columns.append((len(sizes), len(sizes) + 1))
                sizes += [len(stage.kernels), len(stage.expands)]
            self.block_columns.append(columns)
        self.sizes = np.array(sizes, dtype=np.int64)
        """Number of options per column, (columns,)."""

    def active(self, rows: np.ndarray) -> np.ndarray:
        """Which columns matter: (n, columns) bool; kernels and expands of missing blocks do not."""
        mask = np.ones(rows.shape, dtype=bool)
        for stage, depth, columns in zip(self.space.stages, self.depth_columns, self.block_columns, strict=True):
            depths = np.array(stage.depths)[rows[:, depth]]
            for index, (kernel, expand) in enumerate(columns):
                if index >= stage.depths[0]:
                    mask[:, kernel] = mask[:, expand] = depths > index
        return mask

    def canonical(self, rows: np.ndarray) -> np.ndarray:
        """The rows with entries of missing blocks set to 0."""
        return np.where(self.active(rows), rows, 0).astype(np.int16)

    def sample(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Draw rows, every entry uniform over its options: (count, columns) int16, canonical."""
        return self.canonical(rng.integers(0, self.sizes, size=(count, len(self.sizes))))

    def encode(self, choices: Sequence[Choice]) -> np.ndarray:
        """Choices to rows, (n, columns) int16.

        Raises:
            InputError: if a choice is not of this space.
        """
        rows = np.zeros((len(choices), len(self.sizes)), dtype=np.int16)
        for row, choice in zip(rows, choices, strict=True):
            self.space.check(choice)
            row[0] = self.space.resolutions.index(choice.resolution)
            for stage, blocks, depth, columns in zip(self.space.stages, choice.stages, self.depth_columns, self.block_columns, strict=True):
                row[depth] = stage.depths.index(len(blocks))
                for (kernel, expand), (k, e) in zip(columns, blocks, strict=False):
                    row[kernel], row[expand] = stage.kernels.index(k), stage.expands.index(e)
        return rows

    def decode(self, row: np.ndarray) -> Choice:
        """One row to a choice."""
        stages = []
        for stage, depth, columns in zip(self.space.stages, self.depth_columns, self.block_columns, strict=True):
            blocks = columns[: stage.depths[int(row[depth])]]
            stages.append(tuple((stage.kernels[int(row[k])], float(stage.expands[int(row[e])])) for k, e in blocks))
        return Choice(self.space.resolutions[int(row[0])], tuple(stages))

    def enumerate(self, limit: int = 2_000_000) -> np.ndarray:
        """Every network of the space once, (n, columns) int16.

        Raises:
            InputError: if there are more than `limit`.
        """
        if self.space.size > limit:
            raise InputError(f"space {self.space.name} has {self.space.size:.3g} networks, too many to list (limit {limit:,})")
        rows = np.arange(self.sizes[0], dtype=np.int16)[:, None]
        for stage in self.space.stages:
            options = np.array([(k, e) for k in range(len(stage.kernels)) for e in range(len(stage.expands))], dtype=np.int16)
            parts = []
            for index, depth in enumerate(stage.depths):
                block = np.zeros((1, 0), dtype=np.int16)
                for _ in range(depth):
                    block = np.hstack([np.repeat(block, len(options), axis=0), np.tile(options, (len(block), 1))])
                padding = np.zeros((len(block), 2 * (stage.depths[-1] - depth)), dtype=np.int16)
                parts.append(np.hstack([np.full((len(block), 1), index, dtype=np.int16), block, padding]))
            stage_rows = np.vstack(parts)
            rows = np.hstack([np.repeat(rows, len(stage_rows), axis=0), np.tile(stage_rows, (len(rows), 1))])
        return rows
