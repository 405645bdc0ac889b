"""A model as a graph of call sites: every activation call gets a module of its own, whatever the model shared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from edge_shared.errors import InputError
from edge_shared.evaluating import evaluating
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F

# What counts as an activation: module types, functions and methods, by the kind that `Site.kind` shows.
KINDS: dict[type[nn.Module], str] = {
    nn.ReLU: "relu", nn.ReLU6: "relu6", nn.GELU: "gelu", nn.SiLU: "silu", nn.Hardswish: "hardswish",
    nn.LeakyReLU: "leaky_relu", nn.PReLU: "prelu", nn.ELU: "elu", nn.Mish: "mish",
}  # fmt: skip
_FUNCTIONS: dict[Any, type[nn.Module]] = {
    F.relu: nn.ReLU, F.relu_: nn.ReLU, torch.relu: nn.ReLU, torch.relu_: nn.ReLU, F.relu6: nn.ReLU6, F.gelu: nn.GELU,
    F.silu: nn.SiLU, F.hardswish: nn.Hardswish, F.leaky_relu: nn.LeakyReLU, F.elu: nn.ELU, F.mish: nn.Mish,
    "relu": nn.ReLU, "relu_": nn.ReLU,
}  # fmt: skip
_OPTIONS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.GELU: ("approximate",),
    nn.LeakyReLU: ("negative_slope",),
    nn.ELU: ("alpha",),
}
_STOCHASTIC = ("StochasticDepth", "DropPath")
CAPTURED = "depthprune_captured"  # key of `GraphModule.meta`
_KEEP_AXES = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.Dropout, nn.Dropout2d, nn.Identity, *KINDS)


@dataclass(frozen=True)
class Site:
    """One call of one activation.

    Attributes:
        name: where the model calls it, such as ``layer1.0.relu`` and ``layer1.0.relu#2`` for its second call.
        kind: relu, relu6, gelu, silu, hardswish, leaky_relu, prelu, elu or mish.
        node: name of its node in the captured graph.
        channel_axis: axis of the neurons in its input (1 in NCHW, the last one in token models).
        channels: neurons.
        shape: of its input, batch first.
    """

    name: str
    kind: str
    node: str
    channel_axis: int
    channels: int
    shape: tuple[int, ...]


class _Tracer(fx.Tracer):
    """Symbolic tracing that keeps the modules named in `leaves` whole."""

    def __init__(self, leaves: set[str]) -> None:
        super().__init__()
        self.leaves = leaves
        self.stack: list[str] = []
        self.failed: str | None = None

    def is_leaf_module(self, m: nn.Module, qualified_name: str) -> bool:
        whole = qualified_name in self.leaves or type(m).__name__ in _STOCHASTIC or is_fused_norm(m)
        return whole or super().is_leaf_module(m, qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        path = self.path_of_module(m)
        self.stack.append(path)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed = self.failed or path  # the innermost module that cannot be traced
            raise
        finally:
            self.stack.pop()


def capture(model: nn.Module, example: Tensor | tuple[Tensor, ...]) -> fx.GraphModule:
    """Trace a model into a graph in which every activation call is a module of its own, never in place.

    Modules that cannot be traced (data-dependent control flow) stay whole: they are barriers, not errors. The model
    shares its parameters with the graph, and is traced in evaluation mode: functional dropout is off.

    Args:
        model: any module.
        example: one input, batch first, or a tuple of them.

    Returns:
        The graph, with shapes on its nodes, in the mode (train or eval) that `model` was in.

    Raises:
        InputError: if the model cannot be traced or does not take the example.
    """
    inputs = example if isinstance(example, tuple) else (example,)
    if isinstance(model, fx.GraphModule) and model.meta.get(CAPTURED):
        return shapes(model, inputs)
    was_training, leaves = model.training, set[str]()
    with evaluating(model):
        while True:
            tracer = _Tracer(leaves)
            try:
                graph = tracer.trace(model)
                break
            except Exception as error:
                if tracer.failed is None or tracer.failed in leaves or len(leaves) > 1000:
                    raise InputError(
                        f"{type(model).__name__} cannot be traced: {' '.join(str(error).split())[:200]}; move data-dependent control flow "
                        "out of its forward into submodules (those are kept whole)"
                    ) from error
                leaves.add(tracer.failed)
        gm = fx.GraphModule(tracer.root, graph, type(model).__name__)
    _split_fused_norms(gm)
    _own_activations(gm)
    gm.meta[CAPTURED] = True
    gm.training = was_training  # the modules are the model's own and keep their modes
    return shapes(gm, inputs)


def shapes(gm: fx.GraphModule, inputs: Tensor | tuple[Tensor, ...]) -> fx.GraphModule:
    """Write the shape of every tensor to its node (``node.meta["tensor_meta"]``), by one run in evaluation mode."""
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    with evaluating(gm), torch.no_grad():
        try:
            ShapeProp(gm).propagate(*inputs)
        except Exception as error:
            got = ", ".join(str(tuple(x.shape)) for x in inputs)
            raise InputError(f"the model does not take an input of shape {got}: {' '.join(str(error).split())[:200]}") from error
    return gm


def shape(node: fx.Node) -> tuple[int, ...]:
    """Shape of the tensor that a node makes, batch first; () if it makes none."""
    meta: Any = node.meta.get("tensor_meta")
    return tuple(meta.shape) if hasattr(meta, "shape") else ()


def module_of(gm: fx.GraphModule, node: Any) -> nn.Module | None:
    """The module that a node calls, or None."""
    return gm.get_submodule(str(node.target)) if isinstance(node, fx.Node) and node.op == "call_module" else None


def is_fused_norm(module: nn.Module) -> bool:
    """Whether a module is a batch norm with an activation inside, as timm's ``BatchNormAct2d``: attributes ``act`` and ``drop``."""
    fused = isinstance(module, nn.BatchNorm2d) and type(module) is not nn.BatchNorm2d
    return fused and isinstance(getattr(module, "act", None), nn.Module) and isinstance(getattr(module, "drop", None), nn.Module)


