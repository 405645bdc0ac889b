"""Puts selections into a torch model: replaces layers by forms that save little, and moves the trained slices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from edge_shared.errors import InputError
from edge_shared.memory import measure
from edge_shared.network import Layer, Network
from edge_shared.trace import trace
from torch import Tensor, nn

from ondevice_train.ops.frozen_norm import FrozenBatchNorm2d, freeze_norms, thaw_norms
from ondevice_train.ops.masks import PIECEWISE, PackedActivation, pack_activations, unpack_activations
from ondevice_train.ops.selective import Selective
from ondevice_train.selection.budget import CostModel
from ondevice_train.selection.keep import Keep, keeps_of
from ondevice_train.selection.layers import OUTPUT, Selection, selectable
from ondevice_train.selection.saved import Replaced, SavedModel, SavedPrediction

if TYPE_CHECKING:
    from torch.optim import Optimizer


def find_head(model: nn.Module, network: Network) -> str:
    """The classifier: the last linear layer (or convolution) on the way to the output.

    Raises:
        InputError: if there is none.
    """
    known = dict(model.named_modules())
    for layer in reversed(network.weighted()):
        if layer.module and isinstance(known.get(layer.module), nn.Linear | nn.Conv2d):
            return layer.module
    raise InputError("the model has no linear layer or convolution to train")


class SelectiveModel:
    """A model of which the classifier, some biases and the selected channels train, and which saves nothing for the rest.

    Made in place: every plain Conv2d and Linear becomes `Selective`, every BatchNorm2d frozen, every ReLU-like activation packed.
    `restore` undoes it, keeping the trained values. The module must be on the device where it will train.

    Args:
        model: any module that torch.export can trace.
        example: a batch of the size that will be trained on.
        head: module that always trains whole; the last layer if omitted.
        biases: biases of the last so many layers train (norms' biases where the layer has a norm); 0 none, -1 all.
        smooth_bits: bits for the derivatives of Hardswish, SiLU and GELU: 8 or 4; 32 leaves those activations to torch.
        keep_bits: bits of each element of a kept channel: 32 (exact) or 8, where `keeps` does not name the layer.
        keeps: how layers keep their selected channels: selection and compression under one budget, see `keep.plan_keeps`.
        fold: run convolutions together with the frozen norms and activations behind them, which is faster (`ops.chain`); a hook on a
            module inside of such a chain sees what the chain gives.

    Attributes:
        layers: what can be selected, in execution order.
        keeps: how each of them keeps its selected channels.
        network: the traced network, at the batch size of `example`.
        selection: what is selected at present.
        head, biases, saved, example: as given, found or derived.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Tensor,
        *,
        head: str | None = None,
        biases: int = 0,
        smooth_bits: int = 8,
        keep_bits: int = 32,
        keeps: Mapping[str, Keep] | None = None,
        fold: bool = True,
    ) -> None:
        if smooth_bits not in (4, 8, 32):
            raise InputError(f"smooth_bits is {smooth_bits}; choose 4, 8 or 32")
        if keep_bits not in (8, 32):
            raise InputError(f"keep_bits is {keep_bits}; choose 8 or 32")
        self.model = model
        self.example = example
        model.train()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()  # as it will run: a batch of one image may have no statistics
        self.network = trace(model, example)
        self.head = head or find_head(model, self.network)
        modules = dict(model.named_modules())
        if self.head not in modules:
            raise InputError(f"the model has no module {self.head!r} to be its head")
        self._trained_before = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        inside_head = {name for name in modules if name == self.head or name.startswith(f"{self.head}.")}
        chosen = {name for name, module in modules.items() if type(module) in (nn.Conv2d, nn.Linear) and supported(module)} - inside_head
        called = {layer.module for layer in self.network.weighted()}
        self.layers = selectable(self.network, chosen & {name for name in called if name}, exclude=inside_head)
        self.keeps = keeps_of([layer.name for layer in self.layers], keeps or {}, keep_bits)
        norm_of = norms_after(self.network, modules)
        self.bias_modules = self._bias_modules(biases, norm_of, modules)
        norms = freeze_norms(model)
        activations = pack_activations(model, smooth_bits if smooth_bits != 32 else 8, smooth=smooth_bits != 32)
        for layer in self.layers:
            form = self.keeps[layer.name]
            selective = Selective(modules[layer.name], 8 if form.form == "int8" else 32)  # type: ignore[arg-type]
            selective.codec = form.codec()
            model.set_submodule(layer.name, selective)
        self.modules: dict[str, Selective] = {layer.name: model.get_submodule(layer.name) for layer in self.layers}  # type: ignore[misc]
        for name in self.bias_modules:
            bias = model.get_submodule(name).bias
            assert isinstance(bias, Tensor)
            bias.requires_grad_(True)
        for parameter in model.get_submodule(self.head).parameters():
            parameter.requires_grad_(True)
        if fold:
            self._fold(norm_of, set(norms))
            self.chain()
        kinds = {name: model.get_submodule(name).kind for name in activations}
        self.saved = SavedModel(
            self.network,
            Replaced(frozenset(self.modules), frozenset(norms), kinds, smooth_bits if smooth_bits != 32 else 8, self.keeps),  # type: ignore[arg-type]
            biases=self.bias_modules,
            dense=[self.head],
        )
        self.selection = Selection.nothing()
        # Slices come and go with the selection: they average their gradients over processes by themselves.
        model._ddp_params_and_buffers_to_ignore = [f"{name}.slice" for name in self.modules]  # type: ignore[assignment]

    def _bias_modules(self, count: int, norm_of: dict[str, str], modules: dict[str, nn.Module]) -> list[str]:
        count = len(self.layers) if count == -1 else count
        if count > len(self.layers):
            raise InputError(f"biases of the last {count} layers are asked for; the model has {len(self.layers)}")
        names = [norm_of.get(layer.name, layer.name) for layer in self.layers[len(self.layers) - count :]] if count else []
        return [name for name in names if isinstance(getattr(modules[name], "bias", None), nn.Parameter)]

    def _fold(self, norm_of: dict[str, str], norms: set[str]) -> None:
        for name, norm_name in followed_alone(self.network, norm_of).items():
            module, norm = self.modules.get(name), self.model.get_submodule(norm_name)
            trains = module is not None and module.bias is not None and module.bias.requires_grad
            if module is not None and norm_name in norms and isinstance(norm, FrozenBatchNorm2d) and not trains:
                module.absorb(norm)

    def chain(self) -> None:
        """Run convolutions of which only the next one reads the result as one operation; `unchain` undoes it."""
        calls = Counter(layer.module for layer in self.network.layers)
        producers = {layer.output: layer for layer in self.network.layers}
        joined: dict[str, list[Selective]] = {}  # output tensor of the last link -> links
        for layer in self.network.layers:
            module = self.modules.get(layer.module or "")
            if module is None or not module.is_conv or calls[layer.module] > 1:
                continue
            links = [*joined.pop(layer.inputs[0], []), module]
            output = layer.output
            while (reader := self._only_reader(output)) is not None and calls[reader.module] == 1:
                follower = self.model.get_submodule(reader.module or "")
                if isinstance(follower, PackedActivation) and module.activation is None:
                    module.absorb_activation(follower)
                elif not (isinstance(follower, FrozenBatchNorm2d) and follower.absorbed and producers[output] is layer):
                    break
                output = reader.output
            links[0].join(links[1:])
            if reader is not None:
                joined[output] = links

    def unchain(self) -> None:
        """Let every layer work by itself, so that hooks see its own output (normalised, where the norm is folded)."""
        for module in self.modules.values():
            module.part()

    def _only_reader(self, tensor: str) -> Layer | None:
        readers = self.network.consumers[tensor]
        return readers[0] if len(readers) == 1 and tensor not in self.network.outputs else None

    def costs(self, accounting: str, unit: str, optimizer_slots: int = 0) -> CostModel:
        """The cost model of this network's channels; ``bytes`` counts at the batch size of the example."""
        batch = self.example.shape[0]
        fixed = sum(p.numel() for p in self._whole_parameters()) * 4 * (1 + optimizer_slots)

        def base(touched: frozenset[str]) -> int:
            return self.saved.base(touched, unit) + fixed if accounting == "bytes" else 0

        return CostModel(self.layers, unit, accounting, batch, optimizer_slots, self.keeps, base)

    def _whole_parameters(self) -> list[nn.Parameter]:
        """Trained parameters that are no slices: the head and the biases."""
        slices = {id(module.slice) for module in self.modules.values() if module.slice is not None}
        return [p for p in self.model.parameters() if p.requires_grad and id(p) not in slices]

    def parameters(self) -> list[nn.Parameter]:
        """What an optimizer must hold now: head and biases, then the slices in layer order."""
        slices = [module.slice for module in self.modules.values() if module.slice is not None]
        return [*self._whole_parameters(), *slices]

    def apply(self, selection: Selection, optimizer: Optimizer | None = None) -> None:
        """Train exactly `selection` from now on.

        Args:
            selection: names of `layers` with their channels.
            optimizer: one made over `parameters()`: its first group gets the new slices, with the state (momentum) of channels that
                stay; what leaves is written to the weight and stops at once.
        """
        if unknown := set(selection.channels) - set(self.modules):
            raise InputError(f"the selection names layer {sorted(unknown)[0]!r}, which cannot be selected")
        kept: dict[str, tuple[Tensor, dict]] = {}
        for name, module in self.modules.items():
            new = selection.channels.get(name, ())
            old = tuple(module.channels.tolist()) if module.channels is not None else ()
            if new == old and (not new or module.unit == selection.unit):
                continue
            if optimizer is not None and module.slice is not None:
                state = optimizer.state.pop(module.slice, {})
                if module.channels is not None and module.unit == selection.unit:
                    kept[name] = (module.channels, state)
            module.select(list(new), "input" if selection.unit != OUTPUT else "output")
            if optimizer is not None and module.slice is not None and name in kept:
                optimizer.state[module.slice] = _carry(module, *kept[name])
        self.selection = selection
        if optimizer is not None:
            optimizer.param_groups[0]["params"] = self.parameters()

    def predict(self, selection: Selection | None = None) -> SavedPrediction:
        """Bytes that a forward pass of the example's size keeps."""
        return self.saved.predict(self.selection if selection is None else selection)

    def measure(self) -> int:
        """Bytes that a forward pass of the example really keeps: unique storages of saved tensors, parameters and buffers apart."""
        for module in self.modules.values():
            module.ready()
        indices = [module.channels for module in self.modules.values() if module.channels is not None]
        result = measure.saved_bytes(lambda: self.model(self.example), [*self.model.parameters(), *self.model.buffers(), *indices])
        return result.bytes

    def training_bytes(self, optimizer: Optimizer | None = None) -> dict[str, int]:
        """What training holds beside the plain model, measured: saved activations, gradients, slices, indices, optimizer state."""
        parameters = self.parameters()
        whole = {id(p) for p in self._whole_parameters()}
        states = optimizer.state.values() if optimizer is not None else []
        result = {
            "saved": self.measure(),
            "gradients": sum(p.numel() * p.element_size() for p in parameters),
            "slices": sum(p.numel() * p.element_size() for p in parameters if id(p) not in whole),
            "indices": sum(m.channels.numel() * 8 for m in self.modules.values() if m.channels is not None),
            "optimizer": sum(t.numel() * t.element_size() for s in states for t in s.values() if isinstance(t, Tensor) and t.ndim),
        }
        return {**result, "total": sum(result.values())}

    def gradient_norms(self) -> dict[str, Tensor]:
        """L2 norm of the present gradient of each selected channel, by layer, in the order of its channels."""
        norms = {}
        for name, module in self.modules.items():
            if module.slice is not None and module.slice.grad is not None:
                grad = module.slice.grad
                dims = [d for d in range(grad.ndim) if d != (1 if module.unit == "input" else 0)]
                norms[name] = torch.linalg.vector_norm(grad, dim=dims)
        return norms

    def restore(self) -> nn.Module:
        """Put the plain torch layers back, in place, with the trained values; returns the model."""
        for name, module in self.modules.items():
            original = module.original
            module.select(None)
            module.release()
            self.model.set_submodule(name, original)
        thaw_norms(self.model)
        unpack_activations(self.model)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in self._trained_before)
        return self.model


