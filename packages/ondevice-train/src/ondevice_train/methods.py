"""The training methods that `ondevice-train fit` knows, by name: one table for selection, compression and baselines.

A method is prepared lazily: the table holds ``module:function`` so that listing names imports nothing. The function takes a
model, an example batch and `MethodOptions`, changes the model in place, and returns a `Prepared`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from edge_shared.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class MethodOptions:
    """What a method may ask of the command line.

    Attributes:
        budget: bytes of training memory, or None for no limit.
        last: number of last convolutions and linear layers (head apart) that may train; None for all.
        head: qualified name of the classifier, which always trains.
        seed: seed of every random choice.
        options: settings of one method, such as ``{"epsilon": 0.8, "rank": 4}``.
    """

    budget: int | None = None
    last: int | None = None
    head: str | None = None
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Prepared:
    """A model made ready to train.

    Attributes:
        predicted_saved_bytes: bytes that one forward pass of the example keeps for the backward pass (parameters apart),
            or None where the method makes no promise.
        predict: the same for the model as it is now (ranks may have changed); None where there is no such arithmetic.
        restore: puts the plain torch modules back, in place, with the trained values.
        state_dict, load_state_dict: the method's own state for checkpoints (bases, ranks), plain data and tensors.
    """

    predicted_saved_bytes: int | None
    restore: Callable[[], None]
    state_dict: Callable[[], dict[str, Any]] = dict
    load_state_dict: Callable[[dict[str, Any]], None] = lambda state: None
    predict: Callable[[], int] | None = None


@dataclass(frozen=True)
class Method:
    """One row of the table: `entry` is ``module:function`` of ``(model, example, MethodOptions) -> Prepared``."""

    summary: str
    family: Literal["selection", "compression", "baseline"]
    entry: str | None = None

    def prepare(self, model: nn.Module, example: Tensor, options: MethodOptions) -> Prepared:
        """Import the method and apply it to `model` in place."""
        if self.entry is None:
            raise InputError("this method chooses channels; fit drives it through ondevice_train.selection")
        module, function = self.entry.split(":")
        return getattr(import_module(module), function)(model, example, options)


SELECTION: dict[str, Method] = {
    "sparse-update": Method("static scheme: channels of largest (or smallest) weight norm, or random", "selection"),
    "trady": Method("uniform random input channels of the layers that hold 97 % of the gradient, redrawn every epoch", "selection"),
    "medyate": Method("input channels drawn by last epoch's gradient norm in layers chosen by LaRa", "selection"),
    "full-random": Method("uniform random input channels of all layers, redrawn every epoch", "selection"),
    "det-rgn": Method("input channels of largest gradient norm per cost, from full gradients (an oracle)", "selection"),
    "velocity": Method("output neurons of largest velocity per parameter under a budget", "selection"),
    "neq": Method("output neurons that are not at equilibrium (no budget)", "selection"),
    "scotti": Method("output neurons above a velocity threshold that is learned", "selection"),
    "last-k": Method("all channels of the last k layers that fit the budget", "selection"),
    "bias-only": Method("biases only", "selection"),
    "head-only": Method("the classifier only", "selection"),
}

BASELINES: dict[str, Method] = {
    "lora": Method("low-rank adapters of PEFT on every linear layer and convolution", "baseline", "ondevice_train.selection.lora:prepare"),
    "qas": Method("an int8 graph (held in floats), its gradients scaled (Lin 2022)", "baseline", "ondevice_train.selection.qas:prepare"),
}

_FITTING = "ondevice_train.compression.fitting"

COMPRESSION: dict[str, Method] = {
    "asi": Method("low-rank inputs by warm subspace iteration, our fast order", "compression", f"{_FITTING}:asi"),
    "asi-paper": Method("low-rank inputs by subspace iteration as published (ICML 2025)", "compression", f"{_FITTING}:asi_paper"),
    "hosvd": Method("low-rank inputs by HOSVD at every step (NeurIPS 2024)", "compression", f"{_FITTING}:hosvd"),
    "svd": Method("low-rank inputs by SVD at every step, rebuilt for dW", "compression", f"{_FITTING}:svd"),
    "wasi": Method("factored linear weights trained as factors, low-rank inputs", "compression", f"{_FITTING}:wasi"),
    "fixed-bases": Method("inputs projected on bases that never change (calibrated or cosine)", "compression", f"{_FITTING}:fixed_bases"),
    "quantise": Method("inputs kept in 8 or 4 bits", "compression", f"{_FITTING}:quantise"),
    "gradient-filter": Method(
        "inputs and gradients pooled on patches; dX approximate (CVPR 2023)", "compression", f"{_FITTING}:gradient_filter"
    ),
    "auto": Method("per layer the fastest of exact, low rank, 8 or 4 bits within the budget", "compression", f"{_FITTING}:auto"),
    "checkpointing": Method("blocks run again in the backward pass, exact", "baseline", f"{_FITTING}:checkpointing"),
    "plain": Method("plain PyTorch on the last layers or all", "baseline", f"{_FITTING}:plain"),
}
"""Activation and weight compression of the trained layers, and the baselines that they are held against."""

METHODS: dict[str, Method] = {**SELECTION, **COMPRESSION, **BASELINES}


def method(name: str) -> Method:
    """The method of that name.

    Raises:
        InputError: listing the known names.
    """
    if name not in METHODS:
        raise InputError(f"--method {name}: unknown; known: {', '.join(METHODS)}")
    return METHODS[name]
