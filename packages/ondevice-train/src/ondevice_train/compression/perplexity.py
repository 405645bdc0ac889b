"""Gradient-error tables: what each rank choice of each layer costs in bytes and in |dW - dW_exact| (ASI's "perplexity").

One forward and one backward pass of the model, its blocks run again in the latter. Since dX is exact at any rank, every layer can be
judged in the same pass; each is judged the moment its input and its output gradient are there, so that neither piles up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from edge_shared.errors import InputError
from edge_shared.evaluating import evaluating
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import CheckpointError

from ondevice_train.compression._codec import Codec
from ondevice_train.compression._geometry import Geometry, geometry_of
from ondevice_train.compression.checkpointing import blocks
from ondevice_train.compression.recompute import Recomputed, recomputed
from ondevice_train.ops.frozen_norm import freeze_norms, thaw_norms
from ondevice_train.ops.masks import pack_activations, unpack_activations

EPSILONS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class Option:
    """One way to keep one layer's input.

    Attributes:
        label: such as ``"shortcut 0.8"``.
        codec: makes a fresh codec.
        ranks, epsilon, bits: what the choice fixes.
    """

    choice: str
    codec: Callable[[], Codec]
    ranks: tuple[int, ...] | None = None
    epsilon: float | None = None
    bits: int = 8


@dataclass(frozen=True)
class Judged:
    """An option with its cost: bytes by arithmetic, gradient error, and (if timed) milliseconds of encoding plus dW."""

    option: Option | None
    choice: str
    bytes: int
    perplexity: float
    milliseconds: float | None = None


@dataclass
class LayerTable:
    """All judged options of one layer; `norm` is |dW_exact|."""

    name: str
    kind: str
    shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    norm: float = 0.0
    judged: list[Judged] = field(default_factory=list)


def layers_of(model: nn.Module, example: Tensor) -> list[tuple[str, nn.Module, tuple[int, ...], tuple[int, ...]]]:
    """Conv2d and Linear modules that run on the example, in order of execution, with input and output shapes.

    Modules that are called more than once in a pass (shared weights), or only as holders of weights, are left out.
    """
    seen: dict[str, list[tuple[nn.Module, tuple[int, ...], tuple[int, ...]]]] = {}
    hooks = []
    for name, module in model.named_modules():
        if geometry_of(module) is not None:

            def note(module: nn.Module, args: tuple[Tensor, ...], y: Tensor, name: str = name) -> None:
                seen.setdefault(name, []).append((module, tuple(args[0].shape), tuple(y.shape)))

            hooks.append(module.register_forward_hook(note))
    try:
        with evaluating(model), torch.no_grad():
            model(example)
    finally:
        for hook in hooks:
            hook.remove()
    return [(name, *calls[0]) for name, calls in seen.items() if len(calls) == 1]


def loss_of(output: Any, labels: Tensor | None) -> Tensor:
    """Cross entropy; without labels, of classes dealt out in turn (a stand-in that any classifier accepts).

    Of an output of several tensors (a dict, a tuple) the first that carries a gradient counts.

    Raises:
        InputError: if there is none.
    """
    found = [value for value in tree_leaves(output) if isinstance(value, Tensor) and value.requires_grad]
    if not found:
        raise InputError(f"the model gives a {type(output).__name__} without a tensor that carries a gradient; there is nothing to train")
    output = found[0]
    if output.ndim != 2:
        return output.square().mean()
    if labels is None:
        labels = torch.arange(output.shape[0], device=output.device) % output.shape[1]
    return nn.functional.cross_entropy(output, labels)


def judge(
    model: nn.Module,
    example: Tensor,
    labels: Tensor | None,
    names: Sequence[str],
    options: Callable[[str, nn.Module, Tensor], list[Option]],
    *,
    timed: bool = False,
) -> list[LayerTable]:
    """Judge options for the named layers in one pass of the model, norms in evaluation mode.

    Args:
        model: plain; left as it was, gradients included.
        example, labels: one batch.
        names: of layers (see `layers_of`).
        options: gives the options of a layer, from its name, module and input.
        timed: also measure the milliseconds that each option takes to encode and to make dW (median of 3).

    Raises:
        InputError: if a gradient is not finite.
    """
    if torch.is_inference_mode_enabled():
        raise InputError("planning needs gradients: call it outside of torch.inference_mode()")
    tables: dict[str, LayerTable] = {}
    hooks = []
    modules = dict(model.named_modules())
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    # Choosing must not take the memory that the choice saves: norms and activations keep what an exact gradient needs and no more, and
    # blocks are run again in the backward pass. Of a layer inside one, the first call tells the shapes and brings the gradient, the
    # second its input; either may come first.
    if all(norm.track_running_stats for norm in model.modules() if isinstance(norm, nn.BatchNorm2d)):
        freeze_norms(model)
    pack_activations(model, smooth=False)
    again = [Recomputed(modules[name], eight_bit=False) for name in blocks(model) if recomputed(modules[name]) is None]
    twice = {id(part) for block in again for part in block.module.modules()}
    inputs: dict[str, Tensor] = {}
    grads: dict[str, Tensor] = {}
    for name in names:

        def judged(module: nn.Module, name: str) -> None:
            if name in inputs and name in grads:
                x, grad = inputs.pop(name), grads.pop(name)
                wide = torch.promote_types(x.dtype, torch.float32)  # decompositions have no half precision, nor do layers encode in it
                with torch.no_grad():
                    _judge_layer(tables[name], module, x.to(wide), grad.to(wide), options(name, module, x.to(wide)), timed, x.nbytes)

        def enter(module: nn.Module, args: tuple[Tensor, ...], name: str = name) -> None:
            if id(module) not in twice or name in tables:
                inputs[name] = args[0].detach()  # the layer keeps it too, so that autograd lets nothing change it
                judged(module, name)

        def leave(module: nn.Module, args: tuple[Tensor, ...], y: Tensor, name: str = name) -> None:
            if name in tables:
                return
            x = args[0]
            kind = "conv" if x.ndim == 4 and isinstance(module, nn.Conv2d) else "linear"
            tables[name] = LayerTable(name, kind, tuple(x.shape), tuple(y.shape))

            def arrived(grad: Tensor) -> None:
                grads[name] = grad.detach()
                judged(module, name)

            y.register_hook(arrived)

        hooks.append(modules[name].register_forward_pre_hook(enter))
        hooks.append(modules[name].register_forward_hook(leave))
    for block in again:
        block.install()

    def pass_once() -> Tensor:
        with torch.enable_grad():
            start: list[Tensor] = [modules[name].weight for name in names]  # type: ignore[misc]
            for parameter in start:
                parameter.requires_grad_(True)
            loss = loss_of(model(example), labels)
            torch.autograd.grad(loss, start, allow_unused=True)
        return loss.detach()

    try:
        with evaluating(model):
            try:
                loss = pass_once()
            except CheckpointError:
                # A block that remembers something for evaluation (LeViT's attention biases) saves less when it runs again; now it has it.
                for found in (tables, inputs, grads):
                    found.clear()
                loss = pass_once()
    finally:
        for block in again:
            block.remove()
        for hook in hooks:
            hook.remove()
        unpack_activations(model)
        thaw_norms(model)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
    if not torch.isfinite(loss):
        raise InputError(f"the loss of the example batch is {float(loss)}; ranks cannot be chosen from it")
    return [tables[name] for name in names]


def _judge_layer(table: LayerTable, module: nn.Module, x: Tensor, grad: Tensor, options: list[Option], timed: bool, dense: int) -> None:
    geometry = geometry_of(module)
    assert geometry is not None
    exact = geometry.weight_gradient(x, grad)
    table.norm = float(exact.norm())
    cost = _milliseconds(lambda: geometry.weight_gradient(x, grad)) if timed else None
    table.judged.append(Judged(None, "exact", dense, 0.0, cost))
    for option in options:
        codec = option.codec()
        approximate = _round_trip(codec, x, grad, geometry)
        took = _milliseconds(lambda codec=codec: _round_trip(codec, x, grad, geometry)) if timed else None  # type: ignore[misc]
        size = sum(codec.footprint(x.shape, x.element_size()).values())
        table.judged.append(Judged(option, option.choice, size, float((approximate - exact).norm()), took))
    table.judged.append(Judged(None, "freeze", 0, table.norm, 0.0 if timed else None))


def _round_trip(codec: Codec, x: Tensor, grad: Tensor, geometry: Geometry) -> Tensor:
    return codec.weight_gradient(codec.encode(x), grad, geometry)


def _milliseconds(function: Callable[[], object], repeats: int = 3) -> float:
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return sorted(times)[repeats // 2] * 1000
