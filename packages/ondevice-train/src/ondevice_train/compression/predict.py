"""Bytes that a prepared model will keep for its backward pass, before it runs: arithmetic for our own layers, torch's own
rules on shapes alone (fake tensors: no data, no memory) for all that is plain torch. Equal to the measured bytes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode, unset_fake_temporarily
from torch.utils._pytree import tree_leaves, tree_map

from ondevice_train.compression._codec import CompressedLayer
from ondevice_train.compression.layer_norm import CompactLayerNorm, layer_norm_bytes
from ondevice_train.compression.max_pool import CompactMaxPool2d
from ondevice_train.compression.recompute import Recomputed, recompute_bytes, recomputed
from ondevice_train.compression.wasi import FactoredLinear
from ondevice_train.ops.frozen_norm import FrozenBatchNorm2d, FrozenNormAct
from ondevice_train.ops.masks import PackedActivation, saved_bytes


@dataclass(frozen=True)
class Prediction:
    """Bytes kept by one forward pass, parameters and buffers apart.

    Attributes:
        bytes: all of it, every storage once.
        layers: by compressed or compact layer, by arithmetic.
        other: kept by plain torch operations.
    """

    bytes: int
    layers: dict[str, int]
    other: int


class _Counter:
    def __init__(self, parameters: dict[int, torch.UntypedStorage]) -> None:
        self.parameters = parameters
        self.kept: dict[int, torch.UntypedStorage] = {}
        self.arithmetic: dict[Hashable, int] = {}
        self.by_layer: dict[str, int] = {}
        self.depth = 0

    def keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.parameters and storage.nbytes() > 0:
            self.kept[storage._cdata] = storage
        return tensor

    def pack(self, tensor: Tensor) -> Tensor:
        return tensor if self.depth else self.keep(tensor)

    def add(self, name: str, sizes: dict[Hashable, int]) -> None:
        fresh = sum(size for key, size in sizes.items() if key not in self.arithmetic)
        self.arithmetic.update(sizes)
        self.by_layer[name] = self.by_layer.get(name, 0) + fresh


def _calls_alone(module: nn.Module) -> bool:
    return isinstance(module, CompressedLayer | FactoredLinear | CompactLayerNorm | CompactMaxPool2d | PackedActivation | FrozenBatchNorm2d)


def _rule(counter: _Counter, name: str, module: nn.Module, calls: list[int], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """What one call of one of our modules keeps, from the shapes of its inputs."""
    x = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
    calls[0] += 1
    itemsize = max(x.element_size(), 4)
    if (forward := recomputed(module)) is not None:
        if not any(parameter.requires_grad for parameter in module.parameters()) and not x.requires_grad:
            return
        if forward.rounds(args, kwargs):
            counter.add(name, {(name, calls[0]): recompute_bytes(tuple(x.shape), itemsize)})
        else:
            for value in (*args, *kwargs.values()):
                if isinstance(value, Tensor):
                    counter.keep(value)
    elif isinstance(module, CompressedLayer):
        if module.weight.requires_grad:
            counter.add(name, {(key, calls[0]) if isinstance(key, tuple) and key[0] != "cosine" else key: size
                               for key, size in module.codec.footprint(x.shape, itemsize).items()})  # fmt: skip
    elif isinstance(module, FactoredLinear):
        if module.left.requires_grad:
            counter.add(name, {(key, calls[0]): size for key, size in module.codec.footprint(x.shape, itemsize).items()})
    elif isinstance(module, CompactLayerNorm):
        if x.requires_grad or any(parameter.requires_grad for parameter in module.parameters()):
            counter.add(name, {(name, calls[0]): layer_norm_bytes(x.numel(), module.size, itemsize)})
    elif isinstance(module, CompactMaxPool2d):
        if x.requires_grad:
            counter.add(name, {(name, calls[0]): module.saved_bytes(x.shape)})
    elif isinstance(module, PackedActivation):
        if x.requires_grad:
            counter.add(name, {(name, calls[0]): saved_bytes(module.kind, x.numel(), module.bits)})
    elif isinstance(module, FrozenBatchNorm2d) and module.weight.requires_grad:
        counter.keep(x)


def _recurrent(counter: _Counter, name: str, module: nn.RNNBase) -> tuple[Callable[..., None], Callable[..., None]]:
    """Hooks around a stand-in of `module`. Torch's recurrent kernels tell the size of their workspace only when they run: this one runs."""
    parameters = {parameter.untyped_storage()._cdata for parameter in module.parameters()}
    calls = [0]

    def enter(*_: Any) -> None:
        counter.depth += 1

    def leave(stand_in: nn.Module, args: tuple[Any, ...], result: Any) -> None:
        counter.depth -= 1
        if counter.depth:
            return
        calls[0] += 1
        kept: dict[int, torch.UntypedStorage] = {}

        def pack(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
            return tensor

        def real(value: Any) -> Any:
            return torch.zeros(value.shape, dtype=value.dtype, requires_grad=value.requires_grad) if isinstance(value, Tensor) else value

        with unset_fake_temporarily(), torch.random.fork_rng(devices=[]):
            inputs = tree_map(real, args)
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                outputs = module(*inputs)
        # What comes in and goes out may be kept by the neighbours as well.
        for made, fake in zip(tree_leaves((inputs, outputs)), tree_leaves((args, result)), strict=True):
            if isinstance(made, Tensor) and kept.pop(made.untyped_storage()._cdata, None) is not None:
                counter.keep(fake)
        counter.add(name, {(name, calls[0]): sum(storage.nbytes() for key, storage in kept.items() if key not in parameters)})

    return enter, leave


def predict(model: nn.Module, example: Tensor) -> Prediction:
    """Predict what ``model(example)`` keeps for backward, for a plain or a prepared model, at its training flags.

    Args:
        model: is not changed and not run on data.
        example: an input batch; only its shape, type and device matter.

    Raises:
        ValueError: if a layer's ranks follow epsilon and no step has been made yet.
    """
    mode = FakeTensorMode()
    with FakeCopyMode(mode):
        shadow = copy.deepcopy(model)
    # The storages themselves: the address of one that is freed below would pass for a parameter when an activation gets it.
    storages = [tensor.untyped_storage() for tensor in (*shadow.parameters(), *shadow.buffers())]
    parameters = {storage._cdata: storage for storage in storages}
    counter = _Counter(parameters)
    for name, module in list(shadow.named_modules()):
        if isinstance(module, FrozenNormAct):  # the norm by its rule, what follows it inside by its own
            module.register_forward_pre_hook(_enter(counter, name, module, None), with_kwargs=True)
            module.get_submodule("drop").register_forward_pre_hook(_leave(counter))
            continue
        if isinstance(module, nn.RNNBase):
            enter, leave = _recurrent(counter, name, model.get_submodule(name))  # type: ignore[arg-type]
            module.register_forward_pre_hook(enter)
            module.register_forward_hook(leave)
            continue
        if not _calls_alone(module) and recomputed(module) is None:
            continue
        stand_in = module.original if _calls_alone(module) else module
        if stand_in is not module:
            shadow.set_submodule(name, stand_in)
            # An eager in-place op would make autograd clone what the packed form never keeps.
            if getattr(stand_in, "inplace", False):
                stand_in.inplace = False
        elif (forward := recomputed(module)) is not None:
            forward.remove()
        stand_in.register_forward_pre_hook(_enter(counter, name, module, None if stand_in is not module else forward), with_kwargs=True)
        stand_in.register_forward_hook(_leave(counter), always_call=True)
    with mode, torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(counter.pack, lambda tensor: tensor):
        shadow(mode.from_tensor(example))
    own = sum(counter.arithmetic.values())
    other = sum(storage.nbytes() for storage in counter.kept.values())
    return Prediction(own + other, counter.by_layer, other)


def _enter(counter: _Counter, name: str, module: nn.Module, forward: Recomputed | None) -> Callable[..., None]:
    calls = [0]

    def hook(stand_in: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if counter.depth == 0:
            if forward is not None:
                forward.install()
            _rule(counter, name, module, calls, args, kwargs)
            if forward is not None:
                forward.remove()
        counter.depth += 1

    return hook


def _leave(counter: _Counter) -> Callable[..., None]:
    def hook(*_: Any) -> None:
        counter.depth -= 1

    return hook
