"""Put a plan into a model in place, and take it out again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from edge_shared.errors import InputError
from torch import nn

from ondevice_train.compression._codec import Codec, CompressedLayer
from ondevice_train.compression._geometry import ConvGeometry, geometry_of
from ondevice_train.compression._tucker_codec import TuckerCodec
from ondevice_train.compression.layer_norm import CompactLayerNorm
from ondevice_train.compression.max_pool import CompactMaxPool2d, fits
from ondevice_train.compression.plans import LayerChoice, Plan
from ondevice_train.compression.recompute import Recomputed, is_attention, recomputed
from ondevice_train.compression.wasi import FactoredLinear
from ondevice_train.ops.frozen_norm import FrozenBatchNorm2d, FrozenNormAct, is_norm_act, thaw_norms
from ondevice_train.ops.masks import pack_activations, unpack_activations
from ondevice_train.ops.selective import Selective

_FLAGS = "_ondevice_train_requires_grad"


def codec_for(choice: LayerChoice, plan: Plan, module: nn.Module) -> Codec:
    """The codec that a layer's choice names."""
    from ondevice_train.compression.asi import ASI
    from ondevice_train.compression.asi_paper import ASIPaper
    from ondevice_train.compression.fixed_bases import FixedBases
    from ondevice_train.compression.gradient_filter import GradientFilter
    from ondevice_train.compression.hosvd import HOSVD
    from ondevice_train.compression.plain import Nothing
    from ondevice_train.compression.quantise import Quantise
    from ondevice_train.compression.svd import SVD

    image = choice.kind == "conv"
    if choice.choice == "freeze":
        return Nothing()
    if choice.choice == "quantise":
        return Quantise(choice.bits, image)
    if choice.choice == "filter":
        geometry = geometry_of(module)
        assert isinstance(geometry, ConvGeometry)
        return GradientFilter(choice.patch, geometry)
    shortcut = choice.choice == "shortcut"
    # Under a budget the ranks of the plan are a promise; without one these methods choose them at every step.
    follows = choice.epsilon if plan.budget is None else None
    if plan.method == "svd":
        return SVD(follows, choice.ranks[0] if choice.ranks else None)
    if plan.method == "hosvd":
        return HOSVD(follows, choice.ranks, order="paper" if shortcut else "rebuild")
    assert choice.ranks is not None
    if plan.method == "asi-paper":
        return ASIPaper(choice.ranks, order="paper" if shortcut else "rebuild")
    order = "project" if shortcut else "rebuild"
    if plan.method == "fixed-bases":
        return FixedBases(choice.ranks, plan.basis, order, plan.half_core, image)  # type: ignore[arg-type]
    return ASI(choice.ranks, order, plan.half_core)  # type: ignore[arg-type]


def set_trained(model: nn.Module, names: tuple[str, ...] | None) -> None:
    """Let only the parameters of the named modules train (all if None); BatchNorms elsewhere stay as they are."""
    if names is None:
        return
    chosen = set(names)
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(name in chosen)


def prepare(model: nn.Module, plan: Plan) -> nn.Module:
    """Replace layers of `model`, in place, by their compressed forms; parameters are shared, `restore` undoes it.

    Args:
        model: any torch model; Conv2d and Linear modules named by the plan, activations and norms that are modules.
        plan: from `ondevice_train.compression.planner.plan`, or built by hand.

    Raises:
        InputError: if the plan names a module that the model lacks or that cannot be compressed, or the model is prepared already.
    """
    if hasattr(model, _FLAGS):
        raise InputError("the model is prepared already; call restore(model) first")
    modules = dict(model.named_modules())
    for choice in plan.layers:
        if choice.name not in modules:
            raise InputError(f"the plan names layer {choice.name!r}, which the model does not have")
        if geometry_of(modules[choice.name]) is None:
            raise InputError(
                f"layer {choice.name!r} is a {type(modules[choice.name]).__name__}; only zero-padded Conv2d and Linear can be compressed"
            )
    setattr(model, _FLAGS, {name: parameter.requires_grad for name, parameter in model.named_parameters()})
    set_trained(model, plan.trained)
    for choice in plan.layers:
        module = modules[choice.name]
        if choice.choice == "freeze":
            module.weight.requires_grad_(False)  # type: ignore[union-attr]
        if choice.choice in ("exact", "checkpoint"):
            continue
        codec = codec_for(choice, plan, module)
        if choice.weight_rank is not None:
            assert isinstance(module, nn.Linear)
            assert isinstance(codec, TuckerCodec)
            model.set_submodule(choice.name, FactoredLinear(module, codec, rank=choice.weight_rank))
        else:
            model.set_submodule(choice.name, CompressedLayer(module, codec))
    if plan.pack:
        compact(model, plan.smooth_bits)
    for name in plan.blocks:
        if name not in modules:
            raise InputError(f"the plan runs block {name!r} again, which the model does not have")
        Recomputed(modules[name], eight_bit=False).install()
    return model


