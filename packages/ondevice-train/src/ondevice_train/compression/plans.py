"""A plan: what each layer of a model keeps for its backward pass. Plain data, from the planner to `prepare` and to JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from edge_shared.errors import InputError

CHOICES = ("exact", "compress", "shortcut", "quantise", "filter", "checkpoint", "freeze")


@dataclass(frozen=True)
class LayerChoice:
    """One Conv2d or Linear.

    Attributes:
        name: qualified name of the module.
        kind: ``"conv"`` or ``"linear"``.
        shape: of its input, batch first.
        choice: ``"exact"`` (plain torch), ``"compress"`` (low rank, input rebuilt for dW), ``"shortcut"`` (low rank, dW by
            contraction), ``"quantise"`` (8 or 4 bits), ``"filter"`` (gradient filter), ``"checkpoint"`` (exact; its
            block, one of the plan's `blocks`, is run again), ``"freeze"`` (not trained, keeps nothing).
        ranks: one per mode, or None where epsilon chooses them at every step.
        epsilon: explained variance, for methods that follow it.
        weight_rank: rank of the factored weight (WASI).
        bits, patch: of quantise and filter.
        bytes: kept by this layer, predicted.
        perplexity: |dW - dW_exact| on the calibration batch (gradient error; 0 where dW is exact).
        milliseconds: measured cost of keeping the input and making dW, where the planner timed it.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    choice: str
    ranks: tuple[int, ...] | None = None
    epsilon: float | None = None
    weight_rank: int | None = None
    bits: int = 8
    patch: int = 2
    bytes: int = 0
    perplexity: float | None = None
    milliseconds: float | None = None


@dataclass(frozen=True)
class Plan:
    """Choices for the trained layers and for what stands between them.

    Attributes:
        method: name in `ondevice_train.methods`.
        layers: in execution order.
        trained: names of the modules whose parameters train; None for all.
        pack: ReLU-like activations keep one bit, smooth ones `smooth_bits`, BatchNorms keep nothing (frozen statistics,
            trained bias), LayerNorms 8 bits, max pooling a byte an output; attention is run again from an 8-bit input.
        smooth_bits: 8 or 4.
        blocks: modules run again in the backward pass (exact checkpointing).
        basis: of ``fixed-bases``.
        half_core: bfloat16 cores.
        budget: bytes asked for, if any.
        predicted_bytes: of the whole model: everything that one forward pass keeps, parameters and buffers apart.
        vanilla_bytes: the same for the plain model with the same trained layers.
        other_bytes: of `predicted_bytes`, what plain torch operations keep that no method here handles.
    """

    method: str
    layers: tuple[LayerChoice, ...]
    trained: tuple[str, ...] | None = None
    pack: bool = True
    smooth_bits: int = 8
    blocks: tuple[str, ...] = ()
    basis: str = "calibrated"
    half_core: bool = False
    budget: int | None = None
    predicted_bytes: int | None = None
    vanilla_bytes: int | None = None
    other_bytes: int | None = None

    @property
    def layer_bytes(self) -> int:
        """Bytes that the planned layers keep (the papers' count)."""
        return sum(layer.bytes for layer in self.layers)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @staticmethod
    def from_json(data: Any) -> Plan:
        """Rebuild from `to_json`'s data.

        Raises:
            InputError: naming the field that is unknown, missing or of the wrong kind.
        """
        try:
            known = {field.name for field in fields(Plan)}
            if unknown := set(data) - known:
                raise InputError(f"plan: unknown field {sorted(unknown)[0]!r}; known: {', '.join(sorted(known))}")
            layers = []
            for item in data["layers"]:
                values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in item.items()}
                layer = LayerChoice(**values)
                if layer.choice not in CHOICES:
                    raise InputError(f"plan: layer {layer.name!r} has choice {layer.choice!r}; known: {', '.join(CHOICES)}")
                layers.append(layer)
            rest: dict[str, Any] = {
                key: tuple(value) if isinstance(value, list) else value for key, value in data.items() if key != "layers"
            }
            return Plan(layers=tuple(layers), **rest)
        except (TypeError, KeyError, AttributeError) as error:
            raise InputError(f"this is no plan: {type(error).__name__} {error}") from error
