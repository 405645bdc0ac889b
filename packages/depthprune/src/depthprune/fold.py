"""Make a captured graph ready for merging: norms and removed activations folded into layers, inference-only nodes gone."""

from __future__ import annotations

import copy
from typing import cast

import torch
from edge_shared.errors import InputError
from torch import Tensor, fx, nn

from depthprune.capture import module_of, shape, shapes
from depthprune.merge.conv import Conv, from_module, to_module
from depthprune.merge.dead import is_dead, shrink
from depthprune.merge.norm import Scale, batch_norm, layer_norm_affine, scale_after
from depthprune.methods.layer_folding import Fold
from depthprune.surgery import ChannelAffine, is_add

_TRANSPARENT = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d)
_STOCHASTIC = ("StochasticDepth", "DropPath")
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear)


def prepare(gm: fx.GraphModule, inputs: Tensor | tuple[Tensor, ...]) -> fx.GraphModule:
    """A copy of the graph for inference: no dropout or identity, batch norms and per-channel maps folded where they can be.

    Args:
        gm: captured graph in evaluation mode.
        inputs: example input(s), batch first.

    Raises:
        InputError: if the graph is in training mode, where its batch norms depend on the batch.
    """
    if gm.training or any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in gm.modules()):
        raise InputError("the model is in training mode, where batch norms depend on the batch; call model.eval() before merging")
    gm = copy.deepcopy(gm)
    _drop_transparent(gm)
    _fold_scales(gm)
    _lower(gm)
    _constants(gm, inputs)
    return shapes(gm, inputs)


def calls(gm: fx.GraphModule) -> dict[str, int]:
    """How often each called module's own parameters (or, without any, the module) are used: above 1 it is shared."""
    uses: dict[int, int] = {}
    keys: dict[str, list[int]] = {}
    for node in gm.graph.nodes:
        module = module_of(gm, node)
        if module is None:
            continue
        keys[str(node.target)] = [id(p) for p in module.parameters()] or [id(module)]
        for key in set(keys[str(node.target)]):
            uses[key] = uses.get(key, 0) + 1
    return {name: max(uses[key] for key in ids) for name, ids in keys.items()}


def replace_module(gm: fx.GraphModule, node: fx.Node, module: nn.Module) -> None:
    """Put another module at a call."""
    parent, _, name = str(node.target).rpartition(".")
    setattr(gm.get_submodule(parent), name, module.eval())


def cut_out(gm: fx.GraphModule, node: fx.Node) -> None:
    """Remove a node that passes its input on."""
    node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
    gm.graph.erase_node(node)


def finish(gm: fx.GraphModule) -> None:
    """Drop what no longer runs and recompile."""
    gm.graph.eliminate_dead_code()
    gm.delete_all_unused_submodules()
    gm.graph.lint()
    gm.recompile()


def _drop_transparent(gm: fx.GraphModule) -> None:
    for node in list(gm.graph.nodes):
        module = module_of(gm, node)
        if isinstance(module, _TRANSPARENT) or type(module).__name__ in _STOCHASTIC:
            cut_out(gm, node)
    finish(gm)


def _fold_scales(gm: fx.GraphModule) -> None:
    """Fold batch norms, per-channel maps and the affine part of layer norms into the layers beside them."""
    shared = calls(gm)
    changed = True
    while changed:
        changed = False
        for node in list(gm.graph.nodes):
            module = module_of(gm, node)
            scale: Scale | None = None
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
                scale, axis = batch_norm(module), 1
            elif isinstance(module, ChannelAffine):
                scale, axis = Scale(module.a.double(), module.c.double()), module.axis
            if scale is None:
                continue
            source = node.args[0]
            layer = module_of(gm, source)
            if not isinstance(layer, LAYERS) or len(source.users) != 1 or shared[str(source.target)] > 1:
                continue
            if isinstance(layer, nn.Linear) != (axis == len(shape(node)) - 1):
                continue
            if isinstance(layer, nn.Conv1d | nn.Conv2d) and layer.padding_mode != "zeros":
                continue
            dtype = layer.weight.dtype
            replace_module(gm, source, to_module(scale_after(from_module(layer), scale), dtype))
            cut_out(gm, node)
            changed = True
    for node in list(gm.graph.nodes):
        module = module_of(gm, node)
        if (
            not isinstance(module, nn.LayerNorm)
            or module.weight is None
            or len(module.normalized_shape) != 1
            or shared[str(node.target)] > 1
        ):
            continue
        readers = [(user, module_of(gm, user)) for user in node.users if user.target not in (getattr, "size", "dim")]
        if not readers or any(not isinstance(m, nn.Linear) or shared[str(u.target)] > 1 for u, m in readers):
            continue
        beta = torch.zeros_like(module.weight) if module.bias is None else module.bias
        for user, linear in readers:
            assert linear is not None
            folded = layer_norm_affine(module.weight.detach().double(), beta.detach().double(), from_module(linear))
            replace_module(gm, user, to_module(folded, module.weight.dtype))
        replace_module(gm, node, nn.LayerNorm(module.normalized_shape, module.eps, elementwise_affine=False))
    finish(gm)