def compact(model: nn.Module, smooth_bits: int = 8) -> None:
    """Make what stands between the layers keep less: activations, norms, attention. Only what trains or carries a gradient."""
    for name, module in list(model.named_modules()):
        # A norm without running statistics has nothing to freeze: it stays as it is, and what it keeps counts.
        if name and (type(module) is nn.BatchNorm2d or is_norm_act(module)) and module.running_mean is not None:
            trained = module.bias is not None and module.bias.requires_grad
            frozen = FrozenNormAct(module) if is_norm_act(module) else FrozenBatchNorm2d(module)  # type: ignore[arg-type]
            frozen.weight.requires_grad_(False)
            frozen.bias.requires_grad_(trained)
            model.set_submodule(name, frozen)
    fold_frozen(model)
    pack_activations(model, bits=smooth_bits)
    for name, module in list(model.named_modules()):
        if name and is_layer_norm(module):
            model.set_submodule(name, CompactLayerNorm(module))
        elif name and fits(module):
            model.set_submodule(name, CompactMaxPool2d(module))  # type: ignore[arg-type]
        elif is_attention(module) and not any(isinstance(part, CompressedLayer) for part in module.modules()):
            Recomputed(module, eight_bit=True).install()


def is_layer_norm(module: nn.Module) -> bool:
    """Whether a module is a LayerNorm over its last dimension: torch's, or timm's where it computes the same."""
    timm = type(module).__name__ == "LayerNorm" and type(module).__module__.startswith("timm.") and not getattr(module, "_fast_norm", True)
    return (type(module) is nn.LayerNorm or timm) and len(module.normalized_shape) == 1  # type: ignore[arg-type]


def fold_frozen(model: nn.Module) -> None:
    """Let a frozen convolution apply the frozen norm that follows it in a Sequential: one pass less, no weight kept twice."""
    uses = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    for parent in list(model.modules()):
        if type(parent).forward is not nn.Sequential.forward:
            continue
        for (name, conv), (_, norm) in pairwise(list(parent.named_children())):
            if type(conv) is not nn.Conv2d or not isinstance(norm, FrozenBatchNorm2d) or geometry_of(conv) is None:
                continue
            trains = any(parameter.requires_grad for part in (conv, norm) for parameter in part.parameters())
            if trains or isinstance(conv.padding, str) or uses[id(conv)] > 1 or uses[id(norm)] > 1:
                continue
            folded = Selective(conv)
            folded.absorb(norm)
            parent.set_submodule(name, folded)


def restore(model: nn.Module) -> nn.Module:
    """Undo `prepare` in place: plain torch modules with the trained values and the old `requires_grad` flags."""
    for module in model.modules():
        if (forward := recomputed(module)) is not None:
            forward.remove()
    for name, module in list(model.named_modules()):
        if isinstance(module, CompressedLayer | CompactLayerNorm | CompactMaxPool2d | FactoredLinear | Selective):
            if isinstance(module, Selective):
                module.release()
            model.set_submodule(name, module.original)
    unpack_activations(model)
    thaw_norms(model)
    flags: dict[str, bool] = model.__dict__.pop(_FLAGS, {})
    for name, parameter in model.named_parameters():
        if name in flags:
            parameter.requires_grad_(flags[name])
    return model


def codecs(model: nn.Module) -> Iterator[tuple[str, Codec]]:
    """The codecs of a prepared model, by the name of their layer."""
    for name, module in model.named_modules():
        if isinstance(module, CompressedLayer | FactoredLinear):
            yield name, module.codec


def codec_state(model: nn.Module) -> dict[str, Any]:
    """State of all codecs (warm bases), for a checkpoint."""
    return {name: state for name, codec in codecs(model) if (state := codec.state())}


def load_codec_state(model: nn.Module, state: dict[str, Any]) -> None:
    """Give the codecs of a prepared model their state back."""
    found = dict(codecs(model))
    for name, value in state.items():
        if name not in found:
            raise InputError(f"the checkpoint holds bases of layer {name!r}, which is not compressed here")
        found[name].load_state(value)