def _split_fused_norms(gm: fx.GraphModule) -> None:
    """Write such a norm as a plain one (with the same parameters and statistics) and an activation, so that neither is a barrier."""
    for node in list(gm.graph.nodes):
        module: Any = module_of(gm, node)
        if module is None or not is_fused_norm(module):
            continue
        norm = nn.BatchNorm2d(module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats)
        norm.train(module.training)
        for name in ("weight", "bias"):
            setattr(norm, name, getattr(module, name))
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            setattr(norm, name, getattr(module, name))
        path, last = str(node.target), node
        gm.add_submodule(path, norm)
        for part in (module.drop, module.act):
            if isinstance(part, nn.Identity):
                continue
            place = _free(gm, f"{path}_{type(part).__name__.lower()}")
            gm.add_submodule(place, part)
            with gm.graph.inserting_after(last):
                following = gm.graph.call_module(place, (last,))
            last.replace_all_uses_with(following)
            following.args = (last,)
            last = following
    gm.recompile()


def _own_activations(gm: fx.GraphModule) -> None:
    """Replace every activation call by a module of its own that is not in place."""
    seen = dict[str, int]()
    for node in list(gm.graph.nodes):
        module = module_of(gm, node)
        path = str(node.target)
        if module is not None and type(module) in KINDS:
            fresh = _copy(module)
        elif node.op in ("call_function", "call_method") and node.target in _FUNCTIONS:
            kind = _FUNCTIONS[node.target]
            names = _OPTIONS.get(kind, ())
            options = dict(zip(names, node.args[1:], strict=False)) | {k: v for k, v in node.kwargs.items() if k in names}
            fresh = kind(**options)
            stack = node.meta.get("nn_module_stack") or {}
            path = ".".join([*([str(list(stack)[-1])] if stack else []), kind.__name__.lower()])
        else:
            continue
        seen[path] = seen.get(path, 0) + 1
        name = path if seen[path] == 1 else f"{path}#{seen[path]}"
        place = path if module is not None and seen[path] == 1 else _free(gm, path)
        gm.add_submodule(place, fresh)  # the graph's containers are its own: the model keeps its activation
        with gm.graph.inserting_before(node):
            source = node.args[0] if node.args else node.kwargs["input"]
            new = gm.graph.call_module(place, (source,))
        new.meta = {**node.meta, "site": name}
        node.replace_all_uses_with(new)
        gm.graph.erase_node(node)
    gm.delete_all_unused_submodules()
    gm.recompile()


def _free(gm: fx.GraphModule, path: str) -> str:
    """A name like `path` that no module has yet."""
    taken, index = {name for name, _ in gm.named_modules()}, 2
    while f"{path}_{index}" in taken:
        index += 1
    return f"{path}_{index}"


def _copy(module: nn.Module) -> nn.Module:
    """An activation like `module`, not in place; a PReLU keeps its own (shared) slope parameter."""
    if isinstance(module, nn.PReLU):
        fresh: nn.Module = nn.PReLU(module.num_parameters)
        fresh.weight = module.weight
        return fresh
    options = {name: getattr(module, name) for name in _OPTIONS.get(type(module), ())}
    return type(module)(**options)


def sites(gm: fx.GraphModule) -> list[Site]:
    """Activation call sites of a captured graph in the order in which they run.

    Raises:
        InputError: if there is none.
    """
    found = []
    for node in gm.graph.nodes:
        module = module_of(gm, node)
        if module is None or type(module) not in KINDS or "site" not in node.meta:
            continue
        size = shape(node)
        axis = channel_axis(gm, node.args[0], len(size))
        found.append(Site(node.meta["site"], KINDS[type(module)], node.name, axis, size[axis], size))
    return found


def channel_axis(gm: fx.GraphModule, node: Any, ndim: int) -> int:
    """Axis of the neurons of a tensor: 1 behind a convolution, the last behind a linear layer or layer norm.

    Follows the graph back through shape-preserving operations and permutations; without a hint 1 for images, else the last.
    """
    order = list(range(ndim))
    for _ in range(64):
        if not isinstance(node, fx.Node):
            break
        module = module_of(gm, node)
        if isinstance(module, nn.modules.conv._ConvNd | nn.modules.batchnorm._BatchNorm | nn.GroupNorm):
            return order.index(1)
        if isinstance(module, nn.Linear | nn.LayerNorm | nn.Embedding):
            return order.index(ndim - 1)
        source = next((a for a in node.args if isinstance(a, fx.Node)), None)
        if node.target in (torch.permute, "permute"):
            dims = node.args[1] if isinstance(node.args[1], tuple | list) else node.args[1:]
            permutation = [int(d) % ndim for d in dims]  # type: ignore[arg-type]
            order = [permutation[d] for d in order]
        elif node.target in (torch.flatten, "flatten") and source is not None and len(shape(source)) != ndim:
            return 1
        elif source is None or len(shape(source)) != ndim:
            break
        node = source
    return 1 if ndim in (2, 4) else ndim - 1
