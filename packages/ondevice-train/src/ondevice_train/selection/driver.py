"""Drives a selector through training: asks it after each epoch, moves the selection, and answers what it wants to measure."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from edge_shared.evaluating import evaluating
from edge_shared.training import Epoch, Step
from torch import Tensor, nn
from torch.nn import functional as F

from ondevice_train.selection.importance import Norms
from ondevice_train.selection.install import SelectiveModel
from ondevice_train.selection.layers import INPUT, Selection
from ondevice_train.selection.selector import Outputs, Selector

Batch = tuple[Tensor, Tensor]


class Driver:
    """Hooks for `edge_shared.training.fit`; its state belongs into the checkpoint.

    Args:
        prepared: the model.
        selector: the method.
        probe: batches for full gradients (oracles), made when asked for.
        held_out: inputs of D_val for methods that compare outputs, made when asked for.
        on_select: told of every new selection, after it is in place (epoch that it is for, selection, optimizer).

    Attributes:
        overhead_seconds: time that each new selection took, by epoch.
    """

    def __init__(
        self,
        prepared: SelectiveModel,
        selector: Selector,
        *,
        probe: Callable[[], Iterable[Batch]],
        held_out: Callable[[], Tensor],
        on_select: Callable[[int, Selection, torch.optim.Optimizer | None], None] = lambda epoch, selection, optimizer: None,
    ) -> None:
        self.prepared = prepared
        self.selector = selector
        self._probe, self._held_out, self._on_select = probe, held_out, on_select
        self._sums: dict[str, Tensor] = {}
        self._steps = 0
        self._pending: Selection | None = None
        self.overhead_seconds: list[float] = []

    def start(self) -> None:
        """Make the first selection."""
        self.prepared.apply(self.selector.start(self))
        self._on_select(0, self.prepared.selection, None)

    def on_backward(self, step: Step) -> None:
        """Note gradient norms; let a method that acts on every step look."""
        if self.selector.needs_norms:
            for name, norms in self.prepared.gradient_norms().items():
                self._sums[name] = self._sums[name] + norms if name in self._sums else norms
            self._steps += 1
        if self.selector.each_step:
            slices: list[Tensor] = [m.slice for m in self.prepared.modules.values() if m.slice is not None]
            self._pending = self.selector.after_step(step, self.prepared.selection, slices)

    def on_step(self, step: Step) -> None:
        """Put a selection that a step made in place."""
        if self._pending is not None:
            self.prepared.apply(self._pending, step.optimizer)
            self._pending = None

    def on_epoch(self, epoch: Epoch) -> None:
        """Ask for the next epoch's selection and put it in place."""
        start = time.perf_counter()
        selection = self.selector.after_epoch(epoch.epoch, self, self.prepared.selection)
        self.prepared.apply(selection, epoch.optimizer)
        self.overhead_seconds.append(time.perf_counter() - start)
        self._sums, self._steps = {}, 0
        self._on_select(epoch.epoch + 1, selection, epoch.optimizer)

    def channel_norms(self) -> Norms:
        """See `Measured`."""
        return {name: (total / max(self._steps, 1)).double().cpu().numpy() for name, total in self._sums.items()}

    def full_norms(self) -> Norms:
        """See `Measured`."""
        return accumulate_norms(self.prepared, self._probe())

    @torch.no_grad()
    def outputs(self) -> Outputs:
        """See `Measured`."""
        model = self.prepared.model
        found: dict[str, np.ndarray] = {}
        hooks = [
            module.register_forward_hook(lambda module, inputs, output, name=name: found.__setitem__(name, _positions(output, module)))
            for name, module in self.prepared.modules.items()
        ]
        self.prepared.unchain()
        try:
            with evaluating(model):
                model(self._held_out())
        finally:
            self.prepared.chain()
            for hook in hooks:
                hook.remove()
        return found

    def state_bytes(self) -> int:
        """Bytes that the method keeps from epoch to epoch: norms, velocities, outputs on D_val."""

        def size(value: Any) -> int:
            if isinstance(value, dict):
                return sum(map(size, value.values()))
            return value.nbytes if isinstance(value, np.ndarray | Tensor) else 0

        return size(self.selector.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """The present selection, the method's state and the bases of compressed channels."""
        return {
            "selection": self.prepared.selection.state_dict(),
            "selector": self.selector.state_dict(),
            "sums": self._sums,
            "steps": self._steps,
            "codecs": {name: module.codec.state() for name, module in self.prepared.modules.items() if module.codec is not None},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back; the selection must be in place already (`restore_selection`), before the optimizer's state."""
        self.selector.load_state_dict(state["selector"])
        self._sums, self._steps = dict(state["sums"]), int(state["steps"])
        for name, kept in state.get("codecs", {}).items():
            codec = self.prepared.modules[name].codec
            assert codec is not None
            codec.load_state(kept)

    def restore_selection(self, state: dict[str, Any]) -> None:
        """Put the selection of a checkpoint in place."""
        self.prepared.apply(Selection.from_state(state["selection"]))


def accumulate_norms(
    prepared: SelectiveModel, batches: Iterable[Batch], loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
) -> Norms:
    """Gradient norm of every input channel, mean over `batches`, without any update; the selection in place is kept."""
    selection = prepared.selection
    before = {name: module.exchange(("input", None, None, -1)) for name, module in prepared.modules.items()}
    coded = {name: module.codec for name, module in prepared.modules.items()}
    for module in prepared.modules.values():
        module.codec = None  # these gradients are exact
    prepared.apply(Selection.everything(INPUT, prepared.layers))
    sums: dict[str, np.ndarray] = {}
    count = 0
    try:
        for inputs, labels in batches:
            prepared.model.zero_grad()
            loss(prepared.model(inputs), labels).backward()
            for name, norms in prepared.gradient_norms().items():
                sums[name] = sums.get(name, 0.0) + norms.double().cpu().numpy()
            count += 1
    finally:
        prepared.model.zero_grad()
        for name, state in before.items():
            prepared.modules[name].exchange(state)
            prepared.modules[name].codec = coded[name]
        prepared.selection = selection
    return {name: total / max(count, 1) for name, total in sums.items()}


def weight_norms(prepared: SelectiveModel) -> Norms:
    """L2 norm of the weights that read each input channel."""
    result = {}
    for name, module in prepared.modules.items():
        weight = module.weight.detach()
        groups = module.geometry[3] if module.is_conv else 1
        # (groups, O/groups, C/groups, ...) -> one norm per (group, channel of the group)
        grouped = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
        result[name] = grouped.square().sum((1, 3)).sqrt().reshape(-1).double().cpu().numpy()
    return result


def _positions(output: Tensor, module: nn.Module) -> np.ndarray:
    """Outputs as (samples, neurons, positions)."""
    value = output.detach().float().cpu()
    if getattr(module, "is_conv", False):
        return value.flatten(2).numpy()
    return value.reshape(value.shape[0], -1, value.shape[-1]).transpose(1, 2).numpy()