def _lower(gm: fx.GraphModule) -> None:
    """Write what could not be folded as plain operations, so that no module of ours is left in the graph."""
    for node in list(gm.graph.nodes):
        module = module_of(gm, node)
        if isinstance(module, ChannelAffine):
            view = [1] * module.ndim
            view[module.axis] = -1
            with gm.graph.inserting_before(node):
                value: fx.Node = gm.graph.call_function(torch.mul, (node.args[0], constant(gm, module.a.reshape(view))))
                if bool(module.c.any()):
                    value = gm.graph.call_function(torch.add, (value, constant(gm, module.c.reshape(view))))
        elif isinstance(module, Fold):
            alpha = float(module.alpha.detach().clamp(min=0))
            if isinstance(module.activation, nn.ReLU):
                replace_module(gm, node, nn.LeakyReLU(alpha))
                continue
            gm.add_submodule(f"{node.name}_plain", module.activation)
            with gm.graph.inserting_before(node):
                curved = gm.graph.call_function(torch.mul, (gm.graph.call_module(f"{node.name}_plain", node.args), 1 - alpha))
                value = gm.graph.call_function(torch.add, (gm.graph.call_function(torch.mul, (node.args[0], alpha)), curved))
        else:
            continue
        node.replace_all_uses_with(value)
        gm.graph.erase_node(node)
    finish(gm)


def constant(gm: fx.GraphModule, value: Tensor) -> fx.Node:
    """A node that gives a fixed tensor, kept as a buffer."""
    index = 0
    while hasattr(gm, f"constant_{index}"):
        index += 1
    # Contiguous: another layout would spread to the tensors that it is added to, and a saved network would round otherwise.
    gm.register_buffer(f"constant_{index}", value.detach().clone(memory_format=torch.contiguous_format))
    return gm.graph.get_attr(f"constant_{index}")


def _constants(gm: fx.GraphModule, inputs: Tensor | tuple[Tensor, ...]) -> None:
    """Replace what follows from a layer without weights by its value: dead branches go, their constant stays."""
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    fixed: set[fx.Node] = set()
    for node in gm.graph.nodes:
        module = module_of(gm, node)
        if isinstance(module, LAYERS) and is_dead(from_module(module)):
            fixed.add(node)
        sources = node.all_input_nodes
        tensors = [source for source in sources if shape(source)]
        if tensors and node.op != "output" and all(source in fixed for source in tensors) and len(tensors) == len(sources):
            fixed.add(node)
    ends = [node for node in fixed if any(user not in fixed for user in node.users)]
    ends = [node for node in ends if all(user in fixed or is_add(user) for user in node.users)]
    if not ends:
        return
    values: dict[fx.Node, Tensor] = {}

    class Reader(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            result = super().run_node(n)
            if n in ends:
                values[n] = result
            return result

    with torch.no_grad():
        Reader(gm).run(*[x[:1] for x in inputs])
    for node in ends:
        with gm.graph.inserting_after(node):
            fresh = constant(gm, shrink(values[node][0])[None] if values[node].ndim > 2 else values[node])
        for user in [user for user in node.users if user not in fixed]:
            user.replace_input_with(node, fresh)
    finish(gm)


def as_conv(gm: fx.GraphModule, node: fx.Node) -> Conv:
    """The layer at a node as plain float64 tensors."""
    module = module_of(gm, node)
    if isinstance(module, nn.Sequential):
        pad, conv = module
        read = from_module(conv)
        flat = list(cast("nn.ConstantPad2d", pad).padding)
        pairs = tuple((flat[i], flat[i + 1]) for i in range(len(flat) - 2, -1, -2))
        return Conv(read.weight, read.bias, read.stride, pairs, read.dilation, read.groups)
    assert module is not None
    return from_module(module)