def supported(module: nn.Module) -> bool:
    """Whether our operations know this convolution's padding (those of a linear layer always)."""
    return not isinstance(module, nn.Conv2d) or (module.padding_mode == "zeros" and not isinstance(module.padding, str))


def norms_after(network: Network, modules: dict[str, nn.Module]) -> dict[str, str]:
    """For each weighted module the BatchNorm2d that follows it, whose bias then is the layer's bias."""
    found = {}
    for layer in network.weighted():
        for reader in network.consumers[layer.output]:
            if layer.module and reader.module and type(modules.get(reader.module)) is nn.BatchNorm2d:
                found[layer.module] = reader.module
    return found


def followed_alone(network: Network, norm_of: dict[str, str]) -> dict[str, str]:
    """Those of `norms_after` where nothing else reads the layer's output, and both are called once."""
    calls = Counter(layer.module for layer in network.layers)
    readers = {layer.module: network.consumers[layer.output] for layer in network.weighted()}
    return {name: norm for name, norm in norm_of.items() if calls[name] == calls[norm] == 1 and len(readers[name]) == 1}


def _carry(module: Selective, old_channels: Tensor, state: dict) -> dict:
    """Optimizer state for the new slice: that of channels which stay, zero for the others."""
    assert module.slice is not None
    assert module.channels is not None
    axis = 1 if module.unit == "input" else 0
    position = {int(channel): index for index, channel in enumerate(old_channels)}
    pairs = [(new, position[int(c)]) for new, c in enumerate(module.channels) if int(c) in position]
    result = {}
    for key, value in state.items():
        if isinstance(value, Tensor) and value.ndim == module.slice.ndim:
            fresh = torch.zeros_like(module.slice)
            if pairs:
                new, old = map(list, zip(*pairs, strict=True))
                fresh.index_copy_(axis, torch.tensor(new), value.index_select(axis, torch.tensor(old)))
            result[key] = fresh.detach()
        else:
            result[key] = value
    return result


def replaced_names(model: nn.Module) -> dict[str, Iterable[str]]:
    """Names of the replaced modules by kind, for reports."""
    found: dict[str, list[str]] = {"selective": [], "frozen_norm": [], "exact_mask": [], "rounded_derivative": []}
    for name, module in model.named_modules():
        if isinstance(module, Selective):
            found["selective"].append(name)
        elif isinstance(module, FrozenBatchNorm2d):
            found["frozen_norm"].append(name)
        elif isinstance(module, PackedActivation):
            found["exact_mask" if module.kind in PIECEWISE else "rounded_derivative"].append(name)
    return dict(found)
